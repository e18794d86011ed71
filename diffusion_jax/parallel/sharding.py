"""The device mesh, and how batches and state are laid out over it.

Axes: `data` splits the batch; `fsdp` splits the batch and the state; `tensor` splits wide layers.
Parallelism is left to the compiler: functions are jitted over NamedShardings and models carry no
annotations; which axis of which array is split is decided here, from its path and its shape.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Int

from diffusion_jax.core.trees import named_leaves
from diffusion_jax.parallel import watchdog
from diffusion_jax.types import UserError

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")
MIN_SHARDED_SIZE = 4096
"""Leaves with fewer elements are not split by `fsdp`: that costs more than it saves."""

MIN_TENSOR_WIDTH = 64
"""Channels that `tensor` leaves on a device at least: narrower products leave it idle."""

TENSOR_RULES = (
  (r"/conv1/conv/(kernel|bias)$", -1),
  (r"/embed/(kernel|bias)$", -1),
  (r"/norm2/group/(scale|bias)$", -1),
  (r"/conv2/conv/kernel$", -2),
  (r"attention/value/(kernel|bias)$", -1),
  (r"attention/out/kernel$", -2),
  (r"/attention/(query|key)/(kernel|bias)$", -1),
  (r"/mlp_in/(kernel|bias)$", -1),
  (r"/mlp_out/kernel$", -2),
)
"""Path of an array -> the axis that `tensor` splits.

As Shoeybi et al. 2019 (arXiv 1909.08053) split a transformer's blocks: the first convolution of a
residual block makes a part of the channels on each device, all up to the second stays on that part,
and the second sums over its input's channels: one all-reduce a block. The U-Net's attention mostly
has one head, so only its values are split: its scores would have to be summed over the devices. The
transformer's heads and its MLP are split as there.
"""


@dataclasses.dataclass(frozen=True)
class MeshShape:
  """Devices along each axis; -1 takes all that the others leave.

  Attributes:
    data: replicas of the state.
    fsdp: shards of the state (fully sharded data parallel).
    tensor: shards of the wide layers; groups of so many devices share their examples.
  """

  data: int = -1
  fsdp: int = 1
  tensor: int = 1

  def __post_init__(self):
    sizes = dataclasses.asdict(self)
    for name, size in sizes.items():
      if size != -1 and size < 1:
        raise ValueError(f"{name}={size} must be -1 (all that is left) or at least 1")
    if list(sizes.values()).count(-1) > 1:
      raise ValueError("only one of data, fsdp and tensor may be -1")


def create_mesh(shape: MeshShape, devices: Sequence[Any] | None = None) -> Mesh:
  """Arranges the devices (all of them by default) into a mesh.

  Raises:
    UserError: the shape does not use the devices exactly.
  """
  devices = list(jax.devices() if devices is None else devices)
  sizes = [getattr(shape, axis) for axis in AXES]
  if -1 in sizes:
    sizes[sizes.index(-1)] = max(len(devices) // -math.prod(sizes), 1)
  if math.prod(sizes) != len(devices):
    asked = ", ".join(f"{axis}={getattr(shape, axis)}" for axis in AXES)
    raise UserError(
      f"mesh {asked} does not fit {len(devices)} device(s); their product must be {len(devices)}, "
      "e.g. --config.mesh.data=-1 --config.mesh.fsdp=1 --config.mesh.tensor=1"
    )
  return jax.make_mesh(tuple(sizes), AXES, (AxisType.Auto,) * 3, devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Splits the leading axis over every group of devices that holds examples."""
  return NamedSharding(mesh, P(BATCH_AXES))


