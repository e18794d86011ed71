"""Pairs of tensors of other libraries and parameters of ours, and the way between them.

An importer and an exporter of one layout use the same table, so that what was imported and is
exported again has the same bits. Everything is a transposition, a reshaping or a joining of arrays;
nothing is computed.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from diffusion_jax.types import UserError

Shape = tuple[int, ...]
Tensors = Mapping[str, np.ndarray]

TURNS = {"kernel": {2: (1, 0), 4: (3, 2, 0, 1)}, "embedding": {2: (0, 1)}}
"""Last name of a parameter -> number of its axes -> their order in PyTorch.

A dense layer's I O is O I there, a convolution's H W I O is O I H W.
"""


class Pair(NamedTuple):
  """One or more parameters of ours and the tensors that hold them.

  Attributes:
    ours: paths of our parameters; with several, the tensor holds them one after the other along
      its first axis, as a fused query, key and value.
    theirs: names of tensors, which are all equal, as for a layer that every block has a copy of.
    shape: shape of the tensor; None: that of the turned parameter.
    turns: False if the tensor has our order of axes, as in files of flax.
  """

  ours: tuple[str, ...]
  theirs: tuple[str, ...]
  shape: Shape | None = None
  turns: bool = True

  def order(self, path: str, num_axes: int) -> tuple[int, ...]:
    """Return the tensor's order of a parameter's axes."""
    turns = TURNS.get(path.rpartition("/")[2], {}) if self.turns else {}
    return turns.get(num_axes, tuple(range(num_axes)))


def to_ours(
  pairs: Sequence[Pair],
  tensors: Mapping[str, np.ndarray],
  shapes: Mapping[str, Shape],
  where: str,
  unused: Collection[str] = (),
) -> dict[str, np.ndarray]:
  """Return our parameters by path, float32, from another library's tensors.

  Args:
    pairs: table of the layout.
    tensors: tensors by name.
    shapes: shape of each of our parameters.
    where: name of the file, for messages.
    unused: names of tensors that hold no parameters, such as fixed positions.

  Raises:
    UserError: a tensor is missing, has another shape, is not equal to its copies, or has no place.
  """
  wanted = {name for pair in pairs for name in pair.theirs}
  if missing := sorted(wanted - tensors.keys()):
    raise UserError(f"{where} has no tensor {_listed(missing)}, which this architecture needs")
  if left := sorted(tensors.keys() - wanted - set(unused)):
    raise UserError(f"{where} has a tensor without a place in this architecture: {_listed(left)}")
  found: dict[str, np.ndarray] = {}
  for pair in pairs:
    found |= _one_to_ours(pair, tensors, shapes, where)
  if lacking := sorted(shapes.keys() - found.keys()):
    raise ValueError(f"the table of this architecture has no {_listed(lacking)}")
  return found


def _one_to_ours(
  pair: Pair, tensors: Mapping[str, np.ndarray], shapes: Mapping[str, Shape], where: str
) -> dict[str, np.ndarray]:
  name, *copies = pair.theirs
  tensor = tensors[name]
  for copy in copies:
    if not np.array_equal(tensors[copy], tensor):
      raise UserError(f"{where}: {copy} is not equal to {name}, of which it is a copy elsewhere")
  expected = _their_shape(pair, shapes)
  if tensor.shape not in (expected, _flat(expected)):
    raise UserError(
      f"{where}: {name} has the shape {list(tensor.shape)}, this architecture needs "
      f"{list(expected)}"
    )
  if tensor.dtype.kind not in "f" and tensor.dtype.name != "bfloat16":
    raise UserError(f"{where}: {name} holds {tensor.dtype.name}, not floats")
  parts = np.split(tensor, len(pair.ours)) if len(pair.ours) > 1 else [tensor]
  made = {}
  for path, part in zip(pair.ours, parts, strict=True):
    order = pair.order(path, len(shapes[path]))
    back = part.reshape([shapes[path][i] for i in order]).transpose(np.argsort(order))
    made[path] = np.ascontiguousarray(back, np.float32).reshape(shapes[path])
  return made


def to_theirs(pairs: Sequence[Pair], params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Return another library's tensors by name from our parameters by path; inverts `to_ours`."""
  made: dict[str, np.ndarray] = {}
  shapes = {path: value.shape for path, value in params.items()}
  for pair in pairs:
    parts = [params[path].transpose(pair.order(path, params[path].ndim)) for path in pair.ours]
    joined = parts[0] if len(parts) == 1 else np.concatenate(parts)
    tensor = np.ascontiguousarray(joined.reshape(_their_shape(pair, shapes)))
    made |= dict.fromkeys(pair.theirs, tensor)
  return made


def _their_shape(pair: Pair, shapes: Mapping[str, Shape]) -> Shape:
  if pair.shape is not None:
    return pair.shape
  shape = shapes[pair.ours[0]]
  first, *rest = (shape[i] for i in pair.order(pair.ours[0], len(shape)))
  return (first * len(pair.ours), *rest)


def _flat(shape: Shape) -> Shape:
  """Return the shape of a dense layer that is stored as a convolution of one pixel."""
  return (*shape, 1, 1) if len(shape) == 2 else (*shape, 1)


def _listed(names: Sequence[str], most: int = 3) -> str:
  more = len(names) - most
  return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def with_null_row(tensors: Tensors, name: str, num_classes: int) -> Tensors:
  """Return the tensors with a table of classes that has a row for the null class.

  A table of `num_classes` rows gets one of zeros: the original has no null class, so it is never
  used. Any other table is left as it is.
  """
  table = tensors.get(name)
  if table is None or len(table) != num_classes:
    return tensors
  return {**tensors, name: np.concatenate([table, np.zeros_like(table[:1])])}


def with_rows(tensors: Tensors, name: str, num_rows: int) -> Tensors:
  """Return the tensors with the first rows of a table of classes."""
  if name not in tensors or not num_rows:
    return tensors
  return {**tensors, name: np.ascontiguousarray(tensors[name][:num_rows])}
