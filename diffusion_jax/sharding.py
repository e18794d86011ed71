"""The device mesh, and how batches and state are laid out over it.

Axes: `data` splits the batch, `fsdp` splits the batch and the state. Parallelism is left to the
compiler: functions are jitted over NamedShardings and models carry no annotations.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from diffusion_jax.types import Batch, UserError

BATCH_AXES = ("data", "fsdp")
MIN_SHARDED_SIZE = 4096
"""Leaves with fewer elements are replicated: splitting them costs more than it saves."""


@dataclasses.dataclass(frozen=True)
class MeshShape:
  """Devices along each axis; -1 takes all that the other axis leaves.

  Attributes:
    data: replicas of the state.
    fsdp: shards of the state.
  """

  data: int = -1
  fsdp: int = 1

  def __post_init__(self):
    for name, size in (("data", self.data), ("fsdp", self.fsdp)):
      if size != -1 and size < 1:
        raise ValueError(f"{name}={size} must be -1 (all that is left) or at least 1")
    if self.data == self.fsdp == -1:
      raise ValueError("only one of data and fsdp may be -1")


def create_mesh(shape: MeshShape, devices: Sequence[Any] | None = None) -> Mesh:
  """Arranges the devices (all of them by default) into a mesh.

  Raises:
    UserError: the shape does not use the devices exactly.
  """
  devices = list(jax.devices() if devices is None else devices)
  sizes = [shape.data, shape.fsdp]
  if -1 in sizes:
    sizes[sizes.index(-1)] = max(len(devices) // (sizes[0] * sizes[1] * -1), 1)
  if math.prod(sizes) != len(devices):
    raise UserError(
      f"mesh data={shape.data}, fsdp={shape.fsdp} does not fit {len(devices)} device(s); "
      f"their product must be {len(devices)}, e.g. --config.mesh.data=-1 --config.mesh.fsdp=1"
    )
  return jax.make_mesh((*sizes, 1), (*BATCH_AXES, "tensor"), (AxisType.Auto,) * 3, devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Splits the leading axis over every device that holds examples."""
  return NamedSharding(mesh, P(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
  """The whole array on every device."""
  return NamedSharding(mesh, P())


def state_shardings(mesh: Mesh, tree: Any) -> Any:
  """A sharding for each leaf of a state: its largest axis that `fsdp` divides, else replicated.

  Args:
    mesh: from `create_mesh`.
    tree: arrays or ShapeDtypeStructs.
  """
  return jax.tree.map(lambda leaf: NamedSharding(mesh, _spec(leaf.shape, mesh)), tree)


def as_target(shapes: Any, layout: Any) -> Any:
  """ShapeDtypeStructs that say where each leaf of a checkpoint goes.

  Args:
    shapes: tree of arrays or ShapeDtypeStructs.
    layout: the same tree of shardings.
  """
  return jax.tree.map(
    lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes, layout
  )


def _spec(shape: tuple[int, ...], mesh: Mesh) -> P:
  shards = mesh.shape["fsdp"]
  axes = [i for i, n in enumerate(shape) if n % shards == 0]
  if shards == 1 or not axes or math.prod(shape) < MIN_SHARDED_SIZE:
    return P()
  largest = max(axes, key=lambda i: shape[i])
  return P(*(("fsdp" if i == largest else None) for i in range(len(shape))))


def check_batch_size(batch_size: int, mesh: Mesh, parts: int = 1, flag: str = "") -> None:
  """Refuses a global batch that the devices (times `parts` microbatches) do not divide.

  Raises:
    UserError: with the nearest sizes that would do.
  """
  unit = mesh.size * parts
  if batch_size < 1 or batch_size % unit:
    low, high = batch_size // unit * unit, (batch_size // unit + 1) * unit
    near = " or ".join(f"--config.{flag}={n}" for n in (low, high) if n > 0)
    shared = f"{mesh.size} device(s)" + (f" x {parts} microbatches" if parts > 1 else "")
    raise UserError(f"{flag}={batch_size} is not divisible by {shared}; use {near}")


def put_batch(batch: Batch, mesh: Mesh) -> Batch:
  """Sends this process's slice of a global batch to its devices."""
  sharding = batch_sharding(mesh)
  return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def put_rows(x: Any, mesh: Mesh) -> jax.Array:
  """Splits a host array that every process holds in full over the devices, by rows."""
  return jax.device_put(x, batch_sharding(mesh))


def fetch(x: Any) -> np.ndarray:
  """The whole of an array on the host of every process."""
  if x.is_fully_addressable or x.is_fully_replicated:
    return np.asarray(x)
  everywhere = NamedSharding(x.sharding.mesh, P())
  return np.asarray(jax.jit(lambda a: a, out_shardings=everywhere)(x))
