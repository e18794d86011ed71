"""Counts of all files found: pictures by their treatment, skipped files by reason."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

TREATMENTS = ("as they are", "resized", "cropped", "resized and cropped", "enlarged")


class FileCounts(NamedTuple):
  """The files of a data set.

  Attributes:
    pictures: treatment -> number of pictures.
    skipped: reason -> number of skipped files.
  """

  pictures: Mapping[str, int]
  skipped: Mapping[str, int]

  @property
  def found(self) -> int:
    """Number of files found, the sum of all others."""
    return sum(self.pictures.values()) + sum(self.skipped.values())

  def plus(self, other: "FileCounts | None") -> "FileCounts":
    """Return the sum of two splits; the same counts stand for the same files."""
    if other is None or other == self:
      return self
    return FileCounts(*(dict(Counter(a) + Counter(b)) for a, b in zip(self, other, strict=True)))

  def text(self) -> str:
    """Return one line, "9 files: 7 pictures (5 as they are, 2 cropped) and 2 skipped (...)"."""
    num = sum(self.pictures.values())
    kinds = [f"{self.pictures[k]:,} {k}" for k in TREATMENTS if self.pictures.get(k)]
    line = f"{_counted(self.found, 'file')}: {_counted(num, 'picture')} ({', '.join(kinds)})"
    if not self.skipped:
      return line
    reasons = sorted(self.skipped.items(), key=lambda item: -item[1])
    skipped = ", ".join(f"{count:,} {reason}" for reason, count in reasons)
    return f"{line} and {sum(self.skipped.values()):,} skipped ({skipped})"


def _counted(num: int, noun: str) -> str:
  return f"{num:,} {noun}{'' if num == 1 else 's'}"


def treatment(height: int, width: int, size: int | None) -> str:
  """Return what `fit_image` does to a picture of this height and width."""
  if size is None or (height, width) == (size, size):
    return "as they are"
  if min(height, width) < size:
    return "enlarged"
  if min(height, width) == size:
    return "cropped"
  return "resized" if height == width else "resized and cropped"


def count_treatments(sizes: Iterable[tuple[int, int]], size: int | None) -> dict[str, int]:
  """Return treatment -> number of pictures of these heights and widths."""
  return dict(Counter(treatment(*one, size) for one in sizes))


def count_reasons(reasons: Iterable[str]) -> dict[str, int]:
  """Return the reasons why pictures cannot be read, without the details of each, with counts."""
  return dict(Counter(map(_in_brief, reasons)))


def _in_brief(reason: str) -> str:
  text = reason.lower()
  if any(word in text for word in ("truncated", "ends within", "end of file", "data stream")):
    return "cut off"
  if "more than 8 bits a channel" in text:
    return "of more than 8 bits a channel"
  if "empty file" in text:
    return "empty"
  return f"unreadable: {re.split(r'[(:]| for file ', reason, maxsplit=1)[0].strip()}"
