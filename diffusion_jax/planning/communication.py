"""Count the traffic between devices in one step, from the text of the compiled program."""

import math
import re
from typing import NamedTuple

from diffusion_jax.planning import hlo

KINDS = (
  "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all",
  "collective-permute", "collective-broadcast",
)  # fmt: skip
LISTED = re.compile(r"replica_groups=\{\{([\d,\s]*)\}")
IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=")
MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(.*?\))? \{([^}]*)\}")
AXIS = re.compile(r"'([^']+)'=(\d+)")
USED = re.compile(r"'([^']+)'(?::\(\d+\)(\d+))?")


class Traffic(NamedTuple):
  """All collectives of one kind, per device and step.

  Attributes:
    kind: the compiler's name of the collective.
    times: number of runs; a collective of several arrays counts once.
    num_bytes: size of its operands, bytes.
    wire_bytes: bytes that the device sends.
  """

  kind: str
  times: int
  num_bytes: int
  wire_bytes: int


def traffic(module: hlo.Module, runs: dict[str, hlo.Runs]) -> list[Traffic]:
  """Sum the collectives of a program by kind; those inside loops count once per iteration.

  Args:
    module: the program, from `hlo.parse_hlo`.
    runs: number of runs of each computation, from `hlo.count_runs`.

  Returns:
    One row per kind, in descending order of the bytes sent.
  """
  sums: dict[str, list[float]] = {}
  for name, run in runs.items():
    lines = module.computations.get(name, {})
    for instruction in lines.values():
      kind = instruction.opcode.removesuffix("-start")
      if kind in KINDS:
        size = sum(hlo.num_bytes(lines[o].shape) for o in instruction.operands if o in lines)
        group = group_size(instruction.attributes, module.num_devices)
        sent = size * wire_factor(kind, group)
        row = sums.setdefault(kind, [0, 0, 0])
        sums[kind] = [a + run.times * b for a, b in zip(row, (1, size, sent), strict=True)]
  rows = [Traffic(kind, *(round(x) for x in row)) for kind, row in sums.items()]
  return sorted(rows, key=lambda row: -row.wire_bytes)


def wire_factor(kind: str, group: int) -> float:
  """Return the bytes that each of `group` devices sends per byte of its operand.

  In a ring of n devices, each device passes on a part of 1/n, n - 1 times. All-reduce does this
  twice, to sum and to distribute. All-gather's operand is already such a part. Source: Patarasuk
  and Yuan 2009, "Bandwidth optimal all-reduce algorithms for clusters of workstations".
  """
  if kind == "all-reduce":
    return 2 * (group - 1) / group
  if kind == "all-gather":
    return float(group - 1)
  if kind == "collective-permute":
    return 1.0
  return (group - 1) / group


def group_size(attributes: str, num_devices: int) -> int:
  """Return the number of devices that take part in one collective.

  Reads `{{0,1},{2,3}}`, `[groups,devices]<=[...]`, and `mesh['a'=2,'b'=4] {'b'}` (also with a part
  of an axis, `'b':(1)2`); without groups all devices take part.
  """
  if match := MESH.search(attributes):
    sizes = {name: int(size) for name, size in AXIS.findall(match[1])}
    return math.prod(int(part or sizes[name]) for name, part in USED.findall(match[2]))
  if match := IOTA.search(attributes):
    return math.prod(int(n) for n in match[1].split(",")[1:])
  if match := LISTED.search(attributes):
    return len(match[1].split(","))
  return num_devices
