"""Settings that a page sends, checked before anything is drawn with them."""

from collections.abc import Mapping, Sequence
from typing import Any

from diffusion_jax.core.wording import one_line
from diffusion_jax.types import UserError

MAX_SEED = 2**31 - 1
MAX_STEPS = 1000
MAX_WEIGHT = 100.0


def whole_number(settings: Mapping[str, Any], name: str, low: int, high: int) -> int:
  """Return a whole number among the settings.

  Raises:
    UserError: it is missing, no whole number, or out of range.
  """
  value = settings.get(name)
  if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
    raise UserError(f"{name}={one_line(value)}: must be a whole number from {low} to {high}")
  return value


def real_number(settings: Mapping[str, Any], name: str, low: float, high: float) -> float:
  """Return a number among the settings.

  Raises:
    UserError: it is missing, no number, or out of range.
  """
  value = settings.get(name)
  if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
    raise UserError(f"{name}={one_line(value)}: must be a number from {low:g} to {high:g}")
  return float(value)


def one_of(settings: Mapping[str, Any], name: str, allowed: Sequence[Any]) -> Any:
  """Return a setting that is one of a few values.

  Raises:
    UserError: it is another value.
  """
  value = settings.get(name)
  if not any(value == a and type(value) is type(a) for a in allowed):
    raise UserError(f"{name}={one_line(value)}: must be one of {', '.join(map(str, allowed))}")
  return value


def numbers(settings: Mapping[str, Any], name: str, length: int) -> list[float]:
  """Return a list of finite numbers among the settings.

  Raises:
    UserError: it is missing, of another length, or holds something else.
  """
  values = settings.get(name)
  if not isinstance(values, list) or len(values) != length:
    raise UserError(f"{name}: must be a list of {length} numbers")
  return [real_number({name: value}, name, -1e6, 1e6) for value in values]
