"""Signals that ask a program to stop: they set a flag, and nothing is raised out of a handler."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator

from diffusion_jax import distributed

ASKING = (
  signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU,
)  # fmt: skip
"""Signals that a user, a closing terminal, a scheduler or a CPU time limit sends before SIGKILL."""


class StoppedEarly(Exception):
  """The run was asked to stop; its state is saved."""


@contextlib.contextmanager
def stop_requests(words: str = "saving, then stopping") -> Iterator[Callable[[], str | None]]:
  """Make signals that ask to stop set a flag; a second one kills as usual.

  A SIGHUP that is ignored already, as after nohup, stays ignored.

  Args:
    words: what is done now, for the message.

  Yields:
    A function that returns the name of the signal that asked to stop, or None.
  """
  asked: list[str] = []

  def handle(number, frame):
    del frame
    asked.append(signal.Signals(number).name)
    with contextlib.suppress(OSError):  # not print: it may be what the signal has interrupted
      os.write(2, f"\n{asked[0]}: {words} (again to stop at once)\n".encode())
    signal.signal(number, before[number])

  ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
  before = {n: signal.signal(n, handle) for n in ASKING if not (ignored and n == signal.SIGHUP)}
  try:
    yield lambda: asked[0] if asked else None
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


_stop_between_pieces: list[tuple[Callable[[], str | None], str]] = []


@contextlib.contextmanager
def stops_between_pieces(continues: str) -> Iterator[None]:
  """Let signals end the work inside at its next call of `stop_here`; a second signal kills.

  Nothing is raised out of a signal handler: whatever it interrupts, such as the reading of a
  checkpoint, would take that for its own failure.

  Args:
    continues: what starting again does, for the message.
  """
  with stop_requests("finishing a piece of work, then stopping") as asked:
    _stop_between_pieces.append((asked, continues))
    try:
      yield
    finally:
      _stop_between_pieces.pop()


def stop_here() -> None:
  """Stop if a signal to any of the job's processes has asked to; a collective.

  Raises:
    StoppedEarly: what is finished is on disk.
  """
  if not _stop_between_pieces:
    return
  asked, continues = _stop_between_pieces[-1]
  signals = [name for name in distributed.tell_all(asked()) if name]
  if signals:
    raise StoppedEarly(f"{signals[0]}: {continues}")
