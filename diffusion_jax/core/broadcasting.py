"""Arithmetic over examples of any shape: all axes after the batch axis are data."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float


def expand(coefficient: Any, like: Any) -> Any:
  """Reshape one number per example [B] to [B, 1, ...], for arithmetic with `like` [B ...]."""
  return coefficient.reshape(len(coefficient), *(1,) * (like.ndim - 1))


def dims(x: Any) -> tuple[int, ...]:
  """Return all axes but the first."""
  return tuple(range(1, x.ndim))


def sum_dims(x: Float[Array, "B ..."]) -> Float[Array, "B"]:
  """Return the sum over the dimensions of each example."""
  return jnp.sum(x, axis=dims(x))


def mean_dims(x: Float[Array, "B ..."]) -> Float[Array, "B"]:
  """Return the mean over the dimensions of each example."""
  return jnp.mean(x, axis=dims(x))
