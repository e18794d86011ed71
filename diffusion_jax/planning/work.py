"""Count the computation and memory traffic of a compiled program, all loops in full.

XLA's own cost analysis counts the body of a loop once, however often it runs, and counts reads of
on-chip memory as memory traffic. Both are corrected by fractions from the program's text.
"""

import math
import re
from collections.abc import Callable
from typing import NamedTuple

from diffusion_jax.planning import hlo

LABELS = re.compile(r"dim_labels=\w+_(\w+)->\w+")
CONTRACTED = re.compile(r"lhs_contracting_dims=\{([\d,]*)\}")


class Work(NamedTuple):
  """Computation and memory traffic per device and step.

  Attributes:
    flops: XLA's count, with loops multiplied out.
    accessed_bytes: operands and results of all instructions by XLA's count, loops multiplied out.
    memory_bytes: the part of `accessed_bytes` that is in the main memory.
    unknown_loops: number of loops of unknown length, which count once.
  """

  flops: float
  accessed_bytes: float
  memory_bytes: float
  unknown_loops: int


def work(
  module: hlo.Module, runs: dict[str, hlo.Runs], unknown: int, flops: float, accessed: float
) -> Work:
  """Correct the figures of XLA's cost analysis.

  Args:
    module: the program, from `hlo.parse_hlo`.
    runs, unknown: numbers of runs and of unknown loops, from `hlo.count_runs`.
    flops, accessed: "flops" and "bytes accessed" of `compiled.cost_analysis()`.
  """
  moving = {name: run for name, run in runs.items() if run.moves}
  accessed *= _loop_factor(module, moving, _moved)
  everything = _total(module, moving, _moved)
  outside_fraction = _total(module, moving, _moved_outside) / everything if everything else 1.0
  return Work(
    flops * _loop_factor(module, runs, _product_flops),
    accessed,
    accessed * outside_fraction,
    unknown,
  )


Size = Callable[[hlo.Instruction, dict[str, hlo.Instruction]], float]
"""Function of an instruction and its computation that returns the instruction's size."""


def _loop_factor(module: hlo.Module, runs: dict[str, hlo.Runs], size: Size) -> float:
  """Return the factor by which a total grows if all loop iterations count."""
  once = _total(module, {name: run._replace(times=1) for name, run in runs.items()}, size)
  return _total(module, runs, size) / once if once else 1.0


def _total(module: hlo.Module, runs: dict[str, hlo.Runs], size: Size) -> float:
  in_run = {name: module.computations.get(name, {}) for name in runs}
  return sum((runs[n].times * size(i, at) for n, at in in_run.items() for i in at.values()), 0.0)


def _product_flops(instruction: hlo.Instruction, lines: dict[str, hlo.Instruction]) -> float:
  """Return the FLOPs of a convolution or matrix product, with padding counted as if computed."""
  if instruction.opcode not in ("convolution", "dot") or len(instruction.operands) != 2:
    return 0.0
  left, right = (hlo.arrays(lines[o].shape) for o in instruction.operands)
  outputs = sum(math.prod(a.dims) for a in hlo.arrays(instruction.shape))
  if match := CONTRACTED.search(instruction.attributes):
    return 2.0 * outputs * math.prod(left[0].dims[int(i)] for i in match[1].split(",") if i)
  labels = LABELS.search(instruction.attributes)
  features = right[0].dims[labels[1].index("o")] if labels else 1
  return 2.0 * outputs * math.prod(right[0].dims) / max(features, 1)


def _moved(instruction: hlo.Instruction, lines: dict[str, hlo.Instruction]) -> float:
  return sum((a.num_bytes for a in _touched(instruction, lines)), 0.0)


def _moved_outside(instruction: hlo.Instruction, lines: dict[str, hlo.Instruction]) -> float:
  return sum((a.num_bytes for a in _touched(instruction, lines) if not a.on_chip), 0.0)


def _touched(instruction: hlo.Instruction, lines: dict[str, hlo.Instruction]) -> list[hlo.Array]:
  """Return the arrays that an instruction reads and writes; for a slice only the slice."""
  opcode = instruction.opcode
  if opcode in hlo.NEVER_MOVED or opcode.endswith(("-done", "-update")):
    return []
  operands = [hlo.arrays(lines[o].shape) for o in instruction.operands if o in lines]
  if opcode in ("dynamic-slice", "slice", "gather"):
    return 2 * hlo.arrays(instruction.shape)
  if opcode == "dynamic-update-slice":
    return 2 * operands[1]
  if opcode.endswith("-start"):  # its result repeats the operands
    return hlo.arrays(instruction.shape)
  return [array for part in (hlo.arrays(instruction.shape), *operands) for array in part]
