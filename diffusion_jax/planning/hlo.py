"""Parse the text of a compiled program, and count how often each computation runs."""

import math
import re
from typing import NamedTuple

HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
OPCODE = re.compile(r" ([a-z][a-z0-9\-]*)\(")
CLOSE = re.compile(r"\)(?=,|\s|$)")
NAME = re.compile(r"%([\w.\-]+)")
ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,<=]*)\](?:\{([^}]*)\})?")
CALL = re.compile(
  r"\b(calls|to_apply|body|condition|branch_computations|called_computations|true_computation"
  r"|false_computation)=(\{[^}]*\}|%?[\w.\-]+)"
)
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
NEVER_MOVED = {
  "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call",
  "after-all", "opt-barrier", "partition-id", "replica-id",
}  # fmt: skip
"""Instructions that move no bytes of their own."""


class Array(NamedTuple):
  """One array of a shape: its dimensions, size, and whether it is outside main memory.

  A layout that ends in S(1) puts the array into a TPU's on-chip memory.
  """

  dims: tuple[int, ...]
  num_bytes: float
  on_chip: bool


class Instruction(NamedTuple):
  """One line of a computation.

  Attributes:
    name: name, unique within the computation.
    opcode: operation: "all-reduce", "fusion", ...
    shape: shape of the result, as text.
    operands: names of other instructions of the computation.
    attributes: text after the operands.
    value: text of a constant or number of a parameter, empty for other instructions.
  """

  name: str
  opcode: str
  shape: str
  operands: tuple[str, ...]
  attributes: str
  value: str = ""


class Module(NamedTuple):
  """A compiled program.

  Attributes:
    computations: name -> name -> instruction, callees before their callers.
    entry: name of the computation that runs first.
    num_devices: partitions times replicas.
    per_slice: true for the program of one of several slices, whose devices are those of it.
  """

  computations: dict[str, dict[str, Instruction]]
  entry: str
  num_devices: int
  per_slice: bool = False


class Runs(NamedTuple):
  """Number of runs of a computation per step.

  Attributes:
    times: number of runs, with loops multiplied out.
    moves: true if its instructions read and write memory, which is false inside a fusion.
  """

  times: int
  moves: bool


def parse_hlo(text: str) -> Module:
  """Parse `compiled.as_text()`."""
  computations: dict[str, dict[str, Instruction]] = {}
  entry, current = "", {}
  for line in text.splitlines():
    if match := INSTRUCTION.match(line):
      current[match[2]] = _instruction(match[2], match[3])
    elif match := HEADER.match(line):
      current = computations[match[2]] = {}
      entry = match[2] if match[1] else entry
  first = text.partition("\n")[0]
  counts = [re.search(rf"\b{n}=(\d+)", first) for n in ("num_partitions", "replica_count")]
  per_slice = "_xla_megascale_transfer_type" in text  # of the TPU compiler's runtime
  return Module(computations, entry, math.prod(int(m[1]) for m in counts if m), per_slice)


def _instruction(name: str, text: str) -> Instruction:
  opcode = OPCODE.search(" " + text)
  if opcode is None:
    return Instruction(name, "", text, (), "")
  shape, rest = text[: opcode.start() - 1], text[opcode.end() - 1 :]
  close = CLOSE.search(rest)
  inside, after = (rest[: close.start()], rest[close.end() :]) if close else (rest, "")
  value = inside if opcode[1] in ("constant", "parameter") else ""
  return Instruction(name, opcode[1], shape, tuple(NAME.findall(inside)), after, value)


def arrays(shape: str) -> list[Array]:
  """Return the arrays of a shape, which may be a tuple of them."""
  return [
    Array(dims, math.prod(dims) * _bits(kind) / 8, "S(1)" in layout)
    for kind, text, layout in ARRAY.findall(shape)
    for dims in [tuple(int(n) for n in text.replace("<=", "").split(",") if n)]
  ]


def _bits(kind: str) -> int:
  """Return the bits per element: bf16 16, f8e4m3fn 8, pred 8, token 0."""
  digits = re.search(r"\d+", kind)
  return int(digits[0]) if digits else 8 * (kind == "pred")


def num_bytes(shape: str) -> float:
  """Return the bytes of all arrays of a shape, without the padding of a layout."""
  return sum((a.num_bytes for a in arrays(shape)), 0.0)


def count_runs(module: Module) -> tuple[dict[str, Runs], int]:
  """Count the runs of each reachable computation, and the loops of unknown length.

  A loop of unknown length counts once. Each branch of a conditional counts.
  """
  runs, unknown = {module.entry: Runs(1, True)}, 0
  for name in reversed(module.computations):  # callers before their callees
    if name not in runs:
      continue
    for instruction in module.computations[name].values():
      trips = 1
      if instruction.opcode == "while":
        trips = trip_count(module, name, instruction)
        unknown += trips is None
      moves = instruction.opcode in ("while", "conditional", "call", "async-start")
      for callee in callees(instruction):
        before = runs.get(callee, Runs(0, False))
        runs[callee] = Runs(
          before.times + runs[name].times * (1 if trips is None else trips),
          before.moves or (moves and runs[name].moves),
        )
  return runs, unknown


def callees(instruction: Instruction) -> list[str]:
  """Return the names of the computations that an instruction calls."""
  calls = CALL.findall(instruction.attributes)
  return [name.strip(" %") for _, names in calls for name in names.strip("{}").split(",")]


def trip_count(module: Module, where: str, loop: Instruction) -> int | None:
  """Return the length of a loop, from the compiler's note or its test `counter < constant`.

  The counter starts at the constant in the loop's tuple, or at 0 if that is no constant, and
  increases by 1, as in `jax.lax.scan` and `fori_loop`.
  """
  if noted := TRIPS.search(loop.attributes):
    return int(noted[1])
  condition = dict(CALL.findall(loop.attributes)).get("condition", "").strip("%")
  lines = module.computations.get(condition, {})
  test = next((i for i in lines.values() if "direction=LT" in i.attributes), None)
  if test is None or len(test.operands) != 2:
    return None
  counter, last = (lines.get(name) for name in test.operands)
  end = _constant(module, condition, last)
  if end is None or counter is None or counter.opcode != "get-tuple-element":
    return None
  index = re.search(r"index=(\d+)", counter.attributes)
  start = _element(module, where, loop, int(index[1])) if index else None
  return end - (start or 0)


def _element(module: Module, where: str, loop: Instruction, index: int) -> int | None:
  lines = module.computations[where]
  made = lines.get(loop.operands[0]) if loop.operands else None
  if made is None or made.opcode != "tuple" or index >= len(made.operands):
    return None
  return _constant(module, where, lines.get(made.operands[index]))


def _constant(module: Module, where: str, instruction: Instruction | None) -> int | None:
  """Return the value of a constant, also through a copy."""
  if instruction is None:
    return None
  if instruction.opcode == "copy":
    return _constant(module, where, module.computations[where].get(instruction.operands[0]))
  return int(instruction.value) if re.fullmatch(r"-?\d+", instruction.value) else None
