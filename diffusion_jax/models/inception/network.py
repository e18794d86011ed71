"""The Inception network behind FID, Inception Score, KID, sFID and precision/recall.

It is the classifier of TensorFlow's archive inception-2015-12-05 (Szegedy et al. 2015, arXiv
1512.00567), whose features Heusel et al. 2017 (arXiv 1706.08500) compare. It differs from
torchvision's Inception-v3: the average pools do not count the padding, the last block pools by
maximum, there are 1008 classes, and images are resized as TensorFlow 1 did, inside the network.

`torch_port.from_torch` converts the published parameters to those of a faster network that
computes the same function.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Num

from diffusion_jax.types import Params, UserError

SIDE = 299
"""Side of the images inside the network, pixels."""

NUM_SPATIAL_CHANNELS = 7
"""Number of channels of the 17x17 map that sFID uses."""


class InceptionFeatures(NamedTuple):
  """The outputs that the metrics use.

  Attributes:
    pool: mean over positions of the last block; for FID, KID, precision and recall.
    spatial: first 7 channels of the 17x17 map after `Mixed_6d.branch1x1`, including its ReLU,
      flattened row by row with the channels innermost; for sFID. It is the tensor `mixed_6/conv:0`
      of the TensorFlow graph, sliced and flattened as in ADM's evaluator (Dhariwal and Nichol 2021,
      arXiv 2105.05233). In that graph a layer's nodes are Conv2D, batchnorm, CheckNumerics,
      control_dependency and last the activation, which has the layer's own name.
    logits: logits of the 1008 classes, without the bias; the Inception Score takes their softmax.
  """

  pool: Float[Array, "B 2048"]
  spatial: Float[Array, "B 2023"]
  logits: Float[Array, "B 1008"]


def apply(params: Params, images: Num[Array | np.ndarray, "B H W C"]) -> InceptionFeatures:
  """Return the features of a batch of images; pure, for use under `jax.jit`.

  Args:
    params: parameters from `from_torch`.
    images: values 0..255, integers or floats (not rescaled, not rounded); C is 3, or 1 for grey
      images, which are repeated.

  Raises:
    UserError: another number of channels.
  """
  if images.shape[-1] not in (1, 3):
    raise UserError(
      f"Inception takes images of 1 or 3 channels, these have {images.shape[-1]}; leave the "
      "Inception metrics out"
    )
  x = resize(jnp.asarray(images, params["fc"]["kernel"].dtype))
  x = jnp.repeat(x, 3 // x.shape[-1], axis=-1)
  x = _stem(params, (x - 128.0) / 128.0)
  for name in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
    x = _block_a(params[name], x)
  x = _block_b(params["Mixed_6a"], x)
  for name in ("Mixed_6b", "Mixed_6c"):
    x = _block_c(params[name], x)
  x = _block_c(params["Mixed_6d"], x)
  spatial = x[..., :NUM_SPATIAL_CHANNELS]  # the block's first branch is branch1x1
  x = _block_c(params["Mixed_6e"], x)
  x = _block_d(params["Mixed_7a"], x)
  for name in ("Mixed_7b", "Mixed_7c"):
    x = _block_e(params[name], x)
  pool = jnp.mean(x, axis=(1, 2))
  logits = jnp.dot(pool, params["fc"]["kernel"], precision=lax.Precision.HIGHEST)
  return InceptionFeatures(pool, spatial.reshape(spatial.shape[0], -1), logits)


def resize(images: Float[Array, "B H W C"], side: int = SIDE) -> Float[Array, "B side side C"]:
  """Resize bilinearly as TensorFlow 1: pixel i is at i * size / side, without smoothing.

  The result differs from other libraries by up to half a pixel, and is aliased when it shrinks, but
  the published figures use it. It is a float in the units of the input.
  """
  return _resize_axis(_resize_axis(images, 2, side), 1, side)


def _resize_axis(x: Float[Array, "B H W C"], axis: int, side: int) -> Float[Array, "B _ _ C"]:
  size = x.shape[axis]
  position = np.arange(side, dtype=np.float32) * np.float32(size / side)  # float32, as TensorFlow
  low = position.astype(np.int32)
  high = np.minimum(low + 1, size - 1)
  weight = jnp.expand_dims(jnp.asarray(position - low, x.dtype), [a for a in range(4) if a != axis])
  first, second = jnp.take(x, low, axis), jnp.take(x, high, axis)
  return first + (second - first) * weight


def _convolve(layer: Params, x: Array, strides: tuple[int, int], padding) -> Array:
  """Convolve with a bias; the padding is ((top, bottom), (left, right))."""
  y = lax.conv_general_dilated(
    x, layer["kernel"], strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"),
    precision=lax.Precision.HIGHEST,
  )  # fmt: skip
  return y + layer["bias"]


def _same(layer: Params, x: Array) -> Array:
  """Convolve to the same size, then apply ReLU."""
  height, width = layer["kernel"].shape[:2]
  padding = ((height // 2, height // 2), (width // 2, width // 2))
  return jax.nn.relu(_convolve(layer, x, (1, 1), padding))


def _valid(layer: Params, x: Array, stride: int = 1) -> Array:
  """Convolve without padding, then apply ReLU.

  On a CPU, XLA's convolution is two to three times slower without padding. So one row and one
  column of padding are added at the end, and the outputs that they affect are cut off.
  """
  height = (x.shape[1] - layer["kernel"].shape[0]) // stride + 1
  width = (x.shape[2] - layer["kernel"].shape[1]) // stride + 1
  y = _convolve(layer, x, (stride, stride), ((0, 1), (0, 1)))
  return jax.nn.relu(y[:, :height, :width])


def _max_pool(x: Array, stride: int) -> Array:
  """Take 3x3 maxima, without padding.

  Shifted copies are compared along one axis and then along the other, which is several times faster
  than `lax.reduce_window` on a CPU.
  """
  for axis in (1, 2):
    x = functools.reduce(jnp.maximum, _shifted(x, axis, stride))
  return x


def _average_pool(x: Array) -> Array:
  """Take 3x3 averages at the same size, over the positions that exist."""
  ones = np.ones((1, *x.shape[1:3], 1), x.dtype)
  return _sum_pool(x) / _sum_pool(ones)


def _sum_pool(x: Array | np.ndarray) -> Array:
  x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  for axis in (1, 2):
    x = functools.reduce(jnp.add, _shifted(x, axis, 1))
  return x


def _shifted(x: Array, axis: int, stride: int) -> list[Array]:
  """Return every `stride`-th element from 0, 1 and 2 on, as many as windows of 3 fit."""
  last = stride * ((x.shape[axis] - 3) // stride) + 1
  return [lax.slice_in_dim(x, i, i + last, stride, axis) for i in range(3)]


def _stem(params: Params, x: Array) -> Array:
  """Map 299x299x3 to 35x35x192."""
  x = _valid(params["Conv2d_1a_3x3"], x, 2)
  x = _valid(params["Conv2d_2a_3x3"], x)
  x = _same(params["Conv2d_2b_3x3"], x)
  x = _max_pool(x, 2)
  x = _same(params["Conv2d_3b_1x1"], x)
  x = _valid(params["Conv2d_4a_3x3"], x)
  return _max_pool(x, 2)


def _entries(block: Params, x: Array, widths: tuple[int, ...]) -> list[Array]:
  """Apply the 1x1 convolutions of a block's input as one, and split by `widths` channels.

  The channels after these are the pool branch: averaged, then ReLU.
  """
  y = _convolve(block["entry"], x, (1, 1), "VALID")
  *branches, rest = jnp.split(y, np.cumsum(widths), axis=-1)
  pooled = [_average_pool(rest)] if rest.shape[-1] else []
  return [jax.nn.relu(branch) for branch in (*branches, *pooled)]


def _chain(block: Params, x: Array, *names: str) -> Array:
  for name in names:
    x = _same(block[name], x)
  return x


def _block_a(block: Params, x: Array) -> Array:
  """Apply a block at 35x35."""
  one, five, three, pool = _entries(block, x, (64, 48, 64))
  five = _chain(block, five, "branch5x5_2")
  three = _chain(block, three, "branch3x3dbl_2", "branch3x3dbl_3")
  return jnp.concatenate([one, five, three, pool], axis=-1)


def _block_b(block: Params, x: Array) -> Array:
  """Map 35x35 to 17x17."""
  (double,) = _entries(block, x, (64,))
  double = _same(block["branch3x3dbl_2"], double)
  double = _valid(block["branch3x3dbl_3"], double, 2)
  return jnp.concatenate([_valid(block["branch3x3"], x, 2), double, _max_pool(x, 2)], -1)


def _block_c(block: Params, x: Array) -> Array:
  """Apply a block at 17x17."""
  width = block["branch7x7_2"]["kernel"].shape[2]
  one, seven, double, pool = _entries(block, x, (192, width, width))
  seven = _chain(block, seven, "branch7x7_2", "branch7x7_3")
  double = _chain(block, double, *(f"branch7x7dbl_{i}" for i in (2, 3, 4, 5)))
  return jnp.concatenate([one, seven, double, pool], axis=-1)


def _block_d(block: Params, x: Array) -> Array:
  """Map 17x17 to 8x8."""
  three, seven = _entries(block, x, (192, 192))
  three = _valid(block["branch3x3_2"], three, 2)
  seven = _chain(block, seven, "branch7x7x3_2", "branch7x7x3_3")
  seven = _valid(block["branch7x7x3_4"], seven, 2)
  return jnp.concatenate([three, seven, _max_pool(x, 2)], axis=-1)


def _block_e(block: Params, x: Array) -> Array:
  """Apply a block at 8x8; the pool branch is a maximum if it has its own convolution."""
  one, three, double, *pool = _entries(block, x, (320, 384, 448))
  if "branch_pool" in block:
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
    pool = [_same(block["branch_pool"], _max_pool(padded, 1))]
  double = _same(block["branch3x3dbl_2"], double)
  branches = [_same(block[f"branch3x3_2{i}"], three) for i in "ab"]
  branches += [_same(block[f"branch3x3dbl_3{i}"], double) for i in "ab"]
  return jnp.concatenate([one, *branches, *pool], axis=-1)
