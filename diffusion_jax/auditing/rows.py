"""One line of an audit: what was asked, what should come out, what did, and the verdict."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

SIGMAS = 4.0
"""Standard errors that a right figure may be off: one in 16,000 is off by more."""


class Row(NamedTuple):
  """One comparison.

  Attributes:
    entry: what is audited, "vlb on linear_vp".
    quantity: what of it.
    expected: the closed form.
    measured: by the entry.
    error: standard error of the measurement; None: it has none, and `tolerance` decides.
    tolerance: allowed difference besides SIGMAS errors.
    relation: `equal`, or `at_least` where the entry is an upper bound of what is expected.
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
    """Whether the measurement is what it should be; not-a-number never is."""
    allowed = SIGMAS * (self.error or 0.0) + self.tolerance
    difference = self.measured - self.expected
    if self.relation == "at_least":
      return bool(difference >= -allowed)
    return bool(abs(difference) <= allowed)

  @property
  def distance(self) -> str:
    """The difference in the unit that decides."""
    difference = self.measured - self.expected
    if self.error:
      return f"{difference / self.error:+.1f} s.e."
    return f"{difference:+.1e} of {self.tolerance:.1e}"


def failure(entry: str, reason: str) -> Row:
  """A row for what cannot be audited, which fails."""
  return Row(entry, reason, math.nan, math.nan)


def as_table(rows: Sequence[Row]) -> str:
  """The rows for a person."""
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
