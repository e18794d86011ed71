"""Randomness that belongs to an example: the same on any number of devices and hosts.

Nothing stores a key. Every draw of example i derives from fold_in(key, i), so that neither the
batch it sits in nor the device that holds it changes its noise.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from diffusion_jax.types import Key, Keys


def example_keys(key: Key, index: Integer[Array | np.ndarray, "B"]) -> Keys:
  """One key an example [B], from a key of the step or seed and the example's global number."""
  return jax.vmap(lambda i: jax.random.fold_in(key, i))(index)


def fold_in(keys: Keys, number: int | Integer[Array, ""]) -> Keys:
  """Derives the `number`-th key of each example."""
  return jax.vmap(lambda k: jax.random.fold_in(k, number))(keys)


def normal(keys: Keys, shape: tuple[int, ...]) -> Float[Array, "B ..."]:
  """Standard normal noise of `shape` for each example."""
  return jax.vmap(lambda k: jax.random.normal(k, shape, jnp.float32))(keys)


def uniform(keys: Keys) -> Float[Array, "B"]:
  """One number in [0, 1) for each example."""
  return jax.vmap(lambda k: jax.random.uniform(k, (), jnp.float32))(keys)
