"""Checksums of arrays, computed on the devices and independent of the layout.

Orbax notices a truncated file but not flipped bits, which would restore as wrong numbers.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, UInt32

from diffusion_jax.core.trees import named_leaves

SEEDS = (0x243F6A88, 0x85A308D3)
"""Two independent sums of 32 bits each: hexadecimal digits of pi."""


def checksums(tree: Any) -> dict[str, tuple[int, int]]:
  """One pair of 32-bit numbers a leaf, by its path.

  A leaf's sum is that of mix(word + mix(position + seed)) over its 32-bit words, modulo 2^32, with
  the finaliser of MurmurHash3 as `mix`. Since a sum does not depend on the order of its terms, the
  sharding of the array does not matter.
  """
  leaves = named_leaves(tree)
  sums = jax.device_get([_in_turn(_sums(leaf)) for leaf in leaves.values()])
  return {name: (int(a), int(b)) for name, (a, b) in zip(leaves, sums, strict=True)}


def _in_turn(x: Array) -> Array:
  """Wait for a result where programs in flight could wait for each other for ever.

  The CPU devices of one process run what is dispatched at once; the sums of several leaves, split
  over several processes, then meet in another order on each.
  """
  if jax.process_count() > 1 and jax.default_backend() == "cpu":
    jax.block_until_ready(x)
  return x


@jax.jit
def _sums(leaf: Array) -> UInt32[Array, "2"]:
  """Compiled once a shape and layout: a state has few of them and many leaves."""
  return jnp.stack([_sum(leaf, seed) for seed in SEEDS])


def _sum(leaf: Array, seed: int) -> UInt32[Array, ""]:
  words = _words(leaf)
  terms = _mix(words + _mix(_positions(words.shape) + jnp.uint32(seed)))
  return jnp.sum(terms, dtype=jnp.uint32)


def _words(leaf: Array) -> UInt32[Array, "..."]:
  """The bits of each element; elements of 8 bytes give a last axis of two words."""
  if leaf.dtype == jnp.bool_:
    return leaf.astype(jnp.uint32)
  bits = {1: jnp.uint8, 2: jnp.uint16}.get(leaf.dtype.itemsize, jnp.uint32)
  return jax.lax.bitcast_convert_type(leaf, bits).astype(jnp.uint32)


def _positions(shape: tuple[int, ...]) -> UInt32[Array, "..."]:
  """The place of each element in row-major order, without a reshape that would move data."""
  strides = [math.prod(shape[i + 1 :]) % 2**32 for i in range(len(shape))]
  iota = partial(jax.lax.broadcasted_iota, jnp.uint32, shape)
  parts = [iota(i) * jnp.uint32(stride) for i, stride in enumerate(strides)]
  return sum(parts, jnp.zeros(shape, jnp.uint32))


def _mix(x: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
  x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
  return x ^ (x >> 16)
