"""One row of an audit: what is checked, the expected and measured values, and the verdict."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from diffusion_jax.core.registry import broken_contract, every_entry
from diffusion_jax.types import UserError

SIGMAS = 4.0
"""Allowed standard errors of difference; a correct value exceeds it once in 16,000 checks."""


class Row(NamedTuple):
  """One comparison.

  Attributes:
    entry: the audited part, e.g. "vlb on linear_vp".
    quantity: the measured quantity.
    expected: value of the closed form.
    measured: value from the audited part.
    error: standard error of the measurement; None if it has none and `tolerance` decides.
    tolerance: allowed difference in addition to SIGMAS standard errors.
    relation: `equal`, or `at_least` if the entry is an upper bound of the expected value.
  """

  entry: str
  quantity: str
  expected: float
  measured: float
  error: float | None = None
  tolerance: float = 0.0
  relation: Literal["equal", "at_least"] = "equal"

  @property
  def passed(self) -> bool:
    """Return True if the measurement agrees with the expectation; False for NaN."""
    allowed = SIGMAS * (self.error or 0.0) + self.tolerance
    difference = self.measured - self.expected
    if self.relation == "at_least":
      return bool(difference >= -allowed)
    return bool(abs(difference) <= allowed)

  @property
  def distance(self) -> str:
    """Return the difference in standard errors, or relative to the tolerance."""
    difference = self.measured - self.expected
    if self.error:
      return f"{difference / self.error:+.1f} s.e."
    return f"{difference:+.1e} of {self.tolerance:.1e}"


def failure(entry: str, reason: str) -> Row:
  """Return a failed row for something that cannot be audited."""
  return Row(entry, reason, math.nan, math.nan)


def audit_entries(
  registry: Mapping[str, type],
  contract: type,
  noun: str,
  rows_of: Callable[[str, Any], Iterable[Row]],
) -> Iterator[Row]:
  """Yield the rows of every entry; a failed row for one that breaks its contract or raises.

  Args:
    registry: entries by name; those of installed packages are included.
    contract: Protocol that an entry must keep.
    noun: words for an entry, e.g. "a sampler".
    rows_of: (name, class) -> rows.
  """
  for name, config in every_entry(registry):
    if isinstance(config, UserError):
      yield failure(name, f"it cannot be imported: {config}")
      continue
    broken = broken_contract(config, contract, getattr(registry, "base", None))
    if broken:
      yield failure(name, f"it does not declare what {noun} is: {broken}")
      continue
    try:
      yield from rows_of(name, config)
    except Exception as error:
      first_line = str(error).partition("\n")[0]
      yield failure(name, f"it raised {type(error).__name__}: {first_line}")


def as_table(rows: Sequence[Row]) -> str:
  """Return the rows as a text table."""
  cells = [("entry", "quantity", "closed form", "measured", "difference", "")]
  for row in rows:
    sign = ">= " if row.relation == "at_least" else ""
    verdict = "pass" if row.passed else "FAIL"
    cells.append((row.entry, row.quantity, f"{sign}{row.expected:.6g}", f"{row.measured:.6g}",
                  row.distance, verdict))  # fmt: skip
  widths = [max(len(line[i]) for line in cells) for i in range(6)]
  return "\n".join(
    "  ".join(
      text.ljust(width) if i < 2 else text.rjust(width)
      for i, (text, width) in enumerate(zip(line, widths, strict=True))
    ).rstrip()
    for line in cells
  )
