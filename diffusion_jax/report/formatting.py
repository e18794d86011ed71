"""Format numbers and stamps as text: only digits that the error supports, never "nan"."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

DASH = "—"
"""Text for a value that is missing or not finite."""

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_COUNTS = ("num", "images_seen", "parameters", "step")


class Number(NamedTuple):
  """A number as text.

  Attributes:
    text: number rounded for a reader.
    exact: every digit, for programs and tooltips; empty if there is no value.
  """

  text: str
  exact: str = ""


class Fact(NamedTuple):
  """One line of a stamp.

  Its name, its value as text, and whether the value is code such as a hash or a path.
  """

  name: str
  text: str
  is_code: bool


def finite(value: Any) -> float | None:
  """Return the value as a float, or None if it is not a finite number."""
  if value is None or isinstance(value, (bool, str)):
    return None
  try:
    result = float(value)
  except (TypeError, ValueError):
    return None
  return result if math.isfinite(result) else None


def number(value: Any, decimals: int | None = None) -> Number:
  """Format a number with the given decimals, or with four significant digits."""
  x = finite(value)
  if x is None:
    return Number(DASH)
  return Number(_four_digits(x) if decimals is None else _fixed(x, decimals), repr(_plain(value)))


def _plain(value: Any) -> int | float:
  return value if isinstance(value, int) else float(value)


def _fixed(x: float, decimals: int) -> str:
  text = f"{x:,.{decimals}f}"
  return text.replace("-", "−")


def _four_digits(x: float) -> str:
  if x == 0:
    return "0"
  if not 1e-4 <= abs(x) < 1e9:
    return power_of_ten(x, 3)
  whole = x == round(x) and abs(x) < 1e9
  return _fixed(x, 0 if whole else max(0, 3 - math.floor(math.log10(abs(x)))))


def power_of_ten(x: float, digits: int) -> str:
  """Format a number as 1.2×10⁻⁵."""
  mantissa, exponent = f"{x:.{digits}e}".split("e")
  power = "10" + str(int(exponent)).translate(_SUPERSCRIPTS)
  short = mantissa.rstrip("0").rstrip(".").replace("-", "−")
  return power if short == "1" else f"{short}×{power}"


def error_decimals(error: Any) -> int | None:
  """Return the decimals that show two significant digits of an error; None without an error."""
  x = finite(error)
  if x is None or x <= 0:
    return None
  return min(max(0, 1 - math.floor(math.log10(x))), 8)


def with_error(value: Any, error: Any) -> tuple[Number, Number]:
  """Format a value and its error, both with the decimals that the error supports.

  Without an error, or with an error of zero, the value has four significant digits.
  """
  decimals = error_decimals(error)
  if finite(error) == 0:
    return number(value), number(0)
  return number(value, decimals), number(error, decimals)


def count(value: Any) -> Number:
  """Format a count with thousands separators."""
  x = finite(value)
  return Number(DASH) if x is None else Number(f"{x:,.0f}", repr(_plain(value)))


def tick(x: int | float) -> str:
  """Format a number for an axis, in short form."""
  if x == 0:
    return "0"
  if abs(x) >= 1e9 or abs(x) < 1e-3:
    return power_of_ten(x, 1)
  for unit, name in ((1e6, "M"), (1e4, "k")):
    if abs(x) >= unit:
      return f"{x / (1e6 if name == 'M' else 1e3):g}{name}".replace("-", "−")
  return f"{x:,.6g}".replace("-", "−")


def moment(value: Any) -> str:
  """Format a time, in seconds since 1970 or already as text."""
  x = finite(value)
  try:
    when = datetime.fromisoformat(str(value)) if x is None else datetime.fromtimestamp(x, UTC)
  except ValueError:
    return text(value)
  return f"{when:%Y-%m-%d %H:%M:%S} {when.tzname() or ''}".strip()


def text(value: Any, key: str = "") -> str:
  """Format a leaf of metrics.json as text, with every digit of a number."""
  if isinstance(value, bool):
    return "yes" if value else "no"
  if isinstance(value, (list, tuple)):
    return ("×" if key == "resolution" else ", ").join(text(v, key) for v in value) or DASH
  if isinstance(value, float):
    return repr(value).removesuffix(".0") if math.isfinite(value) else DASH
  if isinstance(value, int) and key.startswith(_COUNTS):
    return f"{value:,}"
  return DASH if value is None or value == "" else str(value)


def label(name: str) -> str:
  """Return a key as words: `num_samples` is "num samples"."""
  return name.replace("_", " ").replace("sha256", "SHA-256")


def facts(stamp: Mapping[str, Any], prefix: str = "") -> list[Fact]:
  """List every leaf of a stamp in its order; dots join the parts of nested names."""
  return list(_leaves(stamp, prefix))


def _leaves(stamp: Mapping[str, Any], prefix: str) -> Iterator[Fact]:
  for key, value in stamp.items():
    name = f"{prefix}{label(str(key))}"
    if isinstance(value, Mapping) and value:
      yield from _leaves(value, f"{name}.")
    elif _has_mappings(value):
      for i, item in enumerate(value):
        yield from _leaves({str(i): item}, f"{name}.")
    else:
      shown = DASH if isinstance(value, Mapping) else text(value, str(key))
      yield Fact(name, shown, is_code(str(key), shown))


def _has_mappings(value: Any) -> bool:
  return isinstance(value, (list, tuple)) and any(isinstance(v, Mapping) for v in value)


def is_code(key: str, shown: str) -> bool:
  """Return whether to print a value in a fixed-width font: a hash, a revision, a path."""
  hashed = any(part in key for part in ("sha256", "fingerprint", "revision"))
  return shown != DASH and (hashed or key in ("folder", "source", "workdir"))


def shortened(words: str) -> str:
  """Shorten every long hash in a text to its first 12 digits."""
  return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{20,}\b", r"\1…", words)


def clipped(words: str, length: int) -> str:
  """Cut a text to `length` characters."""
  return words if len(words) <= length else words[: length - 1] + "…"


def listed(values: Sequence[Any]) -> str:
  """Format values as text, separated by commas."""
  return ", ".join(text(v) for v in values)
