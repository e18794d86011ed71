"""Links from the report to the files beside it, and what was not measured in one sentence."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from diffusion_jax.report.views import Metrics

MAX_NAMED = 4
"""Number of measurements that the sentence names."""

MAX_NAME = 40
"""Length up to which the words before a colon are the name of a measurement, characters."""


INCEPTION = "fid and other figures on Inception features"
"""Name of what is missing without the weights of Inception."""


class Link(NamedTuple):
  """A file or folder beside the report.

  Attributes:
    text: words of the link.
    href: address relative to the report, percent-encoded.
    command: command that shows it; empty: none.
  """

  text: str
  href: str
  command: str = ""


class Reason(NamedTuple):
  """A measurement that is missing, and why; the name is empty if the reason tells all."""

  name: str
  why: str


def missing_reasons(metrics: Metrics) -> list[Reason]:
  """Return what was not measured: lines such as "fid: no Inception weights", or a sentence."""
  return [_reason(str(line)) for line in metrics.get("missing") or []]


def _reason(line: str) -> Reason:
  if "Inception weights" in line and not line.startswith("fid"):
    return Reason(INCEPTION, line)
  if lacking := re.match(r"([\w.-]+) (needs .*|cannot be computed.*)", line, re.DOTALL):
    return Reason(lacking[1], lacking[2])
  name, colon, why = line.partition(": ")
  is_name = colon and len(name) <= MAX_NAME and not name.startswith("no ")
  return Reason(name, why) if is_name else Reason("", line)


def missing_sentence(reasons: Sequence[Reason]) -> str:
  """Return the sentence without its end: "Not measured: fid, kid and 3 more"."""
  names = list(dict.fromkeys(reason.name for reason in reasons if reason.name))
  others = len(reasons) - sum(bool(reason.name) for reason in reasons)
  left_out = len(names[MAX_NAMED:]) + others
  if not names:
    return f"{len(reasons)} measurement{'' if len(reasons) == 1 else 's'} left out"
  more = f" and {left_out} more" if left_out else ""
  return f"Not measured: {', '.join(names[:MAX_NAMED])}{more}"


def shown_links(links: Sequence[Link]) -> list[dict[str, Any]]:
  """Return the links as the template needs them; an address with a scheme has none."""
  return [link._asdict() for link in links if ":" not in link.href.partition("/")[0]]
