"""Count the traffic between devices in one step, from the text of the compiled program.

Devices of several slices have two networks: the links within a slice (ICI), and the data center's
between them (DCN). The TPU compiler writes apart what crosses, as transfers of Google's Megascale
runtime. Elsewhere a collective over several slices counts as if it were hierarchical, too: first
within each slice, then each device's part between the slices.
"""

import math
import re
from typing import NamedTuple

import numpy as np

from diffusion_jax.planning import hlo

KINDS = (
  "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all",
  "collective-permute", "collective-broadcast",
)  # fmt: skip
LISTED = re.compile(r"replica_groups=\{(\{[\d,\s{}]*\})\}")
IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
MESH = re.compile(
  r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([^}]*)\}"
)
PAIRS = re.compile(r"source_target_pairs=\{(\{[\d,\s{}]*\})\}")
AXIS = re.compile(r"'([^']+)'=(\d+)")
USED = re.compile(r"'([^']+)'(?::\((\d+)\)(\d+))?")
MEGASCALE = re.compile(r'_xla_megascale_transfer_type="(\w+)"')


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
  return traffic_of_slices(module, runs, 1)[0]


def traffic_of_slices(
  module: hlo.Module, runs: dict[str, hlo.Runs], num_slices: int
) -> tuple[list[Traffic], list[Traffic]]:
  """Sum the collectives within slices, and those between slices, by kind as in `traffic`.

  Args:
    module, runs: the program and its numbers of runs.
    num_slices: number of slices, each with as many successive devices.
  """
  within: dict[str, list[float]] = {}
  between: dict[str, list[float]] = {}
  for name, run in runs.items():
    lines = module.computations.get(name, {})
    for instruction in lines.values():
      kind, attributes = instruction.opcode.removesuffix("-start"), instruction.attributes
      transfer = MEGASCALE.search(attributes) if kind == "send" else None
      if kind not in KINDS and transfer is None:
        continue
      size = sum((hlo.num_bytes(lines[o].shape) for o in instruction.operands if o in lines), 0.0)
      if transfer is not None:
        kind = transfer[1].lower().replace("_", "-")
        _add(between, kind, run.times, size, size * wire_factor(kind, num_slices))
        continue
      spans = 1 if module.per_slice else num_slices
      inside, outside = sent_bytes(kind, size, attributes, module.num_devices, spans)
      if inside or not outside:
        _add(within, kind, run.times, size, inside)
      if outside:
        _add(between, kind, run.times, size, outside)
  return _rows(within), _rows(between)


def _add(sums: dict[str, list[float]], kind: str, times: int, size: float, sent: float) -> None:
  row = sums.setdefault(kind, [0.0, 0.0, 0.0])
  sums[kind] = [a + times * b for a, b in zip(row, (1.0, size, sent), strict=True)]


def _rows(sums: dict[str, list[float]]) -> list[Traffic]:
  rows = [Traffic(kind, *(round(x) for x in row)) for kind, row in sums.items()]
  return sorted(rows, key=lambda row: -row.wire_bytes)


def sent_bytes(
  kind: str, size: float, attributes: str, num_devices: int, num_slices: int
) -> tuple[float, float]:
  """Return the bytes that each device sends within its slice and to other slices.

  Args:
    kind: the compiler's name of the collective.
    size: size of its operands on one device, bytes.
    attributes: text of the instruction after its operands.
    num_devices, num_slices: devices of the program, and the slices that they form in their order.
  """
  each = max(num_devices // num_slices, 1)
  if kind == "collective-permute" and (pairs := _listed(PAIRS.search(attributes))):
    crossing = sum(a // each != b // each for a, b in pairs) / len(pairs)
    return size * (1 - crossing), size * crossing
  groups = device_groups(attributes, num_devices)
  group = max(groups, key=lambda g: len({device // each for device in g}))
  slices = len({device // each for device in group})
  here = len(group) // slices
  if slices == 1:
    return size * wire_factor(kind, len(group)), 0.0
  between = size * wire_factor(kind, slices)
  if kind in ("all-reduce", "reduce-scatter"):
    return size * wire_factor(kind, here), between / here
  if kind == "all-gather":
    return size * slices * wire_factor(kind, here), between
  return size * (here - 1) / len(group), size * (len(group) - here) / len(group)


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
  if kind in ("collective-permute", "one-to-one"):
    return 1.0
  return (group - 1) / group


def group_size(attributes: str, num_devices: int) -> int:
  """Return the number of devices that take part in one collective."""
  return len(device_groups(attributes, num_devices)[0])


def device_groups(attributes: str, num_devices: int) -> list[list[int]]:
  """Return the groups of devices that take part in one collective each.

  Reads `{{0,1},{2,3}}`, `[groups,devices]<=[...]T(...)`, and `mesh['a'=2,'b'=4] {'b'}` (also with a
  part of an axis, `'b':(1)2`); without groups all devices take part.
  """
  if match := MESH.search(attributes):
    axes = {name: int(size) for name, size in AXIS.findall(match[1])}
    ids = np.arange(math.prod(axes.values()))
    return _groups_of_mesh(_permuted(ids, match[2], match[3]), axes, USED.findall(match[4]))
  if match := IOTA.search(attributes):
    dims = _numbers(match[1])
    ids = _permuted(np.arange(math.prod(_numbers(match[2]))), match[2], match[3])
    return ids.reshape(-1, math.prod(dims[1:])).tolist()
  return _listed(LISTED.search(attributes)) or [list(range(num_devices))]


def _groups_of_mesh(
  ids: np.ndarray, axes: dict[str, int], used: list[tuple[str, str, str]]
) -> list[list[int]]:
  """Return the groups along the used axes: (name, devices before the part, size)."""
  parts = {name: (int(before or 1), int(size or axes[name])) for name, before, size in used}
  dims, taken = [], []
  for name, size in axes.items():
    before, part = parts.get(name, (size, 1))
    taken += [len(dims) + 1] if name in parts else []
    dims += [before, part, size // before // part]
  last = range(len(dims) - len(taken), len(dims))
  moved = np.moveaxis(ids.reshape(dims), taken, last)
  return moved.reshape(-1, math.prod(part for _, part in parts.values())).tolist()


def _permuted(ids: np.ndarray, dims: str | None, order: str | None) -> np.ndarray:
  ids = ids.reshape(_numbers(dims)) if dims else ids
  return ids.transpose(_numbers(order)) if order else ids


def _listed(match: re.Match[str] | None) -> list[list[int]]:
  """Return the numbers of `{0,1},{2,3}`; [] without a match."""
  return [_numbers(part) for part in re.findall(r"\{([\d,\s]+)\}", match[1])] if match else []


def _numbers(text: str) -> list[int]:
  return [int(number) for number in text.split(",")]
