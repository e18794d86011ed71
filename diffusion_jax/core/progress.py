"""Progress of work that may last: bars on a terminal, lines elsewhere, and the time taken.

  with progress.phase("reading pictures", total=len(names), unit="images") as phase:
    for name in names:
      phase.advance()

A thread shows all open phases, so that one without a total, such as a compilation, is alive too.
Nothing in this file raises an error: a display decides over no run.
"""

import atexit
import contextlib
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

from diffusion_jax.core.wording import duration

MIN_BAR_COLUMNS = 20
"""Minimum width of a bar's line, columns; a narrower terminal gets lines, as a file does."""
BAR_AFTER_SEC = 1.0
LINE_AFTER_SEC = 5.0
"""Seconds after which a phase has its first line where no bar is, and a line at its end."""
LINE_EVERY_SEC = 30.0
REDRAW_SEC = 0.25
WINDOW_SEC = 60.0
"""Seconds of the past that count for the remaining time."""
MAX_BARS = 3
LEAST_BAR = 6
GAP = 2


class Phase:
  """A piece of work with a name; its methods may be called from any thread.

  Args:
    name: the work, as in "reading pictures".
    total: number of items; None: unknown, and only the time is shown.
    unit: noun for the items, in the plural.
    done: number of items done before this start.
  """

  def __init__(self, name: str, total: int | None = None, unit: str = "", done: int = 0):
    self.name, self.total, self.unit = name, total, unit
    self.start = self.done = done
    self.begun = time.monotonic()
    self.notes: tuple[str, ...] = ()
    self.line_due = self.begun + LINE_AFTER_SEC
    self.is_drawn = False
    self._lock = threading.Lock()
    self._past = deque([(self.begun, done)], maxlen=100)
    self._is_past_first = False

  def advance(self, num: int = 1) -> None:
    """Count `num` more items as done."""
    with self._lock:
      self._set(self.done + num)

  def set(self, done: int) -> None:
    """Count `done` items as done."""
    with self._lock:
      self._set(done)

  def _set(self, done: int) -> None:
    now, self.done = time.monotonic(), done
    if not self._is_past_first:  # which may have waited for a compilation
      self._is_past_first = True
      self._past.append((now, done))
      return
    if len(self._past) > 1 and self._past[0][0] == self.begun:
      self._past.popleft()
    if now - self._past[-1][0] >= 0.1 or len(self._past) == 1:
      self._past.append((now, done))
    while len(self._past) > 2 and now - self._past[0][0] > WINDOW_SEC:
      self._past.popleft()

  def note(self, *parts: str) -> None:
    """Show texts after the numbers, as far as the line has room; the first matters most."""
    self.notes = parts

  def say(self, text: str) -> None:
    """Print a line that tells how far this phase is, in place of its own next line."""
    now = time.monotonic()
    self.line_due = now + max(LINE_EVERY_SEC, (now - self.begun) / 10)
    print(text, flush=True)

  def give_way(self) -> None:
    """Put off the first line, because a phase inside this one will have its own."""
    if self.line_due == self.begun + LINE_AFTER_SEC:
      self.line_due += LINE_AFTER_SEC

  def seconds_left(self, now: float) -> float | None:
    """Return the remaining time in seconds; None if it is unknown."""
    with self._lock:
      (since, before), (at, done) = self._past[0], self._past[-1]
    if self.total is None or done <= before:
      return None
    is_late = now - at > at - since  # what came at once says little about the rate
    sec_per_item = ((now if is_late else at) - since) / (done - before)
    left = (self.total - self.done) * sec_per_item
    return left if is_late else max(left - (now - at), 0.0)

  def count(self) -> str:
    """Return "1,200 of 5,000 images", "1,200 images" without a total, or ""."""
    if self.total is None and not self.done:
      return ""
    total = "" if self.total is None else f" of {self.total:,}"
    return f"{self.done:,}{total} {self.unit}".rstrip()

  def line(self, now: float) -> str:
    """Return the line for a file, such as "reading: 1,200 of 5,000 images, 12s, ETA 38s"."""
    parts = [self.count(), duration(now - self.begun), _eta(self.seconds_left(now)), *self.notes]
    return f"{self.name}: {', '.join(p for p in parts if p)}"

  def last_line(self, now: float) -> str:
    """Return the line at the end, such as "reading pictures: 5,000 images in 52s"."""
    num, total = self.done - self.start, "" if self.total is None else f" of {self.total:,}"
    if self.total is None and not num:
      count = "done"
    else:
      count = f"{num:,}{'' if num == self.total else total} {self.unit}".rstrip()
    return f"{self.name}: {count} in {duration(now - self.begun)}"


