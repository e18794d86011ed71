"""Texts for people: data sets, durations, and progress bars."""

import contextlib
import os
import re
import sys
import time
from collections.abc import Iterator
from typing import Any

from diffusion_jax.types import ImageSpec, UserError

MIN_BAR_COLUMNS = 60
"""Minimum width of a bar, columns; a narrower terminal gets lines, as a file does."""


class Bar:
  """Progress towards `total`: a bar on a terminal, elsewhere a line every ten seconds.

  Args:
    words: noun for the items.
    total: number of items.
    done: number of items done at the start.
    active: true if this process shows progress.
  """

  def __init__(self, words: str, total: int, done: int = 0, active: bool = True):
    self._words, self._total, self._active = words, total, active
    self._told, self._bar = time.perf_counter(), None
    if active and can_show(sys.stderr):
      from tqdm import tqdm

      self._bar = tqdm(total=total, initial=done, unit=words)

  def advance(self, done: int) -> None:
    """Show that `done` items are done."""
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
  """Return whether an open file is a terminal that can show a bar."""
  return terminal.isatty() and _columns(terminal) >= MIN_BAR_COLUMNS


def _columns(terminal: Any) -> int:
  """Return the width of a terminal; 0 if unknown, as in some containers and on serial lines."""
  try:
    return os.get_terminal_size(terminal.fileno()).columns
  except (OSError, ValueError):
    return 0


def describe_data(name: str, num: int, spec: ImageSpec) -> str:
  """Return one line: "digits train, 1,500 images of 8x8x1, 17 levels, 10 classes"."""
  size = "x".join(str(n) for n in spec.shape)
  levels = f", {spec.num_levels} levels" if spec.num_levels else ""
  classes = f"{spec.num_classes} classes" if spec.num_classes else "no labels"
  named = "".join(f", {n} {f.dtype}{list(f.shape)}" for n, f in spec.fields.items())
  return f"{name}, {num:,} images of {size}{levels}, {classes}{named}"


def duration(seconds: float) -> str:
  """Format seconds as 1h05m, 3m20s or 12s."""
  seconds = max(round(seconds), 0)
  hours, minutes = seconds // 3600, seconds // 60 % 60
  if hours:
    return f"{hours}h{minutes:02d}m"
  return f"{minutes}m{seconds % 60:02d}s" if minutes else f"{seconds}s"


def with_flags(text: str) -> str:
  """Rewrite a library's message for the command line: `a.b=1` becomes --config.a.b=1."""
  return re.sub(r"`([a-z_0-9]+\.[a-z_0-9]+=[^`]*)`", r"--config.\1", text)


@contextlib.contextmanager
def in_python() -> Iterator[None]:
  """Rewrite errors for Python: --config.a.b=1 becomes a.b=1, and --workdir=x workdir=x."""
  try:
    yield
  except UserError as error:
    text = re.sub(r"(?<![\w-])--(?:config\.)?(?=[a-z_]+)", "", str(error))
    if text == str(error):
      raise
    raise type(error)(text) from error
