"""Code of a user's own parts: its exceptions become one line with the part and the place."""

import contextlib
import inspect
import sys
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from diffusion_jax.types import UserError

PACKAGE = __name__.partition(".")[0]

LONGEST = 300
"""Number of characters of an exception's text that are shown; JAX's may fill a screen."""


def is_own(part: Any) -> bool:
  """Return True for an instance or class that is defined outside this package."""
  cls = part if isinstance(part, type) else type(part)
  return cls.__module__.partition(".")[0] not in (PACKAGE, "builtins")


def place_of(part: Any) -> str:
  """Return the name of a part's class as a config writes it: "module:Class"."""
  cls = part if isinstance(part, type) else type(part)
  return f"{cls.__module__}:{cls.__qualname__}"


@contextlib.contextmanager
def own_code(
  parts: Mapping[str, Any], refusals: tuple[type[Exception], ...] = ()
) -> Iterator[None]:
  """Turn an exception of a user's own part into one line; the exception stays its cause.

  Errors of this package's own parts pass through, as do errors that are one line already.

  Args:
    parts: config section -> instance or class, for each part whose code may run here.
    refusals: exceptions that the caller expects and explains; they pass through.

  Raises:
    UserError: a part from outside the package raised; section, class, exception and place.
  """
  own = {section: part for section, part in parts.items() if is_own(part)}
  try:
    yield
  except (UserError, MemoryError, *refusals):
    raise
  except Exception as error:
    if not own:
      raise
    raise UserError(explain_own_error(own, error)) from error


def explain_own_error(own: Mapping[str, Any], error: Exception) -> str:
  """Describe in one line an exception raised in one of these parts, or by a call of them.

  Args:
    own: config section -> part from outside the package, at least one.
    error: the exception.
  """
  frames = traceback.extract_tb(error.__traceback__)
  inner = frames[-1].filename if frames else ""
  if isinstance(error, ValueError) and inner.startswith(str(Path(__file__).parent.parent)):
    return f"{' or '.join(f'config.{s} ({place_of(p)})' for s, p in own.items())}: {error}"
  files = {file: section for section in own for file in _files_of(own[section])}
  inside = next((f for f in reversed(frames) if f.filename in files), None)
  chosen = list(own) if inside is None else [files[inside.filename]]
  named = " or ".join(f"config.{section} ({place_of(own[section])})" for section in chosen)
  return f"{named}: {describe_error(error)}{_line_of(inside or _innermost_of_user(frames))}"


def own_refusal(parts: Mapping[str, Any], error: Exception) -> str | None:
  """Describe in one line an exception that a user's own part raised; None for any other.

  Args:
    parts: config section -> part.
    error: the exception, e.g. a ValueError that the caller expects from every part.
  """
  frames = traceback.extract_tb(error.__traceback__)
  raised = frames[-1].filename if frames else ""
  own = {s: p for s, p in parts.items() if is_own(p) and raised in _files_of(p)}
  return explain_own_error(own, error) if own else None


def describe_error(error: BaseException) -> str:
  """Return the type and text of an exception on one line: "KeyError: 'width'"."""
  text = " ".join(str(error).split())
  text = text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
  return f"{type(error).__name__}: {text}" if text else type(error).__name__


def where_raised(error: BaseException) -> str:
  """Return the innermost place of an exception outside this package: " (file.py, line 3)"."""
  return _line_of(_innermost_of_user(traceback.extract_tb(error.__traceback__)))


def _files_of(part: Any) -> list[str]:
  """Return the files of a part's classes outside this package."""
  cls = part if isinstance(part, type) else type(part)
  modules = (sys.modules.get(base.__module__) for base in inspect.getmro(cls) if is_own(base))
  return [str(file) for module in modules if (file := getattr(module, "__file__", None))]


def _innermost_of_user(frames: traceback.StackSummary) -> traceback.FrameSummary | None:
  """Return the innermost frame outside this package and installed libraries, if there is one."""
  package = str(Path(__file__).parent.parent)
  known = (package, *(str(Path(p)) for p in sys.path if p.endswith(("-packages", "lib"))), "<")
  strange = [f for f in frames if not f.filename.startswith((*known, sys.base_prefix))]
  return strange[-1] if strange else None


def _line_of(frame: traceback.FrameSummary | None) -> str:
  return f" ({Path(frame.filename).name}, line {frame.lineno})" if frame else ""