def num_batch_shards(mesh: Mesh) -> int:
  """Parts that a batch is split into."""
  return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def round_up(batch_size: int, mesh: Mesh) -> int:
  """The smallest batch of at least this size that the devices divide."""
  return -(-batch_size // num_batch_shards(mesh)) * num_batch_shards(mesh)


def replicated(mesh: Mesh) -> NamedSharding:
  """The whole array on every device."""
  return NamedSharding(mesh, P())


def state_shardings(mesh: Mesh, tree: Any) -> Any:
  """A sharding for each leaf of a state, as it is kept between steps.

  `tensor` splits what TENSOR_RULES name; `fsdp` the largest other axis that it divides, of leaves
  of at least MIN_SHARDED_SIZE elements. Parameters, their averages and their optimizer moments
  end in the same path and so get the same layout.

  Args:
    mesh: from `create_mesh`.
    tree: arrays or ShapeDtypeStructs.
  """
  return _by_path(mesh, tree, lambda path, shape: _state_spec(path, shape, mesh))


def compute_shardings(mesh: Mesh, tree: Any) -> Any:
  """A sharding for each parameter while it is computed with: `fsdp` gathered, `tensor` split."""
  return _by_path(mesh, tree, lambda path, shape: P(*_tensor_axes(path, shape, mesh)))


def _by_path(mesh: Mesh, tree: Any, spec: Callable[[str, tuple[int, ...]], P]) -> Any:
  specs = [NamedSharding(mesh, spec("/" + n, x.shape)) for n, x in named_leaves(tree).items()]
  return jax.tree.unflatten(jax.tree.structure(tree), specs)


def _tensor_axes(path: str, shape: tuple[int, ...], mesh: Mesh) -> list[str | None]:
  axes: list[str | None] = [None] * len(shape)
  parts = mesh.shape["tensor"]
  for pattern, axis in TENSOR_RULES if parts > 1 else ():
    divides = bool(re.search(pattern, path)) and not shape[axis] % parts
    if divides and shape[axis] // parts >= MIN_TENSOR_WIDTH:
      axes[axis] = "tensor"
  return axes


def _state_spec(path: str, shape: tuple[int, ...], mesh: Mesh) -> P:
  axes, shards = _tensor_axes(path, shape, mesh), mesh.shape["fsdp"]
  free = [i for i, n in enumerate(shape) if axes[i] is None and n % shards == 0]
  if shards > 1 and free and math.prod(shape) >= MIN_SHARDED_SIZE:
    axes[max(free, key=lambda i: shape[i])] = "fsdp"
  return P(*axes) if any(axes) else P()


def as_target(shapes: Any, layout: Any) -> Any:
  """ShapeDtypeStructs that say where each leaf of a checkpoint goes.

  Args:
    shapes: tree of arrays or ShapeDtypeStructs.
    layout: the same tree of shardings.
  """
  return jax.tree.map(
    lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes, layout
  )


class LayoutRow(NamedTuple):
  """Arrays of one part of a state that are split in the same way.

  Attributes:
    part: the state's field.
    how: axes that split them, "fsdp 8"; "replicated" for none.
    arrays: how many they are.
    num_bytes: of all of them.
    bytes_per_device: of what one device holds.
  """

  part: str
  how: str
  arrays: int
  num_bytes: int
  bytes_per_device: int


SHOWN_AS = {"offsets": "ema"}
"""Fields of the state that the table calls by what they are for."""


def layout_rows(mesh: Mesh, state: Any) -> list[LayoutRow]:
  """What of a state is split how; counters and the like are the part "other".

  Args:
    mesh: the devices.
    state: a TrainState of arrays or ShapeDtypeStructs.
  """
  layouts = jax.tree.leaves(state_shardings(mesh, state))
  rows: dict[tuple[str, str], LayoutRow] = {}
  for (name, leaf), layout in zip(named_leaves(state).items(), layouts, strict=True):
    field = name.partition("/")[0] if "/" in name else "other"
    part = SHOWN_AS.get(field, field)
    how = ", ".join(f"{axis} {mesh.shape[axis]}" for axis in layout.spec if axis) or "replicated"
    row = rows.get((part, how), LayoutRow(part, how, 0, 0, 0))
    here = math.prod(layout.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    total = math.prod(leaf.shape) * leaf.dtype.itemsize
    rows[part, how] = LayoutRow(
      part, how, row.arrays + 1, row.num_bytes + total, row.bytes_per_device + here
    )
  return list(rows.values())


def describe_layout(mesh: Mesh, state: Any) -> list[str]:
  """The table of `layout_rows` with its total, as lines for a person."""
  rows = layout_rows(mesh, state)
  total = sum(row.num_bytes for row in rows)
  here = sum(row.bytes_per_device for row in rows)
  arrays = sum(row.arrays for row in rows)
  ratio = f"1/{total / max(here, 1):.2f} of the whole" if here < total else "the whole"
  lines = [f"{'state':<11}{'layout':<22}{'arrays':>7}{'MB':>10}{'MB a device':>13}"]
  for row in rows:
    lines.append(_layout_line(row.part, row.how, row.arrays, row.num_bytes, row.bytes_per_device))
  return [*lines, f"{_layout_line('total', '', arrays, total, here)}  {ratio}"]


def _layout_line(part: str, how: str, arrays: int, total: int, here: int) -> str:
  return f"{part:<11}{how:<22}{arrays:>7,}{total / 1e6:>10,.1f}{here / 1e6:>13,.1f}"


def check_batch_size(batch_size: int, mesh: Mesh, parts: int = 1, flag: str = "") -> None:
  """Refuses a global batch that the devices (times `parts` microbatches) do not divide.

  Raises:
    UserError: with the nearest sizes that would do.
  """
  shards = num_batch_shards(mesh)
  unit = shards * parts
  if batch_size < 1 or batch_size % unit:
    low, high = batch_size // unit * unit, (batch_size // unit + 1) * unit
    near = " or ".join(f"--config.{flag}={n}" for n in (low, high) if n > 0)
    groups = "device(s)" if mesh.size == shards else f"groups of {mesh.shape['tensor']} devices"
    shared = f"{shards} {groups}" + (f" x {parts} microbatches" if parts > 1 else "")
    raise UserError(f"{flag}={batch_size} is not divisible by {shared}; use {near}")


def local_rows(mesh: Mesh, batch_size: int) -> Int[np.ndarray, "L"]:
  """The rows of a global batch that this process's devices hold, rising."""
  places = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
  everything = np.arange(batch_size)
  return np.unique(np.concatenate([everything[index] for index in places.values() if index]))


def put_batch(batch: Any, mesh: Mesh) -> Any:
  """Sends this process's rows of a global batch, those of `local_rows`, to its devices.

  Args:
    batch: a tree of arrays, as a Batch is.
    mesh: the devices.
  """
  place = batch_sharding(mesh)
  if jax.process_count() == 1:
    return jax.device_put(batch, place)
  shards = num_batch_shards(mesh)
  here = local_rows(mesh, shards)  # the shards that this process holds

  def put(x: np.ndarray) -> jax.Array:
    size = len(x) // len(here)

    def part(index):
      first = int(np.searchsorted(here, (index[0].start or 0) // size)) * size
      return x[first : first + size]

    return jax.make_array_from_callback((size * shards, *x.shape[1:]), place, part)

  return jax.tree.map(put, batch)


def put_rows(x: Any, mesh: Mesh) -> jax.Array:
  """Splits a host array that every process holds in full over the devices, by rows."""
  x = np.asarray(x)
  return jax.make_array_from_callback(x.shape, batch_sharding(mesh), lambda index: x[index])


def put_everywhere(tree: Any, mesh: Mesh) -> Any:
  """Host arrays that every process holds alike, as whole arrays on every device."""

  def put(x: Any) -> jax.Array:
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, replicated(mesh), lambda index: x[index])

  return jax.tree.map(put, tree)


def gathered(params: Any, mesh: Mesh) -> Any:
  """Parameters in the layout that they are computed with; see `compute_shardings`."""
  layout = compute_shardings(mesh, params)
  if jax.tree.all(jax.tree.map(lambda x, place: x.sharding == place, params, layout)):
    return params
  return jax.jit(lambda tree: tree, out_shardings=layout)(params)


def fetch(x: Any) -> np.ndarray:
  """The whole of an array on the host of every process."""
  if not (x.is_fully_addressable or x.is_fully_replicated):
    x = _to_all(x.sharding.mesh)(x)
  found = np.asarray(x)
  watchdog.beat()
  return found


@functools.cache
def _to_all(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
  return jax.jit(lambda x: x, out_shardings=replicated(mesh))
