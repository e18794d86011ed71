"""Sum gradients of microbatches on each replica, and over the replicas once per step.

The gradient of a parameter that all devices share is a sum over all examples, and the compiler
takes it over the devices wherever it is computed: once per microbatch. Here each replica gets a
copy of its own, a row of [R ...] that is split over them, and computes the network of its own
examples with it. Rows are summed over the microbatches in place, and over the replicas after the
last one.

A replica is what holds a whole state: one device, or the devices over which `fsdp` splits it. These
reduce each microbatch among themselves, to sums that are split as the state is. Sums of whole
gradients would take more room than accumulation saves.

Only the network is computed in this way. Its loss, the times, the noise and a loss's state are
those of the whole microbatch, and the network's dropout draws the rows of the whole's.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import random as prng
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, UInt32

from diffusion_jax.parallel import sharding
from diffusion_jax.types import Key, Params


class Copies(NamedTuple):
  """Each parameter's copies, one per replica.

  Attributes:
    mesh: the devices.
    rows: id of a parameter -> its copies [S ...].
  """

  mesh: Mesh
  rows: dict[int, Array]


class _NotRows(Exception):
  """Raised if a network's output does not have a row per example."""


_copies: ContextVar[Copies | None] = ContextVar("copies", default=None)


def copies_of(mesh: Mesh, params: Params) -> Params:
  """Return a copy [R ...] of each parameter for each of the R replicas.

  A device stores one copy, which replaces the parameter.
  """
  num = num_replicas(mesh)
  copies = jax.tree.map(lambda p: jnp.broadcast_to(p, (num, *p.shape)), params)
  return _by_rows(mesh, copies, sharding.compute_shardings)


def split_rows(mesh: Mesh, sums: Params) -> Params:
  """Constrain gradients [R ...] to one row per replica, split over its devices as its state."""
  return _by_rows(mesh, sums, sharding.state_shardings)


def _by_rows(mesh: Mesh, arrays: Params, layout_of: Callable[[Mesh, Params], Params]) -> Params:
  shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), arrays)
  axes = _replica_axes(mesh)
  layout = jax.tree.map(lambda s: NamedSharding(mesh, P(axes, *s.spec)), layout_of(mesh, shapes))
  return jax.lax.with_sharding_constraint(arrays, layout)


def _replica_axes(mesh: Mesh) -> tuple[str, ...]:
  """Return the mesh axes along which the state is replicated."""
  return tuple(axis for axis in mesh.axis_names if axis not in ("fsdp", "tensor"))


def num_replicas(mesh: Mesh) -> int:
  """Return the number of replicas of the state on the mesh."""
  return math.prod(mesh.shape[axis] for axis in _replica_axes(mesh))


@contextlib.contextmanager
def computing_with(mesh: Mesh, params: Params, copies: Params) -> Iterator[None]:
  """Trace networks in the block with copies of their parameters, where they are such copies.

  Args:
    mesh: device mesh.
    params: the parameters, the very arrays that networks in the block are given.
    copies: their copies, from `copies_of`.
  """
  rows = zip(jax.tree.leaves(params), jax.tree.leaves(copies), strict=True)
  token = _copies.set(Copies(mesh, {id(leaf): row for leaf, row in rows}))
  try:
    yield
  finally:
    _copies.reset(token)


def apply_on_each_device(
  apply: Callable[..., Any], params: Params, *inputs: Any, **options: Any
) -> Any:
  """Apply a network, inside `computing_with` on each replica to the examples that it holds.

  Elsewhere, and for parameters without copies, this is `apply(params, *inputs, **options)`.

  Args:
    apply: (params, inputs [B ...], ...) -> outputs [B ...].
    params: parameters.
    inputs, options: the other arguments; arrays of another length are for all examples.
  """
  copies, whole = _copies.get(), functools.partial(apply, params, *inputs, **options)
  if copies is None or not any(id(leaf) in copies.rows for leaf in jax.tree.leaves(params)):
    return whole()
  try:
    return _mapped(apply, copies, params, inputs, options)
  except _NotRows:
    return whole()


