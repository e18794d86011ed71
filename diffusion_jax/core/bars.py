"""Bars at the bottom of a terminal, below everything that a program prints."""

import contextlib
import os
import sys
from typing import Any

from diffusion_jax.core.phases import Phase, eta
from diffusion_jax.core.wording import duration

MIN_BAR_COLUMNS = 20
"""Minimum width of a bar's line, columns; a narrower terminal gets lines, as a file does."""
MAX_BARS = 3
LEAST_BAR = 6
GAP = 2


def is_seen() -> bool:
  """Return True if a reader of stdout sees the bars: stdout and stderr are terminals."""
  return can_show(sys.stderr) and is_terminal(sys.stdout)


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
  """Return the stream inside an `Above`, which a caller may have kept; others unchanged."""
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
  left, elapsed = eta(shown.seconds_left(now)), duration(now - shown.begun)
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


def is_terminal(stream: Any) -> bool:
  """Return whether an open file is a terminal."""
  try:
    return stream.isatty()
  except (AttributeError, OSError, ValueError):
    return False
