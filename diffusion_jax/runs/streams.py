"""Output of a program: to a reader that may leave early, from one of several processes."""

import functools
import io
import logging
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Unbreakable(io.TextIOBase):
  """A stream whose failures never end a program.

  The reader may be gone (`| head`, a closed terminal), the disk may be full, the stream may be
  closed from the start (`>&-`), or its encoding may lack a character.

  Args:
    stream: the stream to write to; None: none is open.
    rewrite: changes each text before it is written; None: texts are written as they are.
  """

  def __init__(self, stream: Any, rewrite: Callable[[str], str] | None = None):
    self._stream: Any = open(os.devnull, "w") if stream is None else stream  # noqa: SIM115
    self._rewrite = rewrite or str

  def write(self, text: str) -> int:
    self._try(lambda: self._write(self._rewrite(text)))
    return len(text)

  def _write(self, text: str) -> None:
    try:
      self._stream.write(text)
    except UnicodeEncodeError as error:
      self._stream.write(text.encode(error.encoding, "replace").decode(error.encoding))

  def flush(self) -> None:
    self._try(self._stream.flush)

  @property
  def encoding(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
    return self._stream.encoding

  def isatty(self) -> bool:
    try:
      return self._stream.isatty()
    except ValueError:  # the stream is closed
      return False

  def fileno(self) -> int:
    return self._stream.fileno()

  def _try(self, function: Callable[[], Any]) -> None:
    try:
      function()
    except BrokenPipeError:
      os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
    except (OSError, ValueError):
      pass  # a full disk may have space later; a closed stream stays closed


class Labelled(Unbreakable):
  """A stream that begins each line with the name of its process."""

  def __init__(self, stream: Any, label: str):
    super().__init__(stream)
    self._label, self._at_start = label, True

  def isatty(self) -> bool:
    return False  # lines of other processes would break a bar

  def write(self, text: str) -> int:
    for line in text.splitlines(keepends=True):
      super().write(f"{self._label if self._at_start else ''}{line}")
      self._at_start = line.endswith("\n")
    return len(text)


def label_lines(process: int, count: int) -> None:
  """Label this process's lines on stderr, and silence stdout on all processes but the first."""
  sys.stderr = Labelled(sys.stderr, f"[{process} of {count}] ")
  if process:
    sys.stdout = io.StringIO()


def leave_out_repeats() -> None:
  """Suppress Orbax's messages on stderr about failures that it raises as well.

  If one file cannot be read or written, each read and write started with it reports that too, or
  that its event loop was closed: thousands of lines.
  """
  logging.getLogger("absl").addFilter(_is_not_of_orbax)  # an existing filter is not added again
  logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # only Orbax uses it
  # Tasks that a failed save leaves behind; Python reports them when it ends.
  warnings.filterwarnings("ignore", "coroutine '.*' was never awaited", RuntimeWarning)
  # Overflow and NaN are reported by the error that follows, not by lines of source.
  warnings.filterwarnings("ignore", category=RuntimeWarning, module=r"diffusion_jax\.")
  if getattr(sys.unraisablehook, "func", None) is not _report:
    sys.unraisablehook = functools.partial(_report, sys.unraisablehook)


def _is_not_of_orbax(record: logging.LogRecord) -> bool:
  return "orbax" not in Path(record.pathname).parts


def _report(whole: Callable[[Any], Any], raised: Any) -> None:
  """Report errors that cannot be raised, except late answers to an event loop that has ended."""
  if str(raised.exc_value) != "Event loop is closed":
    whole(raised)