@contextlib.contextmanager
def phase(
  name: str, total: int | None = None, unit: str = "", done: int = 0, last_line: bool = True
) -> Iterator[Phase]:
  """Show the work in the block under a name; phases may be nested.

  Args:
    name, total, unit, done: see `Phase`.
    last_line: print a line at the end of a phase of at least LINE_AFTER_SEC.
  """
  shown = Phase(name, total, unit, done)
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


def is_seen() -> bool:
  """Return whether whoever reads stdout sees the bars: both are terminals."""
  return can_show(sys.stderr) and _is_terminal(sys.stdout)


def can_show(terminal: Any) -> bool:
  """Return whether an open file is a terminal that can show a bar."""
  try:
    is_able = terminal.isatty() and os.environ.get("TERM") != "dumb"
  except (AttributeError, OSError, ValueError):
    return False
  return is_able and _columns(terminal) >= MIN_BAR_COLUMNS


def _columns(terminal: Any) -> int:
  """Return the width of a terminal; 0 if unknown, as in some containers and on serial lines."""
  try:
    return os.get_terminal_size(terminal.fileno()).columns
  except (AttributeError, OSError, ValueError):
    return 0


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
      self._phases.append(shown)
      if self._thread is None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(self._stop,), daemon=True)
        with contextlib.suppress(RuntimeError):  # no more threads
          self._thread.start()

  def close(self, shown: Phase) -> None:
    """End showing a phase; with the last one the terminal is as before."""
    with self.lock:
      self._phases = [other for other in self._phases if other is not shown]
      if self._bars is not None and shown.is_drawn:
        with contextlib.suppress(Exception):
          self._bars.erase()
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
      if _is_terminal(sys.stdout):
        return
    for shown in reversed(lasting):  # the innermost knows most
      if now >= shown.line_due:
        shown.say(shown.line(now))
        for outer in self._phases[: self._phases.index(shown)]:
          outer.line_due = max(outer.line_due, shown.line_due)


def _join(thread: threading.Thread | None) -> None:
  with contextlib.suppress(RuntimeError):  # it never started, or it is this one
    if thread is not None:
      thread.join(1.0)


