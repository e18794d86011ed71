"""Checksums of arrays, computed on the devices and independent of the layout.

Orbax notices a truncated file but not flipped bits, which would be restored as wrong numbers.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, UInt32

from diffusion_jax.core.trees import named_leaves

SEEDS = (0x243F6A88, 0x85A308D3)
"""Seeds of two independent 32-bit sums: hexadecimal digits of pi."""


def checksums(tree: Any) -> dict[str, tuple[int, int]]:
  """Compute a pair of 32-bit checksums per leaf, by its path.

  A leaf's checksum is the sum of mix(word + mix(position + seed)) over its 32-bit words, modulo
  2^32, with the finaliser of MurmurHash3 as `mix`. A sum does not depend on the order of its terms,
  so the sharding of the array does not matter.
  """
  leaves = named_leaves(tree)
  sums = jax.device_get([_in_turn(_sums(leaf)) for leaf in leaves.values()])
  return {name: (int(a), int(b)) for name, (a, b) in zip(leaves, sums, strict=True)}


def _in_turn(x: Array) -> Array:
  """Wait for a result if programs in flight could wait for each other for ever.

  The CPU devices of one process run several programs at once, on as many threads as the machine has
  cores. The sums of several split leaves would then meet in a different order on each process, or
  wait in the threads that the last of them needs.
  """
  if jax.device_count() > 1 and jax.default_backend() == "cpu":
    jax.block_until_ready(x)
  return x


@jax.jit
def _sums(leaf: Array) -> UInt32[Array, "2"]:
  """Sum one leaf; compiled once per shape and layout, of which a state has few."""
  return jnp.stack([_sum(leaf, seed) for seed in SEEDS])


def _sum(leaf: Array, seed: int) -> UInt32[Array, ""]:
  words = _words(leaf)
  terms = _mix(words + _mix(_positions(words.shape) + jnp.uint32(seed)))
  return jnp.sum(terms, dtype=jnp.uint32)


def _words(leaf: Array) -> UInt32[Array, "..."]:
  """Return the bits of each element; elements of 8 bytes have a last axis of two words."""
  if leaf.dtype == jnp.bool_:
    return leaf.astype(jnp.uint32)
  bits = {1: jnp.uint8, 2: jnp.uint16}.get(leaf.dtype.itemsize, jnp.uint32)
  return jax.lax.bitcast_convert_type(leaf, bits).astype(jnp.uint32)


def _positions(shape: tuple[int, ...]) -> UInt32[Array, "..."]:
  """Return the row-major index of each element, without a reshape that would move data."""
  strides = [math.prod(shape[i + 1 :]) % 2**32 for i in range(len(shape))]
  iota = partial(jax.lax.broadcasted_iota, jnp.uint32, shape)
  offsets = [iota(i) * jnp.uint32(stride) for i, stride in enumerate(strides)]
  return sum(offsets, jnp.zeros(shape, jnp.uint32))


def _mix(x: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
  x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
  return x ^ (x >> 16)
