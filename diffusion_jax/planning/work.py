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
  "ConcatBitcast", "Sharding", "SPMDFullToShardShape", "SPMDShardToFullShape", "ZeroCrop",
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


Lines = dict[str, hlo.Instruction]
Size = Callable[[hlo.Instruction, Lines, hlo.Module], float]
"""Function of an instruction, its computation and the program that returns its size."""


def _loop_factor(module: hlo.Module, runs: dict[str, hlo.Runs], size: Size) -> float:
  """Return the factor by which a total grows if all loop iterations count."""
  once = _total(module, {name: run._replace(times=1) for name, run in runs.items()}, size)
  return _total(module, runs, size) / once if once else 1.0


def _total(module: hlo.Module, runs: dict[str, hlo.Runs], size: Size) -> float:
  in_run = {name: module.computations.get(name, {}) for name in runs}
  return sum(
    (runs[n].times * size(i, at, module) for n, at in in_run.items() for i in at.values()), 0.0
  )


def _moved_by_library(instruction: hlo.Instruction, lines: Lines, module: hlo.Module) -> float:
  """Return the bytes of a call's operands and results, without its workspace."""
  del module
  target = _target(instruction)
  if target is None or target in MARKERS:
    return 0.0
  results = hlo.arrays(instruction.shape)
  if len(results) > 1 and results[-1].num_bytes == sum(results[-1].dims):  # bytes in one row
    results = results[:-1]
  operands = (hlo.num_bytes(lines[o].shape) for o in instruction.operands if o in lines)
  return sum((array.num_bytes for array in results), 0.0) + sum(operands, 0.0)


def _moved(instruction: hlo.Instruction, lines: Lines, module: hlo.Module) -> float:
  return sum((a.num_bytes for a in _touched(instruction, lines, module)), 0.0)


def _moved_outside(instruction: hlo.Instruction, lines: Lines, module: hlo.Module) -> float:
  touched = _touched(instruction, lines, module)
  return sum((a.num_bytes for a in touched if not a.on_chip), 0.0)


def _touched(instruction: hlo.Instruction, lines: Lines, module: hlo.Module) -> list[hlo.Array]:
  """Return the arrays that an instruction reads and writes; for a slice only the slice."""
  opcode = instruction.opcode
  if opcode in hlo.NEVER_MOVED or opcode.endswith(("-done", "-update")) or _target(instruction):
    return []
  operands = [hlo.arrays(lines[o].shape) for o in instruction.operands if o in lines]
  if opcode in ("dynamic-slice", "slice", "gather"):
    return 2 * hlo.arrays(instruction.shape)
  if opcode == "dynamic-update-slice":
    return 2 * operands[1]
  if opcode == "slice-start":  # its result repeats the operand, then comes the slice
    part = hlo.arrays(instruction.shape)[len(operands[0])]
    return [part, part._replace(on_chip=operands[0][0].on_chip)]
  if opcode.endswith("-start"):  # its result repeats the operands
    return hlo.arrays(instruction.shape)
  results, inside = hlo.arrays(instruction.shape), _inside(instruction, module)
  if inside:
    return _written(results, inside) + _read(operands, inside, module)
  return [array for part in (results, *operands) for array in part]


UNMOVED = ("bitcast", "convert", "copy", "reshape")
"""Operations inside a fusion that do not change which elements are needed."""


def _inside(instruction: hlo.Instruction, module: hlo.Module) -> Lines:
  """Return the instructions of a fusion; {} for any other instruction."""
  if instruction.opcode != "fusion":
    return {}
  return next((module.computations.get(name, {}) for name in hlo.callees(instruction)), {})


def _read(operands: list[list[hlo.Array]], inside: Lines, module: hlo.Module) -> list[hlo.Array]:
  """Return what a fusion reads: slices of an operand that is only sliced, all of others."""
  found: list[hlo.Array] = []
  for line in inside.values():
    if line.opcode != "parameter" or not line.value.isdigit() or int(line.value) >= len(operands):
      continue
    whole, parts = operands[int(line.value)], _slices(line.name, inside, module)
    if parts is None or len(whole) != 1:
      found += whole
    else:
      found += [part._replace(on_chip=whole[0].on_chip) for part in parts]
  return found


def _slices(name: str, inside: Lines, module: hlo.Module) -> list[hlo.Array] | None:
  """Return the arrays that a fusion cuts out of a value, or None if it needs all of it.

  A value that is only written to in part, as a loop does with its stacked results, is not read.
  """
  parts: list[hlo.Array] = []
  for user in inside.values():
    for i in (i for i, operand in enumerate(user.operands) if operand == name):
      cut = _cut(user, i, inside, module)
      if cut is None:
        return None
      parts += cut
  return parts


def _cut(
  user: hlo.Instruction, index: int, inside: Lines, module: hlo.Module
) -> list[hlo.Array] | None:
  """Return what one instruction cuts out of one of its operands; None: it needs all."""
  if user.opcode in UNMOVED:
    return _slices(user.name, inside, module) if list(inside)[-1] != user.name else None
  if index == 0 and user.opcode in ("dynamic-slice", "slice"):
    return hlo.arrays(user.shape)
  if index == 0 and user.opcode == "dynamic-update-slice":
    return []
  nested = _inside(user, module)
  given = [i.name for i in nested.values() if (i.opcode, i.value) == ("parameter", str(index))]
  return _slices(given[0], nested, module) if given else None


def _written(results: list[hlo.Array], inside: Lines) -> list[hlo.Array]:
  """Return what a fusion writes: of a result that is an updated operand only the update."""
  root = list(inside.values())[-1]
  names = root.operands if root.opcode == "tuple" else (root.name,)
  if len(names) != len(results):
    return results
  found: list[hlo.Array] = []
  for name, whole in zip(names, results, strict=True):
    line = inside.get(name)
    while line is not None and line.opcode in UNMOVED:
      line = inside.get(line.operands[0]) if line.operands else None
    if line is None or line.opcode != "dynamic-update-slice" or line.operands[1] not in inside:
      found.append(whole)
    else:
      update = hlo.arrays(inside[line.operands[1]].shape)
      found += [part._replace(on_chip=whole.on_chip) for part in update]
  return found
