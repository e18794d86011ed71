"""Words and bars that people read: progress, spelling help."""

import difflib
import os
import sys
import time
from collections.abc import Iterable
from typing import Any

MIN_BAR_COLUMNS = 60
"""Narrower ones would show no loss: there are lines then, as where there is no terminal."""


class Bar:
  """Progress towards `total`: a bar on a terminal, elsewhere a line every ten seconds.

  Args:
    words: what is counted.
    total: of them.
    done: of them at the start.
    active: whether this process shows anything.
  """

  def __init__(self, words: str, total: int, done: int = 0, active: bool = True):
    self._words, self._total, self._active = words, total, active
    self._told, self._bar = time.perf_counter(), None
    if active and can_show(sys.stderr):
      from tqdm import tqdm

      self._bar = tqdm(total=total, initial=done, unit=words)

  def advance(self, done: int) -> None:
    """Show that `done` are done."""
    if self._bar is not None:
      self._bar.update(done - self._bar.n)
    elif self._active and time.perf_counter() - self._told > 10:
      self._told = time.perf_counter()
      print(f"{done:,} of {self._total:,} {self._words}", flush=True)

  def close(self) -> None:
    """End the bar's line."""
    if self._bar is not None:
      self._bar.close()


def can_show(terminal: Any) -> bool:
  """Return whether an open file is a terminal on which a bar can be read."""
  return terminal.isatty() and _columns(terminal) >= MIN_BAR_COLUMNS


def _columns(terminal: Any) -> int:
  """Width of a terminal; 0 where it is not known, as in some containers and over serial lines."""
  try:
    return os.get_terminal_size(terminal.fileno()).columns
  except (OSError, ValueError):
    return 0


def nearest(word: str, allowed: Iterable[str]) -> str:
  """Return " Did you mean 'x'?" for the closest allowed word, then the allowed words."""
  allowed = sorted(allowed)
  close = difflib.get_close_matches(word, allowed, n=1, cutoff=0.5)
  hint = f" Did you mean '{close[0]}'?" if close else ""
  return f"{hint} Allowed: {', '.join(allowed)}."