def _mapped(apply: Callable[..., Any], copies: Copies, params: Params, inputs: Any, options: Any):
  """Compute `apply` by `shard_map`; axes within a replica are left to the compiler."""
  mesh = copies.mesh
  within = [axis for axis in ("fsdp", "tensor") if mesh.shape[axis] > 1]
  axes = tuple(axis for axis in mesh.axis_names if axis not in within)
  num, size = num_replicas(mesh), len(inputs[0])
  if size % num:
    raise _NotRows
  leaves, tree = jax.tree.flatten((inputs, options))
  is_key = [_is_one_key(leaf) for leaf in leaves]
  has_rows = [np.ndim(leaf) > 0 and np.shape(leaf)[0] == size for leaf in leaves]
  given = [jax.random.key_data(x) if key else x for x, key in zip(leaves, is_key, strict=True)]
  given_weights, of_params = jax.tree.flatten(params)
  copied = [id(weight) in copies.rows for weight in given_weights]
  weights: list[Any] = [copies.rows.get(id(weight), weight) for weight in given_weights]

  def local(shard: UInt32[Array, "1"], weights: list[Array], given: list[Any]) -> Any:
    own = [w[0] if has_copy else w for w, has_copy in zip(weights, copied, strict=True)]
    values = [
      _own_key(x, shard[0], num, size // num) if key else x
      for x, key in zip(given, is_key, strict=True)
    ]
    inputs, options = jax.tree.unflatten(tree, values)
    outputs = apply(jax.tree.unflatten(of_params, own), *inputs, **options)
    if any(np.shape(x)[:1] != (size // num,) for x in jax.tree.leaves(outputs)):
      raise _NotRows
    return outputs

  specs = [[P(axes) if split else P() for split in part] for part in (copied, has_rows)]
  mapped = jax.shard_map(
    local, mesh=mesh, in_specs=(P(axes), *specs), out_specs=P(axes), axis_names=set(axes),
    check_vma=False,
  )  # fmt: skip
  return mapped(jnp.arange(num, dtype=jnp.uint32), weights, given)


# ---- The draws of a network's dropout, for the rows of one device --------------------------------


def _is_one_key(leaf: Any) -> bool:
  """Return whether an argument is one key for all examples."""
  if not (isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)):
    return False
  if jax.random.key_impl(leaf) != "threefry2x32":
    raise _NotRows  # another generator does not number its draws
  return leaf.ndim == 0


def _own_key(data: UInt32[Array, "2"], shard: UInt32[Array, ""], num: int, size: int) -> Key:
  """Return a key whose draws [b ...] are the rows of one device of the key's draws [S b ...]."""
  return jax.random.wrap_key_data(jnp.append(data, shard), impl=_rows_of(num, size))


@functools.cache
def _rows_of(num: int, size: int) -> Any:
  """Return JAX's generator for one of `num` devices with `size` examples each.

  A draw's elements are numbered, so a device's rows are those from `shard * size` rows on. A draw
  that has no rows is the same on every device, as for the whole.
  """
  whole = prng.threefry_prng_impl

  def kept(function: Callable[..., Array]) -> Callable[..., Array]:
    def call(key: Array, *args: Any) -> Array:
      new = function(key[:2], *args)
      shard = jnp.broadcast_to(key[2:], (*new.shape[:-1], 1))
      return jnp.concatenate([new, shard], axis=-1)

    return call

  def bits(key: UInt32[Array, "3"], width: int, shape: tuple[int, ...]) -> Array:
    has_rows = shape[:1] == (size,) or (len(shape) > 1 and shape[0] % size == 0)
    if not has_rows:
      return whole.random_bits(key[:2], width, shape)
    here = math.prod(shape)
    starts = here * np.arange(num, dtype=np.uint64)
    high, low = (jnp.asarray(half, jnp.uint32)[key[2]] for half in np.divmod(starts, 2**32))
    counts = jax.lax.iota(jnp.uint32, here).reshape(shape) + low
    high = high + (counts < low).astype(jnp.uint32)
    left, right = prng.threefry2x32_p.bind(key[0], key[1], high, counts)
    if width == 64:
      return (left.astype(jnp.uint64) << 32) | right.astype(jnp.uint64)
    return (left ^ right).astype(f"uint{width}")

  def seed(number: Array) -> Array:
    return jnp.append(whole.seed(number), jnp.uint32(0))

  return prng.define_prng_impl(
    key_shape=(3,), seed=seed, split=kept(whole.split), random_bits=bits,
    fold_in=kept(whole.fold_in), name="threefry_rows",
  )  # fmt: skip
