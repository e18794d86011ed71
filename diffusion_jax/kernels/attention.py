"""Softmax attention: the plain form, and fused kernels that never store the N x N scores.

`cudnn` is cuDNN's flash attention on NVIDIA GPUs, `splash` Pallas' on TPUs. Both are those of JAX.
They have a backward pass and no forward-mode derivative: code that needs one, such as the
divergence of a likelihood, is traced inside `plain_only()`.
"""

import contextlib
import functools
import math
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from diffusion_jax.parallel.placement import placed_mesh, platform_at_hand
from diffusion_jax.types import UserError

Implementation = Literal["auto", "xla", "cudnn", "splash"]

HALF_TYPES = ("bfloat16", "float16")
CUDNN_UNIT = 8
"""cuDNN takes head widths and lengths that are multiples of this."""

AMPERE, HOPPER = 8.0, 9.0
"""Compute capabilities of the first GPUs of their generations."""

CUDNN_MAX_WIDTH = 128
"""Maximum width of a head before Hopper, where it is twice that."""

SPLASH_BLOCKS = (512, 256, 128)
"""Tile lengths of splash attention; inputs are padded to a multiple of the smallest."""

_is_plain: ContextVar[bool] = ContextVar("is_plain", default=False)


@contextlib.contextmanager
def plain_only() -> Iterator[None]:
  """Trace everything in the block with the plain form, which has all derivatives."""
  token = _is_plain.set(True)
  try:
    yield
  finally:
    _is_plain.reset(token)


def attend(
  query: Float[Array, "B N D"],
  key: Float[Array, "B M D"],
  value: Float[Array, "B M D"],
  num_heads: int,
  implementation: Implementation = "auto",
) -> Float[Array, "B N D"]:
  """Compute softmax attention of `num_heads` channel slices, scaled by (D / heads)^-1/2.

  Scores and softmax are float32; the products' inputs and the result have the type of the values.

  Args:
    query, key, value: inputs of one type.
    num_heads: number of heads.
    implementation: xla: the plain form; cudnn or splash: that kernel; auto: the device's kernel if
      it takes these shapes and this type, otherwise the plain form.

  Raises:
    UserError: the kernel that was asked for does not take the inputs, or is not of this device.
  """
  kind = _chosen(query, value, num_heads, implementation)
  if kind == "xla":
    return _plain(query, key, value, num_heads)
  heads = [x.reshape(*x.shape[:2], num_heads, -1) for x in (query, key, value)]
  h = _cudnn(*heads) if kind == "cudnn" else _splash(heads)
  return h.reshape(query.shape)


def refusal(implementation: Implementation, platform: str, dtype: str, width: int) -> str | None:
  """Return why a kernel cannot compute attention, or None if it can.

  Args:
    implementation: cudnn or splash.
    platform: platform of the devices, e.g. "gpu".
    dtype: type of the values.
    width: channels of a head.
  """
  if implementation == "splash":
    return None if platform == "tpu" else f"needs a TPU, and the devices are of {platform!r}"
  capability = nvidia_capability() if platform in ("gpu", "cuda") else 0.0
  if capability < AMPERE:
    return f"needs an NVIDIA GPU since Ampere, and the devices are of {platform!r}"
  if dtype not in HALF_TYPES:
    return f"needs bfloat16, and the network computes in {dtype}"
  limit = CUDNN_MAX_WIDTH * (1 if capability < HOPPER else 2)
  if width % CUDNN_UNIT or width > limit:
    return f"needs heads of at most {limit} channels in multiples of {CUDNN_UNIT}, not {width}"
  return None


def _chosen(query: Array, value: Array, num_heads: int, implementation: Implementation) -> str:
  if _is_plain.get() or implementation == "xla":
    return "xla"
  dtype, width = str(value.dtype), query.shape[-1] // num_heads
  platform = platform_at_hand()
  if implementation != "auto":
    if why := refusal(implementation, platform, dtype, width):
      raise UserError(f"`model.attention={implementation}` {why}; set `model.attention=auto`")
    return implementation
  if refusal("cudnn", platform, dtype, width) is None:
    return "cudnn"
  fits = platform == "tpu" and _split(query.shape[0], num_heads) is not None
  return "splash" if fits else "xla"


def _plain(query: Array, key: Array, value: Array, num_heads: int) -> Array:
  if num_heads == 1:
    return _one_head(query, key, value)
  query, key, value = (x.reshape(*x.shape[:2], num_heads, -1) for x in (query, key, value))
  h = jax.vmap(_one_head, in_axes=2, out_axes=2)(query, key, value)
  return h.reshape(*h.shape[:2], -1)


def _one_head(query: Array, key: Array, value: Array) -> Array:
  scores = jnp.einsum("bqc,bkc->bqk", query, key, preferred_element_type=jnp.float32)
  weights = jax.nn.softmax(scores * query.shape[-1] ** -0.5, axis=-1).astype(value.dtype)
  return jnp.einsum("bqk,bkc->bqc", weights, value)


