"""Where a program's lines go: to a reader that may leave early, from one of several processes."""

import io
import os
import sys
from collections.abc import Callable
from typing import Any


class Unbreakable(io.TextIOBase):
  """Writes on, into nothing, once the reader has gone: `| head`, a terminal that was closed."""

  def __init__(self, stream: Any):
    self._stream = stream

  def write(self, text: str) -> int:
    self._try(lambda: self._stream.write(text))
    return len(text)

  def flush(self) -> None:
    self._try(self._stream.flush)

  @property
  def encoding(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
    return self._stream.encoding

  def isatty(self) -> bool:
    return self._stream.isatty()

  def fileno(self) -> int:
    return self._stream.fileno()

  def _try(self, function: Callable[[], Any]) -> None:
    try:
      function()
    except BrokenPipeError:
      os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())


class Labelled(Unbreakable):
  """Begins each line with the process that writes it."""

  def __init__(self, stream: Any, label: str):
    super().__init__(stream)
    self._label, self._at_start = label, True

  def write(self, text: str) -> int:
    for line in text.splitlines(keepends=True):
      super().write(f"{self._label if self._at_start else ''}{line}")
      self._at_start = line.endswith("\n")
    return len(text)


def label(number: int, count: int) -> None:
  """Labels this process's lines on stderr; of several processes only the first writes to stdout."""
  sys.stderr = Labelled(sys.stderr, f"[{number} of {count}] ")
  if number:
    sys.stdout = io.StringIO()
