"""Weights of a network from NumPy, since each random array of an `init` is dear to compile."""

import jax
import numpy as np
from numpy_draws import moved


def drawn_weights(init, *args, std=0.1):
  """Weights of the shapes that `init(key, *args)` has: near one for scales, near zero for others.

  So every part of the network has an effect. Whoever asks how weights start calls `init` itself.
  """
  shapes = jax.eval_shape(init, jax.random.key(0), *args)
  return moved(jax.tree.map_with_path(_start, shapes), std)


def _start(path, leaf):
  return np.full(leaf.shape, path[-1].key == "scale", np.float32)