def _padded(x: Array, unit: int, axis: int) -> Array:
  short = -x.shape[axis] % unit
  return jnp.pad(x, [(0, short if i == axis else 0) for i in range(x.ndim)]) if short else x


def _cudnn(query: Array, key: Array, value: Array) -> Array:
  """Attend over [B N H D] with cuDNN; its backward pass refuses some odd lengths."""
  num, num_keys = query.shape[1], key.shape[1]
  padded = [_padded(x, CUDNN_UNIT, 1) for x in (query, key, value)]
  lengths: dict[str, Array] = {}
  if padded[1].shape[1] != num_keys:
    whole = functools.partial(jnp.full, (len(query),), dtype=jnp.int32)
    lengths = {"query_seq_lengths": whole(num), "key_value_seq_lengths": whole(num_keys)}
  h: Any = jax.nn.dot_product_attention(*padded, implementation="cudnn", **lengths)
  return h[:, :num]


def _splash(heads: Sequence[Array], interpret: bool = False) -> Array:
  """Attend over [B N H D] with splash attention, each device over its own examples and heads."""
  local = functools.partial(_splash_local, interpret=interpret)
  mesh, (batch, _, num_heads, _) = placed_mesh(), heads[0].shape
  split = _split(batch, num_heads)
  if split is None:
    raise UserError(
      f"`model.attention=splash`: {batch} examples cannot be split over "
      f"{jax.device_count() if mesh is None else mesh.size} devices; set `model.attention=auto`"
    )
  query, key, value = heads
  mapped = _mapped_axes()
  axes = {axis for axis in mesh.axis_names if axis not in mapped} if mesh else set()
  if mesh is None or all(mesh.shape[axis] == 1 for axis in axes):
    return local(query, key, value)
  over = jax.shard_map(
    local, mesh=None if mapped else mesh, in_specs=(split,) * 3, out_specs=split, axis_names=axes,
    check_vma=False,
  )  # fmt: skip
  return over(query, key, value)


def _mapped_axes() -> tuple[str, ...]:
  """Return the mesh axes that an enclosing `shard_map` already maps over."""
  return tuple(jax.sharding.get_abstract_mesh().manual_axes)


def _split(batch: int, num_heads: int) -> P | None:
  """Return how [B N H D] is split over the mesh; None if the batch does not fit it."""
  mesh = placed_mesh()
  if mesh is None:
    return P() if jax.device_count() == 1 else None
  examples = tuple(axis for axis in mesh.axis_names if axis not in ("tensor", *_mapped_axes()))
  num = math.prod(mesh.shape[axis] for axis in examples)
  heads = "tensor" if num_heads % mesh.shape.get("tensor", 1) == 0 else None
  return None if batch % num else P(examples, None, heads, None)


def _splash_local(query: Array, key: Array, value: Array, interpret: bool) -> Array:
  from jax.experimental.pallas.ops.tpu import splash_attention as splash

  num, num_keys, scale = query.shape[1], key.shape[1], query.shape[-1] ** -0.5
  query, key, value = (
    _padded(x.swapaxes(1, 2), SPLASH_BLOCKS[-1], 2) for x in (query * scale, key, value)
  )
  rows, columns = query.shape[2], key.shape[2]
  mask = splash.MultiHeadMask([splash.FullMask((rows, columns))] * query.shape[1])
  kernel = splash.make_splash_mha(
    mask, head_shards=1, q_seq_shards=1, interpret=interpret, block_sizes=_tiles(rows, columns)
  )
  real = lambda length, count: (jnp.arange(length) < count).astype(jnp.int32)  # noqa: E731
  segments = splash.SegmentIds(real(rows, num), real(columns, num_keys))
  h: Any = jax.vmap(kernel, in_axes=(0, 0, 0, None))(query, key, value, segments)
  return h[:, :, :num].swapaxes(1, 2).astype(value.dtype)


def _tiles(rows: int, columns: int) -> Any:
  """Return the largest tiles that divide both lengths; the defaults are the smallest."""
  from jax.experimental.pallas.ops.tpu import splash_attention as splash

  q, kv = (next(n for n in SPLASH_BLOCKS if length % n == 0) for length in (rows, columns))
  return splash.BlockSizes(
    block_q=q, block_kv=kv, block_kv_compute=kv, block_q_dkv=q, block_kv_dkv=kv,
    block_kv_dkv_compute=kv, block_q_dq=q, block_kv_dq=kv,
  )  # fmt: skip


@functools.cache
def nvidia_capability() -> float:
  """Return the lowest compute capability of this machine's NVIDIA GPUs; 0 without one."""
  try:
    return min(float(device.compute_capability) for device in jax.local_devices(backend="gpu"))
  except (RuntimeError, AttributeError, ValueError):  # AMD's are texts such as gfx90a
    return 0.0
