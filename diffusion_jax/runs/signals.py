"""Let signals stop a program through a flag; no handler raises an exception."""

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
"""Signals from a user, a closing terminal, a scheduler or a CPU time limit, before SIGKILL."""


SAME_SEC = 0.3
"""Seconds within which a repeated signal is the same one: some senders send it twice."""


LAUNCHER = "DIFFUSION_JAX_LAUNCHER"

INTERRUPTED = "interrupted; nothing new was saved"


class StoppedEarly(Exception):
  """Raised after a signal such as Ctrl-C has stopped a run and its state is saved.

  The same command or call continues the run.
  """


@contextlib.contextmanager
def stop_requests(words: str = "saving, then stopping") -> Iterator[Callable[[], str | None]]:
  """Let signals that request a stop set a flag; a repeated signal ends the process.

  A SIGHUP that is already ignored, as after nohup, stays ignored. In another thread than the main
  one, where Python does not allow handlers, signals do what they did before.

  Args:
    words: next action of the program, for the message.

  Yields:
    A function that returns the name of the signal that requested a stop, or None.
  """
  asked: list[str] = []
  if threading.current_thread() is not threading.main_thread():
    yield lambda: None
    return

  def handle(signum, frame):
    del frame
    asked.append(signal.Signals(signum).name)

  def announce(signum: int) -> None:
    _say(f"{signal.Signals(signum).name}: {words} (again to end at once without saving)")

  ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
  chosen = [n for n in ASKING if not (ignored and n == signal.SIGHUP)]
  with _heard_at_once(announce):
    before = {n: signal.signal(n, handle) for n in chosen}
    try:
      yield lambda: asked[0] if asked else None
    finally:
      for signum, handler in before.items():
        signal.signal(signum, handler)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
  """Let Ctrl-C end the process at once with one line, also in the middle of a compilation.

  It raises no KeyboardInterrupt, because libraries that call back into Python swallow it or crash.
  Unfinished files are removed. A Ctrl-C that is already ignored, as in a shell's background job,
  stays ignored.
  """
  if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    yield
    return
  with _heard_at_once(_interrupt):
    before = signal.signal(signal.SIGINT, lambda signum, frame: None)
    try:
      yield
    finally:
      signal.signal(signal.SIGINT, before)


def _interrupt(signum: int) -> None:
  if signum == signal.SIGINT:
    _say(INTERRUPTED)
    files.remove_unfinished()
    flush = threading.Thread(target=sys.stdout.flush, daemon=True)  # it may block on a reader
    flush.start()
    flush.join(0.5)
    end_by(signum)


def stop_with_launcher(environment: MutableMapping[str, str]) -> None:
  """Request a stop of this process when its launcher has ended, for whatever reason.

  The signal is SIGHUP, or SIGTERM if SIGHUP is ignored. A launcher that was killed after Ctrl-C has
  already sent a SIGTERM, and a second one would not let the run save.

  Args:
    environment: variables, in which launch/local.py names the end of a pipe that it holds open. The
      variable is removed, because the pipe is not passed on.
  """
  name = environment.pop(LAUNCHER, "")
  if not name.isdecimal():
    return
  try:
    os.set_inheritable(int(name), False)
  except OSError:  # the parent process has not passed the pipe on
    return
  threading.Thread(target=_outlive, args=(int(name),), daemon=True).start()


def _outlive(pipe: int) -> None:
  with contextlib.suppress(OSError):
    while os.read(pipe, 1):
      pass
    _say("the launcher has ended; so does this process")
    is_ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    os.kill(os.getpid(), signal.SIGTERM if is_ignored else signal.SIGHUP)


def end_by(signum: int) -> NoReturn:
  """End this process like an unhandled signal, so that a shell's loop around it ends too.

  Nothing is cleaned up: XLA's threads crash if the interpreter ends while they run. May be called
  in any thread.
  """
  ctypes.CDLL(None).signal(signum, 0)  # SIG_DFL; signal.signal works in the main thread only
  os.kill(os.getpid(), signum)
  os._exit(128 + signum)  # the signal is blocked


@contextlib.contextmanager
def _heard_at_once(answer: Callable[[int], None]) -> Iterator[None]:
  """Answer the first signal at once, and end the process if it arrives again.

  This happens in a thread, because Python's own handlers wait until the main thread returns from
  C++, e.g. from a compilation of several minutes.

  Args:
    answer: function of the signal's number, called in that thread.
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
  """Receive the signals that arrive at a pipe, until its other end is closed."""
  first: dict[int, float] = {}
  while data := os.read(read, 1):
    signum, now = data[0], time.monotonic()
    if signum not in ASKING:
      continue
    if not first:
      answer(signum)
    if now - first.setdefault(signum, now) > SAME_SEC:
      end_by(signum)
  os.close(read)


def _say(text: str) -> None:
  with contextlib.suppress(OSError):  # not print: the signal may have interrupted a print
    os.write(2, f"\n{text}\n".encode())


_stop_between_pieces: list[tuple[Callable[[], str | None], str]] = []


@contextlib.contextmanager
def stops_between_pieces(continues: str) -> Iterator[None]:
  """Let signals end the work in the block at its next `stop_here`; a second signal kills it.

  No signal handler raises an exception: interrupted code, e.g. the reading of a checkpoint, would
  treat it as its own failure.

  Args:
    continues: effect of starting again, for the message.
  """
  with stop_requests("finishing a piece of work, then stopping") as asked:
    _stop_between_pieces.append((asked, continues))
    try:
      yield
    finally:
      _stop_between_pieces.pop()


def stop_here() -> None:
  """Stop if a signal to any of the job's processes has requested it; a collective.

  Raises:
    StoppedEarly: a stop was requested; finished work is on disk.
  """
  if not _stop_between_pieces:
    return
  asked, continues = _stop_between_pieces[-1]
  signals = [name for name in parallel.all_gather_objects(asked()) if name]
  if signals:
    raise StoppedEarly(f"{signals[0]}: {continues}")
