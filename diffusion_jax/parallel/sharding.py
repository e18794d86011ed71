"""The device mesh, and the layout of batches and state over it.

Axes: `data` splits the batch; `fsdp` splits the batch and the state; `tensor` splits wide layers.
A mesh of several slices also has `dcn_data`, which splits the batch over them; see `slices`.
The compiler does the rest: functions are jitted over NamedShardings, and models carry no
annotations. The axis along which an array is split is decided here, from its path and its shape.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Int

from diffusion_jax.core import stacking
from diffusion_jax.core.parts import Part
from diffusion_jax.core.settings import HOW_IT_RUNS, Facts
from diffusion_jax.core.trees import named_leaves
from diffusion_jax.parallel import watchdog
from diffusion_jax.parallel.placement import placed_mesh
from diffusion_jax.parallel.slices import arrange_slices, count_slices, slices_of
from diffusion_jax.types import UserError

AXES = ("dcn_data", "data", "fsdp", "tensor")
MIN_SHARDED_SIZE = 4096
"""Minimum size of a leaf that `fsdp` splits, elements; smaller ones are not worth it."""

MIN_TENSOR_WIDTH = 64
"""Minimum channels per device after a `tensor` split; fewer leave the device idle."""

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
residual block computes a part of the channels on each device, everything up to the second one uses
that part, and the second one sums over its input channels: one all-reduce per block. The U-Net's
attention usually has one head, so only its values are split: splitting the rest would need a sum
of its scores over the devices. The transformer's heads and MLP are split as in that paper.
"""


@dataclasses.dataclass(frozen=True)
class MeshShape(Part):
  """Number of devices along each axis; -1 takes all that the other axes leave.

  Attributes:
    data: number of replicas of the state.
    fsdp: number of shards of the state (fully sharded data parallel).
    tensor: number of shards of the wide layers; a group of this size shares its examples.
    dcn_data: number of slices, joined by a slower network than the devices of a slice; the other
      axes stay within a slice; -1 takes as many as the devices report.
  """

  data: int = -1
  fsdp: int = 1
  tensor: int = 1
  dcn_data: int = 1

  setting_facts: ClassVar[Facts] = HOW_IT_RUNS

  def __post_init__(self):
    sizes = dataclasses.asdict(self)
    for name, size in sizes.items():
      if size != -1 and size < 1:
        raise ValueError(f"{name}={size} must be -1 (all remaining devices) or at least 1")
    if [self.data, self.fsdp, self.tensor].count(-1) > 1:
      raise ValueError("only one of data, fsdp and tensor may be -1")


