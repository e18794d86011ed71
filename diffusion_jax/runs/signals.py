"""Signals that ask a program to stop: they set a flag, and nothing is raised out of a handler."""

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, MutableMapping
from typing import NoReturn

from diffusion_jax import parallel
from diffusion_jax.core import files

ASKING = (
  signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU,
)  # fmt: skip
"""Signals that a user, a closing terminal, a scheduler or a CPU time limit sends before SIGKILL."""


SAME_SEC = 0.3
"""Within it a signal that comes again is the same one: `timeout` and some shells send it twice."""


LAUNCHER = "DIFFUSION_JAX_LAUNCHER"

INTERRUPTED = "interrupted; nothing was saved that was not saved before"


class StoppedEarly(Exception):
  """The run was asked to stop; its state is saved."""


@contextlib.contextmanager
def stop_requests(words: str = "saving, then stopping") -> Iterator[Callable[[], str | None]]:
  """Make signals that ask to stop set a flag; the same one again ends the process at once.

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

  def tell(number: int) -> None:
    _say(f"{signal.Signals(number).name}: {words} (again to end at once, unsaved)")

  ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
  chosen = [n for n in ASKING if not (ignored and n == signal.SIGHUP)]
  with _heard_at_once(tell):
    before = {n: signal.signal(n, handle) for n in chosen}
    try:
      yield lambda: asked[0] if asked else None
    finally:
      for number, handler in before.items():
        signal.signal(number, handler)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
  """Make Ctrl-C end the process at once with one line, also in the middle of a compilation.

  No KeyboardInterrupt is raised: libraries that call back into Python swallow it, or crash.
  Half-written files are removed. Where Ctrl-C is ignored already, as in a shell's background job,
  it stays ignored.
  """
  if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    yield
    return
  with _heard_at_once(_interrupt):
    before = signal.signal(signal.SIGINT, lambda number, frame: None)
    try:
      yield
    finally:
      signal.signal(signal.SIGINT, before)


def _interrupt(number: int) -> None:
  if number == signal.SIGINT:
    _say(INTERRUPTED)
    files.remove_unfinished()
    flush = threading.Thread(target=sys.stdout.flush, daemon=True)  # it may wait for a reader
    flush.start()
    flush.join(0.5)
    end_by(number)


def stop_with_launcher(environment: MutableMapping[str, str]) -> None:
  """Ask this process to stop when the launcher that started it has ended, however it ended.

  The signal is SIGHUP, or SIGTERM where that is ignored: a launcher that was killed after Ctrl-C
  has sent a SIGTERM already, and a second one would not let the run save.

  Args:
    environment: in which launch/local.py names the end of a pipe that it holds open. The name is
      taken out, since the pipe is not passed on.
  """
  name = environment.pop(LAUNCHER, "")
  if not name.isdecimal():
    return
  try:
    os.set_inheritable(int(name), False)
  except OSError:  # this process was started by one that has not passed it on
    return
  threading.Thread(target=_outlive, args=(int(name),), daemon=True).start()


def _outlive(pipe: int) -> None:
  with contextlib.suppress(OSError):
    while os.read(pipe, 1):
      pass
    _say("the launcher has ended; so does this process")
    is_ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    os.kill(os.getpid(), signal.SIGTERM if is_ignored else signal.SIGHUP)


def end_by(number: int) -> NoReturn:
  """End this process as a signal does that nothing handles: a shell's loop around it ends too.

  Nothing is cleaned up: threads that XLA has running crash where the interpreter is taken away from
  under them. May be called in any thread.
  """
  ctypes.CDLL(None).signal(number, 0)  # SIG_DFL; signal.signal is for the main thread
  os.kill(os.getpid(), number)
  os._exit(128 + number)  # it is blocked


@contextlib.contextmanager
def _heard_at_once(answer: Callable[[int], None]) -> Iterator[None]:
  """Answer the first signal as soon as it comes, and end the process when it comes again.

  A thread does it: Python's own handlers wait until the main thread is back from C++, such as a
  compilation that takes minutes.

  Args:
    answer: called in that thread with the number of a signal that asks to stop.
  """
  read, write = os.pipe()
  os.set_blocking(write, False)
  before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
  thread = threading.Thread(target=_listen, args=(read, answer), daemon=True)
  thread.start()
  try:
    yield
  finally:
    signal.set_wakeup_fd(before)
    os.close(write)
    thread.join(1.0)


def _listen(read: int, answer: Callable[[int], None]) -> None:
  """Hears the signals that arrive at a pipe, until its other end is closed."""
  first: dict[int, float] = {}
  while data := os.read(read, 1):
    number, now = data[0], time.monotonic()
    if number not in ASKING:
      continue
    if not first:
      answer(number)
    if now - first.setdefault(number, now) > SAME_SEC:
      end_by(number)
  os.close(read)


def _say(text: str) -> None:
  with contextlib.suppress(OSError):  # not print: it may be what the signal has interrupted
    os.write(2, f"\n{text}\n".encode())


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
  signals = [name for name in parallel.tell_all(asked()) if name]
  if signals:
    raise StoppedEarly(f"{signals[0]}: {continues}")
