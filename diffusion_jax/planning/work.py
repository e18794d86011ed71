"""Count the memory traffic of a compiled program, all loops in full.

XLA's own cost analysis counts the body of a loop once, however often it runs, and counts reads of
on-chip memory as memory traffic. Both are corrected by fractions from the program's text. It knows
nothing of calls to other libraries, which on a GPU are most products: those are counted from the
text, and a call that is not in `LIBRARIES` or `MARKERS` makes the traffic unknown. `flops` counts
the computation.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

from diffusion_jax.planning import hlo

TARGET = re.compile(r'custom_call_target="([^"]*)"')
LIBRARIES = (
  "__cublas$", "__cudnn$", "__onednn$", "tpu_custom_call", "triton_kernel_call",
  "__gpu$xla.gpu.triton", "mosaic_gpu",
)  # fmt: skip
"""First letters of calls that read their operands and write their results at least once."""

MARKERS = {
  "AllocateBuffer", "AssumeGatherIndicesInBound", "AsyncCollectiveDone", "AsyncCollectiveStart",
  "ConcatBitcast", "Sharding", "SPMDFullToShardShape", "SPMDShardToFullShape",
}  # fmt: skip
"""Calls that move nothing themselves; the TPU compiler has most of them in every program."""


class Work(NamedTuple):
  """Memory traffic per device and step.

  Attributes:
    accessed_bytes: operands and results of all instructions, loops multiplied out; None if unknown.
    memory_bytes: the part of `accessed_bytes` that is in the main memory; None if unknown.
    unknown_loops: number of loops of unknown length, which count once.
    unknown_calls: names of called functions whose traffic is unknown, sorted.
  """

  accessed_bytes: float | None
  memory_bytes: float | None
  unknown_loops: int
  unknown_calls: tuple[str, ...] = ()


def work(
  module: hlo.Module, runs: dict[str, hlo.Runs], unknown: int, accessed: float | None
) -> Work:
  """Correct the bytes of XLA's cost analysis.

  Args:
    module: the program, from `hlo.parse_hlo`.
    runs, unknown: numbers of runs and of unknown loops, from `hlo.count_runs`.
    accessed: "bytes accessed" of `compiled.cost_analysis()`; None if it lacks them. Each call to
      a library is -1 there.
  """
  moving = {name: run for name, run in runs.items() if run.moves}
  calls = unknown_calls(module, runs)
  if accessed is None or calls:
    return Work(None, None, unknown, calls)
  accessed = max(accessed, 0.0) * _loop_factor(module, moving, _moved)
  everything = _total(module, moving, _moved)
  outside_fraction = _total(module, moving, _moved_outside) / everything if everything else 1.0
  called = _total(module, runs, _moved_by_library)
  return Work(accessed + called, accessed * outside_fraction + called, unknown)


def unknown_calls(module: hlo.Module, runs: dict[str, hlo.Runs]) -> tuple[str, ...]:
  """Return the names of the called functions that are in neither of the lists above."""
  found = {_target(i) for name in runs for i in module.computations.get(name, {}).values()}
  known = lambda name: name in MARKERS or name.startswith(LIBRARIES)  # noqa: E731
  return tuple(sorted(name for name in found if name is not None and not known(name)))


def _target(instruction: hlo.Instruction) -> str | None:
  """Return the function of a custom call; None for other instructions."""
  if instruction.opcode.removesuffix("-start") != "custom-call":
    return None
  target = TARGET.search(instruction.attributes)
  return target[1] if target else "a custom call without a name"


Size = Callable[[hlo.Instruction, dict[str, hlo.Instruction]], float]
"""Function of an instruction and its computation that returns the instruction's size."""


def _loop_factor(module: hlo.Module, runs: dict[str, hlo.Runs], size: Size) -> float:
  """Return the factor by which a total grows if all loop iterations count."""
  once = _total(module, {name: run._replace(times=1) for name, run in runs.items()}, size)
  return _total(module, runs, size) / once if once else 1.0


def _total(module: hlo.Module, runs: dict[str, hlo.Runs], size: Size) -> float:
  in_run = {name: module.computations.get(name, {}) for name in runs}
  return sum((runs[n].times * size(i, at) for n, at in in_run.items() for i in at.values()), 0.0)


def _moved_by_library(instruction: hlo.Instruction, lines: dict[str, hlo.Instruction]) -> float:
  """Return the bytes of a call's operands and results, without its workspace."""
  target = _target(instruction)
  if target is None or target in MARKERS:
    return 0.0
  results = hlo.arrays(instruction.shape)
  if len(results) > 1 and results[-1].num_bytes == sum(results[-1].dims):  # bytes in one row
    results = results[:-1]
  operands = (hlo.num_bytes(lines[o].shape) for o in instruction.operands if o in lines)
  return sum((array.num_bytes for array in results), 0.0) + sum(operands, 0.0)


def _moved(instruction: hlo.Instruction, lines: dict[str, hlo.Instruction]) -> float:
  return sum((a.num_bytes for a in _touched(instruction, lines)), 0.0)


def _moved_outside(instruction: hlo.Instruction, lines: dict[str, hlo.Instruction]) -> float:
  return sum((a.num_bytes for a in _touched(instruction, lines) if not a.on_chip), 0.0)


def _touched(instruction: hlo.Instruction, lines: dict[str, hlo.Instruction]) -> list[hlo.Array]:
  """Return the arrays that an instruction reads and writes; for a slice only the slice."""
  opcode = instruction.opcode
  if opcode in hlo.NEVER_MOVED or opcode.endswith(("-done", "-update")) or _target(instruction):
    return []
  operands = [hlo.arrays(lines[o].shape) for o in instruction.operands if o in lines]
  if opcode in ("dynamic-slice", "slice", "gather"):
    return 2 * hlo.arrays(instruction.shape)
  if opcode == "dynamic-update-slice":
    return 2 * operands[1]
  if opcode.endswith("-start"):  # its result repeats the operands
    return hlo.arrays(instruction.shape)
  return [array for part in (hlo.arrays(instruction.shape), *operands) for array in part]
