"""Random arrays from NumPy, since jax.random compiles a program for every shape."""

import jax
import numpy as np


def normal(seed, *shape):
  """Standard normal numbers, float32."""
  return np.random.default_rng(seed).standard_normal(shape, np.float32)


def moved(params, std=0.1, seed=9):
  """Weights moved away from their start at zero, so that every part of a network has an effect."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda p: np.asarray(p) + np.float32(std) * rng.standard_normal(p.shape, np.float32), params
  )
