"""End a process in which nothing finishes any more, so that a scheduler restarts it.

A collective whose partner is alive but stuck waits for ever; neither JAX nor the network notices.
"""

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator

EXIT_CODE = 1
COMPILE_SEC = 3600.0
"""Extra time for one compilation, seconds."""

LATER_SEC = 20.0
"""Delay of a second alarm, in C, which does not need the interpreter lock; seconds."""


class _Alarm:
  """The deadline of the process, moved on by each beat."""

  def __init__(self, timeout_sec: float, name: str):
    self.timeout_sec, self.name, self.extra_sec = timeout_sec, name, 0.0
    self.closed = threading.Event()
    self.rearmed = -1e9
    self.beat()

  def beat(self) -> None:
    self.last = time.monotonic()
    if self.last - self.rearmed > 1.0:  # it starts a thread, so not at every step
      self.rearmed = self.last
      limit = self.timeout_sec + self.extra_sec + LATER_SEC
      faulthandler.dump_traceback_later(limit, exit=True, file=sys.__stderr__ or 2)

  def run(self) -> None:
    pause = min(self.timeout_sec / 10, 1.0)
    while not self.closed.wait(pause):
      limit = self.timeout_sec + self.extra_sec
      if time.monotonic() - self.last > limit:
        self.fire(limit)

  def fire(self, limit: float) -> None:
    """Print the reason and the stack of every thread, and end the process."""
    text = (
      f"\nwatchdog: {self.name}: nothing finished for {limit:g} s "
      "(distributed.watchdog_sec): a collective or a device hangs. Stacks follow; exit code "
      f"{EXIT_CODE}, so that the job is restarted and continues.\n"
    )
    os.write(2, text.encode())
    faulthandler.dump_traceback(file=2, all_threads=True)
    os._exit(EXIT_CODE)


_alarm: _Alarm | None = None


def start_watch(timeout_sec: float, name: str) -> None:
  """Watch this process until `stop_watch`.

  Args:
    timeout_sec: seconds without a `beat` after which the process ends with exit code 1.
    name: name of the process in the message.
  """
  global _alarm
  stop_watch()
  _alarm = _Alarm(timeout_sec, name)
  threading.Thread(target=_alarm.run, daemon=True).start()


def stop_watch() -> None:
  """Stop watching this process."""
  global _alarm
  if _alarm is not None:
    _alarm.closed.set()
    faulthandler.cancel_dump_traceback_later()
  _alarm = None


def beat() -> None:
  """Record progress: an operation that needs all processes has finished."""
  if _alarm is not None:
    _alarm.beat()


@contextlib.contextmanager
def allow(extra_sec: float) -> Iterator[None]:
  """Extend the deadline in the block, e.g. for a compilation or a file of one process."""
  alarm = _alarm
  if alarm is None:
    yield
    return
  alarm.extra_sec += extra_sec
  alarm.rearmed = -1e9
  alarm.beat()
  try:
    yield
  finally:
    alarm.extra_sec -= extra_sec
    alarm.rearmed = -1e9
    alarm.beat()