class Bars:
  """One line per phase at the bottom of a terminal, below everything that is printed.

  The cursor rests at the start of the first bar, and whatever is below it is erased before each
  drawing and each print. So a line that a narrower terminal has broken in two leaves no trace.
  """

  def __init__(self, lock: Any):
    from rich.console import Console

    self._lock, self._terminal, self._num = lock, _inner(sys.stderr), 0
    self._console = Console(file=self._terminal, force_terminal=True, width=80, highlight=False)
    self._is_mid_line = False
    self._before = (_inner(sys.stdout), self._terminal)
    self._above = (Above(self._before[0], self), Above(self._terminal, self))
    sys.stdout, sys.stderr = self._above

  def draw(self, phases: list[Phase], now: float) -> None:
    """Draw the innermost phases over the old drawing."""
    if self._is_mid_line:
      return
    columns = _columns(self._terminal) - 1  # a full line would move on to the next one
    lines = [self._render(p, columns, now) for p in phases[-MAX_BARS:]] if columns > 0 else []
    if not lines:
      return self.erase()
    up = f"\x1b[{len(lines) - 1}A" if len(lines) > 1 else ""
    self._write("\r" + "\n".join(f"{line}\x1b[K" for line in lines) + f"\x1b[J\r{up}")
    self._num = len(lines)

  def _render(self, shown: Phase, columns: int, now: float) -> str:
    from rich.progress_bar import ProgressBar
    from rich.text import Text

    name, bar, texts = lay_out(shown, columns, now)
    shown.is_drawn = True
    self._console.width = columns + 1
    with self._console.capture() as drawn:
      self._console.print(Text(name, "bold"), end="")
      if bar:
        self._console.print(" " * GAP, end="")
        share: Any = {"total": 100.0, "pulse": True}
        if shown.total is not None:
          share = {"total": max(shown.total, 1), "completed": min(shown.done, shown.total)}
        self._console.print(ProgressBar(width=bar, **share), end="")
      for text, style in texts:
        self._console.print(Text(" " * GAP + text, style), end="")
    return drawn.get()

  def erase(self) -> None:
    """Erase the bars."""
    if self._num:
      self._num = 0
      self._write("\r\x1b[J")

  def _write(self, text: str) -> None:
    self._terminal.write(text)
    self._terminal.flush()

  def print(self, stream: Any, text: str) -> int:
    """Write a program's text above the bars; they are drawn again after the end of its line."""
    with self._lock:
      with contextlib.suppress(Exception):
        self.erase()
      if text:
        self._is_mid_line = not text.endswith(("\n", "\r"))
      return stream.write(text)

  def close(self) -> None:
    """Erase the bars and give the streams back."""
    self.erase()
    if sys.stdout is self._above[0]:
      sys.stdout = self._before[0]
    if sys.stderr is self._above[1]:
      sys.stderr = self._before[1]


class Above:
  """A stream whose text appears above the bars."""

  def __init__(self, stream: Any, bars: Bars):
    self.inner, self._bars = stream, bars

  def write(self, text: str) -> int:
    return self._bars.print(self.inner, text)

  def writelines(self, lines: Any) -> None:
    for line in lines:
      self.write(line)

  def __getattr__(self, name: str) -> Any:
    return getattr(self.inner, name)


def _inner(stream: Any) -> Any:
  """Return the stream below one of earlier bars, which code around may have kept."""
  return stream.inner if isinstance(stream, Above) else stream


def _shortened(name: str, limit: int) -> str:
  from rich.text import Text

  text = Text(name)
  text.truncate(limit, overflow="ellipsis")
  return text.plain


def lay_out(shown: Phase, columns: int, now: float) -> tuple[str, int, list[tuple[str, str]]]:
  """Choose the parts that fit into a line: name, width of the bar, texts with styles.

  The count, the remaining time and the first note go before the bar, which takes the rest.
  """
  from rich.cells import cell_len

  whole, count = shown.count().replace(" of ", "/"), f"{shown.done:,}"
  if shown.total is not None:
    count += f"/{shown.total:,}"
  left, elapsed = _eta(shown.seconds_left(now)), duration(now - shown.begun)
  first, more = shown.notes[:1], shown.notes[1:]
  # (place in the line, text, style), the most important first
  wanted = [
    (0, count if whole else "", "green"), (2, left or elapsed, "cyan"),
    *((3, note, "") for note in first), *((4, note, "dim") for note in more[:1]),
    (1, elapsed if left else "", "dim"), *((5, note, "dim") for note in more[1:]),
  ]  # fmt: skip
  name = _shortened(shown.name, max(columns // 2, min(columns, 10)))
  room = columns - cell_len(name) - GAP - LEAST_BAR
  taken = []
  for place, text, style in wanted:
    if text and room >= cell_len(text) + GAP:
      room -= cell_len(text) + GAP
      taken.append((place, text, style))
  if (0, count, "green") in taken and room >= cell_len(whole) - cell_len(count):
    room -= cell_len(whole) - cell_len(count)
    taken[0] = (0, whole, "green")
  if room < 0:
    return name, 0, []
  texts = [(text, style) for _, text, style in sorted(taken, key=lambda one: one[0])]
  return name, LEAST_BAR + room, texts


def _eta(seconds: float | None) -> str:
  return "" if seconds is None else f"ETA {duration(seconds)}"


def _is_terminal(stream: Any) -> bool:
  try:
    return stream.isatty()
  except (AttributeError, OSError, ValueError):
    return False


_display = Display()
atexit.register(_display.end)
