"""Layers of the published JAX networks in NumPy float64, with weights that are drawn when asked.

A network that is written with `Drawn` defines the names and shapes of its checkpoint by itself.
"""

import numpy as np
from numpy_draws import normal


class Drawn:
  """Tensors by name, float32; one that does not exist yet is drawn.

  Attributes:
    tensors: those asked so far.
  """

  def __init__(self):
    self.tensors = {}

  def __call__(self, name, *shape, mean=0.0, std=None):
    """Return a tensor in float64; the usual deviation keeps the size of the signal."""
    if name not in self.tensors:
      usual = 0.1 if len(shape) == 1 else 1 / np.sqrt(np.prod(shape[:-1]))
      std = usual if std is None else std
      values = mean + std * normal(len(self.tensors), *shape)
      self.tensors[name] = values.astype(np.float32)
    assert self.tensors[name].shape == shape, name
    return np.float64(self.tensors[name])


def swish(x):
  return x / (1 + np.exp(-x))


def sinusoids(t, dim):
  """[sin, cos] at dim / 2 frequencies from 1 to 1/10000."""
  frequencies = 10000.0 ** (-np.arange(dim // 2) / (dim // 2 - 1))
  angles = np.float64(t)[:, None] * frequencies
  return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def dense(w, name, x, features, bias=True, kernel="kernel", offset="bias"):
  y = x @ w(f"{name}/{kernel}", x.shape[-1], features)
  return y + w(f"{name}/{offset}", features) if bias else y


def nin(w, name, x, features):
  return dense(w, name, x, features, kernel="W", offset="b")


def conv(x, kernel, stride=1, pad=(1, 1)):
  size = kernel.shape[0]
  x = np.pad(x, [(0, 0), pad, pad, (0, 0)])
  height, width = (side - size + 1 for side in x.shape[1:3])
  parts = [
    x[:, i : i + height : stride, j : j + width : stride] @ kernel[i, j]
    for i in range(size) for j in range(size)
  ]  # fmt: skip
  return sum(parts)


def conv3(w, name, x, features, **options):
  kernel = w(f"{name}/kernel", 3, 3, x.shape[-1], features)
  return conv(x, kernel, **options) + w(f"{name}/bias", features)


def conv1(w, name, x, features):
  return x @ w(f"{name}/kernel", 1, 1, x.shape[-1], features)[0, 0] + w(f"{name}/bias", features)


def group_norm(w, name, x, groups, axes=1):
  """`axes`: number of axes of the stored scale: 1, or 4 in flax before 0.4."""
  parts = x.reshape(*x.shape[:-1], groups, -1)
  centred = parts - parts.mean((1, 2, 4), keepdims=True)
  normed = (centred / np.sqrt((centred**2).mean((1, 2, 4), keepdims=True) + 1e-6)).reshape(x.shape)
  shape = (*(1,) * (axes - 1), x.shape[-1])
  return normed * w(f"{name}/scale", *shape, mean=1.0) + w(f"{name}/bias", *shape)


def attend(q, k, v):
  """One head over all pixels."""
  flat = [a.reshape(len(a), -1, a.shape[-1]) for a in (q, k, v)]
  scores = flat[0] @ flat[1].transpose(0, 2, 1) / np.sqrt(q.shape[-1])
  weights = np.exp(scores - scores.max(-1, keepdims=True))
  return (weights / weights.sum(-1, keepdims=True) @ flat[2]).reshape(v.shape)


def nested_by_layer(flat):
  """Return the nested dicts of flax for tensors by path."""
  tree = {}
  for name, value in flat.items():
    *folders, leaf = name.split("/")
    node = tree
    for folder in folders:
      node = node.setdefault(folder, {})
    node[leaf] = value
  return tree