def create_mesh(shape: MeshShape, devices: Sequence[Any] | None = None) -> Mesh:
  """Arrange the devices (all of them by default) into a mesh.

  Raises:
    UserError: the shape does not use exactly all devices.
  """
  devices = list(jax.devices() if devices is None else devices)
  num = count_slices(shape.dcn_data, devices)
  sizes = [num, shape.data, shape.fsdp, shape.tensor]
  axes = AXES if num > 1 else AXES[1:]
  if -1 in sizes:
    sizes[sizes.index(-1)] = max(len(devices) // -math.prod(sizes), 1)
  if math.prod(sizes) != len(devices):
    asked = ", ".join(f"{axis}={getattr(shape, axis)}" for axis in axes)
    raise UserError(
      f"mesh {asked} does not fit {len(devices)} device(s); their product must be {len(devices)}, "
      "e.g. `mesh.data=-1` `mesh.fsdp=1` `mesh.tensor=1`"
    )
  kinds = (AxisType.Auto,) * len(axes)
  if len(slices_of(devices)) > 1 or num > 1:
    return Mesh(arrange_slices(num, sizes[1:], devices), axes, kinds)
  return jax.make_mesh(tuple(sizes[1:]), axes, kinds, devices=devices)


def batch_axes(mesh: Mesh) -> tuple[str, ...]:
  """Return the axes that split the examples."""
  return tuple(axis for axis in mesh.axis_names if axis != "tensor")


def num_slices(mesh: Mesh) -> int:
  """Return the number of slices that a mesh has."""
  return mesh.shape.get("dcn_data", 1)


def describe_slices(mesh: Mesh, params: Any, times: int = 1) -> str | None:
  """Describe what crosses the network between slices in a step; None if there is one slice.

  Args:
    mesh: device mesh.
    params: the trained parameters, arrays or ShapeDtypeStructs; their gradients cross.
    times: number of sums of the gradients in a step.
  """
  num = num_slices(mesh)
  if num == 1:
    return None
  layouts = jax.tree.leaves(
    _by_path(mesh, params, lambda path, shape: _tensor_spec(path, shape, mesh))
  )
  whole = sum(
    math.prod(layout.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf, layout in zip(jax.tree.leaves(params), layouts, strict=True)
  )
  part = whole * num // num_batch_shards(mesh)  # after the sum within the slice
  sent = 2 * (num - 1) / num * part * times
  return (
    f"{num}; only dcn_data spans them: gradients of {whole / 1e6:,.1f} MB are summed within each "
    f"slice, then each device sends {sent / 1e6:,.2f} MB to the other slices per step"
  )


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Return the layout that splits the leading axis over the devices that hold examples."""
  return NamedSharding(mesh, P(batch_axes(mesh)))


def num_batch_shards(mesh: Mesh) -> int:
  """Return the number of parts that a batch is split into."""
  return math.prod(mesh.shape[axis] for axis in batch_axes(mesh))


def round_up(batch_size: int, mesh: Mesh) -> int:
  """Return the smallest batch size, at least `batch_size`, that the devices divide evenly."""
  return -(-batch_size // num_batch_shards(mesh)) * num_batch_shards(mesh)


def replicated(mesh: Mesh) -> NamedSharding:
  """Return the layout that keeps the whole array on every device."""
  return NamedSharding(mesh, P())


def state_shardings(mesh: Mesh, tree: Any) -> Any:
  """Return a sharding for each leaf of a state, as it is kept between steps.

  `tensor` splits the axes in TENSOR_RULES; `fsdp` splits the largest other axis that it divides, in
  leaves of at least MIN_SHARDED_SIZE elements. Parameters, their averages and their optimizer
  moments end in the same path, so they get the same layout.

  Args:
    mesh: device mesh, from `create_mesh`.
    tree: arrays or ShapeDtypeStructs.
  """
  return _by_path(mesh, tree, lambda path, shape: _state_spec(path, shape, mesh))


def compute_shardings(mesh: Mesh, tree: Any) -> Any:
  """Return a sharding for each parameter where it is used: `fsdp` gathered, `tensor` split.

  Stacked layers stay as they are kept: a network gathers each when it comes to it, by
  `gather_layer`, and never holds all of them.
  """
  rule = lambda path: _state_spec if stacking.is_stacked(path) else _tensor_spec  # noqa: E731
  return _by_path(mesh, tree, lambda path, shape: rule(path)(path, shape, mesh))


def gather_layer(params: Any) -> Any:
  """Return the parameters of one of several stacked layers in their layout for computation.

  Inside `placed_on` a mesh; elsewhere they are returned as they are.
  """
  mesh = placed_mesh()
  if mesh is None or mesh.shape["fsdp"] == 1:
    return params
  layout = _by_path(mesh, params, lambda path, shape: _tensor_spec(path, shape, mesh))
  inside = jax.sharding.get_abstract_mesh()
  if inside.manual_axes:  # in a computation of each replica, which has axes of its own
    layout = jax.tree.map(lambda s: NamedSharding(inside, s.spec), layout)
  return jax.lax.with_sharding_constraint(params, layout)


def _by_path(mesh: Mesh, tree: Any, spec: Callable[[str, tuple[int, ...]], P]) -> Any:
  specs = [NamedSharding(mesh, spec("/" + n, x.shape)) for n, x in named_leaves(tree).items()]
  return jax.tree.unflatten(jax.tree.structure(tree), specs)


def _tensor_axes(path: str, shape: tuple[int, ...], mesh: Mesh) -> list[str | None]:
  axes: list[str | None] = [None] * len(shape)
  num_shards = mesh.shape["tensor"]
  for pattern, axis in TENSOR_RULES if num_shards > 1 else ():
    divides = bool(re.search(pattern, path)) and not shape[axis] % num_shards
    if divides and shape[axis] // num_shards >= MIN_TENSOR_WIDTH:
      axes[axis] = "tensor"
  return axes


def _tensor_spec(path: str, shape: tuple[int, ...], mesh: Mesh) -> P:
  """Return how `tensor` alone splits an array; stacked layers are split as each of them."""
  layer = stacking.shape_of_layer(path, shape)
  return P(*[None] * (len(shape) - len(layer)), *_tensor_axes(path, layer, mesh))


def _state_spec(path: str, shape: tuple[int, ...], mesh: Mesh) -> P:
  shards, layer = mesh.shape["fsdp"], stacking.shape_of_layer(path, shape)
  axes = _tensor_axes(path, layer, mesh)
  free = [i for i, n in enumerate(layer) if axes[i] is None and n % shards == 0]
  if shards > 1 and free and math.prod(layer) >= MIN_SHARDED_SIZE:
    axes[max(free, key=lambda i: layer[i])] = "fsdp"
  axes = [None] * (len(shape) - len(layer)) + axes  # each device has its part of every layer
  return P(*axes) if any(axes) else P()


def as_target(shapes: Any, layout: Any) -> Any:
  """Return ShapeDtypeStructs with the target sharding of each leaf of a checkpoint.

  Args:
    shapes: tree of arrays or ShapeDtypeStructs.
    layout: tree of shardings of the same structure.
  """
  return jax.tree.map(
    lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes, layout
  )


class LayoutRow(NamedTuple):
  """Arrays of one part of a state that are split in the same way.

  Attributes:
    part: field of the state.
    how: axes that split the arrays, e.g. "fsdp 8"; "replicated" for none.
    arrays: number of arrays.
    num_bytes: total size, bytes.
    bytes_per_device: size of the part on one device, bytes.
  """

  part: str
  how: str
  arrays: int
  num_bytes: int
  bytes_per_device: int


SHOWN_AS = {"offsets": "ema"}
"""Names of state fields in the table, if they differ from the field's own name."""


def layout_rows(mesh: Mesh, state: Any) -> list[LayoutRow]:
  """Return how each part of a state is split; scalars such as counters form the part "other".

  Args:
    mesh: device mesh.
    state: TrainState of arrays or ShapeDtypeStructs.
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
  """Format `layout_rows` and their total as lines of a table."""
  rows = layout_rows(mesh, state)
  total = sum(row.num_bytes for row in rows)
  here = sum(row.bytes_per_device for row in rows)
  arrays = sum(row.arrays for row in rows)
  ratio = f"1/{total / max(here, 1):.2f} of the whole" if here < total else "the whole"
  lines = [f"{'state':<11}{'layout':<22}{'arrays':>7}{'MB':>10}{'MB/device':>13}"]
  for row in rows:
    lines.append(_layout_line(row.part, row.how, row.arrays, row.num_bytes, row.bytes_per_device))
  return [*lines, f"{_layout_line('total', '', arrays, total, here)}  {ratio}"]


def describe_preview(mesh: Mesh, state: Any) -> str:
  """Format the line of a preview: the state with the average that samples are drawn with."""
  rows = layout_rows(mesh, state)
  rows += [row for row in rows if row.part == "params"]
  arrays, total = sum(row.arrays for row in rows), sum(row.num_bytes for row in rows)
  here = sum(row.bytes_per_device for row in rows)
  line = _layout_line("preview", "total + average", arrays, total, here)
  return f"{line}  and its images"


def _layout_line(part: str, how: str, arrays: int, total: int, here: int) -> str:
  return f"{part:<11}{how:<22}{arrays:>7,}{total / 1e6:>10,.1f}{here / 1e6:>13,.1f}"


def check_batch_size(
  batch_size: int, mesh: Mesh, num_microbatches: int = 1, flag: str = ""
) -> None:
  """Raise an error unless the devices (times the microbatches) divide a global batch.

  Raises:
    UserError: they do not; the message has the nearest valid sizes.
  """
  shards = num_batch_shards(mesh)
  unit = shards * num_microbatches
  if batch_size < 1 or batch_size % unit:
    low, high = batch_size // unit * unit, (batch_size // unit + 1) * unit
    near = " or ".join(f"`{flag}={n}`" for n in (low, high) if n > 0)
    groups = "device(s)" if mesh.size == shards else f"groups of {mesh.shape['tensor']} devices"
    shared = f"{shards} {groups}" + (
      f" x {num_microbatches} microbatches" if num_microbatches > 1 else ""
    )
    raise UserError(f"{flag}={batch_size} is not divisible by {shared}; use {near}")


def local_rows(mesh: Mesh, batch_size: int) -> Int[np.ndarray, "L"]:
  """Return the rows of a global batch that this process's devices hold, ascending."""
  places = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
  everything = np.arange(batch_size)
  return np.unique(np.concatenate([everything[index] for index in places.values() if index]))


def put_batch(batch: Any, mesh: Mesh) -> Any:
  """Send this process's rows of a global batch (see `local_rows`) to its devices.

  Args:
    batch: tree of arrays, e.g. a Batch.
    mesh: device mesh.
  """
  layout = batch_sharding(mesh)
  if jax.process_count() == 1:
    return jax.device_put(batch, layout)
  shards = num_batch_shards(mesh)
  here = local_rows(mesh, shards)  # the shards that this process holds

  def put(x: np.ndarray) -> jax.Array:
    size = len(x) // len(here)

    def part(index):
      first = int(np.searchsorted(here, (index[0].start or 0) // size)) * size
      return x[first : first + size]

    return jax.make_array_from_callback((size * shards, *x.shape[1:]), layout, part)

  return jax.tree.map(put, batch)


def put_rows(x: Any, mesh: Mesh) -> jax.Array:
  """Split a host array that every process holds in full over the devices, by rows."""
  x = np.asarray(x)
  return jax.make_array_from_callback(x.shape, batch_sharding(mesh), lambda index: x[index])


def put_everywhere(tree: Any, mesh: Mesh) -> Any:
  """Copy host arrays that are equal on every process to every device, whole."""

  def put(x: Any) -> jax.Array:
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, replicated(mesh), lambda index: x[index])

  return jax.tree.map(put, tree)


def fetch(x: Any) -> np.ndarray:
  """Return the whole of an array as a host array on every process."""
  if not (x.is_fully_addressable or x.is_fully_replicated):
    x = _to_all(x.sharding.mesh)(x)
  array = np.asarray(x)
  watchdog.beat()
  return array


@functools.cache
def _to_all(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
  return jax.jit(lambda x: x, out_shardings=replicated(mesh))
