"""Progress of work that may last: bars on a terminal, lines elsewhere, and the time taken.

  with progress.phase("reading pictures", total=len(names), unit="images") as phase:
    for name in names:
      phase.advance()

A thread redraws all open phases, so that one without a total, such as a compilation, moves too.
Nothing in this file raises an error: a faulty display must not end a run.
"""

import atexit
import contextlib
import sys
import threading
import time
from collections.abc import Iterator

from diffusion_jax.core.bars import Bars, can_show, is_seen, is_terminal
from diffusion_jax.core.phases import LINE_AFTER_SEC, Phase

__all__ = ["Phase", "can_show", "is_seen", "phase"]

BAR_AFTER_SEC = 1.0
REDRAW_SEC = 0.25


@contextlib.contextmanager
def phase(
  name: str,
  total: int | None = None,
  unit: str = "",
  done: int = 0,
  last_line: bool = True,
  is_steady: bool = False,
) -> Iterator[Phase]:
  """Show the work in the block under a name; phases may be nested.

  Args:
    name, total, unit, done, is_steady: see `Phase`.
    last_line: print a line at the end of a phase of at least LINE_AFTER_SEC.
  """
  shown = Phase(name, total, unit, done, is_steady)
  _display.open(shown)
  try:
    yield shown
  except BaseException:
    _display.close(shown)
    raise
  _display.close(shown)
  now = time.monotonic()
  if last_line and now - shown.begun >= LINE_AFTER_SEC:
    with contextlib.suppress(Exception):
      print(shown.last_line(now), flush=True)


class Display:
  """The bars of all open phases at the bottom of a terminal, or their lines."""

  def __init__(self):
    self.lock = threading.RLock()
    self._phases: list[Phase] = []
    self._stop, self._thread = threading.Event(), None
    self._bars: Bars | None = None

  def open(self, shown: Phase) -> None:
    """Begin to show a phase."""
    with self.lock:
      for outer in self._phases:
        outer.give_way()
        outer.pause()
      self._phases.append(shown)
      if self._thread is None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(self._stop,), daemon=True)
        with contextlib.suppress(RuntimeError):  # no more threads
          self._thread.start()

  def close(self, shown: Phase) -> None:
    """Stop showing a phase; after the last one, restore the terminal."""
    with self.lock:
      self._phases = [other for other in self._phases if other is not shown]
      if self._bars is not None and shown.is_drawn:
        with contextlib.suppress(Exception):
          self._bars.erase()
      if self._phases:
        self._phases[-1].resume()
      thread = None if self._phases else self._end()
    _join(thread)

  def end(self) -> None:
    """End the thread, which must not write while Python itself ends."""
    with self.lock:
      thread = self._end()
    _join(thread)

  def _end(self) -> threading.Thread | None:
    self._stop.set()
    bars, self._bars, thread, self._thread = self._bars, None, self._thread, None
    if bars is not None:
      with contextlib.suppress(Exception):
        bars.close()
    return thread

  def _run(self, stop: threading.Event) -> None:
    while not stop.wait(REDRAW_SEC):
      with self.lock, contextlib.suppress(Exception):
        if not stop.is_set():
          self.show(time.monotonic())

  def show(self, now: float) -> None:
    """Draw the bars, or print the lines that are due."""
    lasting = [p for p in self._phases if now - p.begun >= BAR_AFTER_SEC]
    if self._bars is None and lasting and can_show(sys.stderr):
      self._bars = Bars(self.lock)
    if self._bars is not None:
      self._bars.draw(lasting, now)
      if is_terminal(sys.stdout):
        return
    for shown in reversed(lasting):  # the innermost is the most specific
      if now >= shown.line_due:
        shown.say(shown.line(now))
        for outer in self._phases[: self._phases.index(shown)]:
          outer.line_due = max(outer.line_due, shown.line_due)


def _join(thread: threading.Thread | None) -> None:
  with contextlib.suppress(RuntimeError):  # it never started, or it is this one
    if thread is not None:
      thread.join(1.0)


_display = Display()
atexit.register(_display.end)
