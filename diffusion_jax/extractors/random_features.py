"""Fixed random convolutions: features of data sets without labels, without training.

The weights are the same for all data sets of a number of channels. The features are standardised
on the training images of one data set, which names its metrics, e.g. kd_random_faces. Random
convolutions see colours, edges and textures at several sizes, but no objects: they tell noise from
pictures, not a cat from a dog.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from diffusion_jax.core import progress
from diffusion_jax.core.pixels import as_pictures
from diffusion_jax.data import Source

VERSION = 1
NETWORK = "fixed random convolutions, standardised on the training images"
NUM_FEATURES = 64
WIDTHS = (32, 64, 96, 128, 128, 128)
SMALLEST_SIDE = 4
"""Side at which halving of the resolution stops, pixels."""

MAX_IMAGES = 2048
"""Largest number of training images on which the features are standardised."""

LIMIT = 4.0
"""Bound of a standardised feature, so that no picture outweighs all others."""

CHUNK = 256

Weights = dict[str, Any]


def raw_features(weights: Weights, images: Float[Array, "B H W C"]) -> Float[Array, "B F"]:
  """Return mean and standard deviation of each channel at each size of images in [-1, 1]."""
  x, parts, level = images, [], 0
  while True:
    x = jax.lax.conv_general_dilated(
      jnp.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)], mode="edge"), weights[f"conv{level}"], (1, 1),
      "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest",
    )  # fmt: skip
    x = jax.nn.leaky_relu(x, 0.1)
    parts += [x.mean((1, 2)), jnp.sqrt(x.var((1, 2)) + 1e-6)]
    level += 1
    if min(x.shape[1:3]) < 2 * SMALLEST_SIDE or level == len(WIDTHS):
      return jnp.concatenate(parts, axis=1)
    tall, wide = (side - side % 2 for side in x.shape[1:3])
    cells = x[:, :tall, :wide].reshape(len(x), tall // 2, 2, wide // 2, 2, x.shape[3])
    x = cells.mean((2, 4))


def random_features(weights: Weights, images: UInt8[Array, "B H W C"]) -> Float[Array, "B D"]:
  """Return the standardised features of pictures 0..255, in NUM_FEATURES random directions."""
  raw = raw_features(weights, images.astype(jnp.float32) / 127.5 - 1.0)
  standard = (raw - weights["mean"]) / weights["deviation"]
  standard = LIMIT * jnp.tanh(standard / LIMIT)
  return jnp.matmul(standard, weights["directions"], precision="highest")


def random_weights(source: Source) -> dict[str, np.ndarray]:
  """Return the fixed weights, with the mean and the deviation of a training split's features."""
  shape = source.spec.shape
  weights, width = {}, shape[2]
  for level, channels in enumerate(WIDTHS):
    kernel = _uniform(level, (3, 3, width, channels)) * np.sqrt(2 / (9 * width))
    weights[f"conv{level}"], width = kernel.astype(np.float32), channels
  places = np.unique(np.linspace(0, len(source) - 1, min(len(source), MAX_IMAGES)).astype(int))
  extract = jax.jit(raw_features)
  rows = []
  with (
    jax.default_device(jax.local_devices()[0]),
    progress.phase("random features of the training images", len(places), "images") as phase,
  ):
    for first in range(0, len(places), CHUNK):
      images = source.gather(places[first : first + CHUNK])[0]
      pictures = as_pictures(images, source.spec.num_levels).astype(np.float32) / 127.5 - 1.0
      rows.append(np.asarray(extract(weights, pictures), np.float64))
      phase.advance(len(pictures))
  raw = np.concatenate(rows)
  deviation = np.maximum(raw.std(axis=0), 1e-3)
  directions = np.linalg.qr(_uniform(len(WIDTHS), (raw.shape[1], NUM_FEATURES)))[0]
  scale = np.sqrt(raw.shape[1] / NUM_FEATURES)  # each direction keeps about unit variance
  weights |= {
    "mean": raw.mean(axis=0).astype(np.float32),
    "deviation": deviation.astype(np.float32),
    "directions": (directions * scale).astype(np.float32),
  }
  return weights


def _uniform(number: int, shape: tuple[int, ...]) -> np.ndarray:
  """Return numbers of mean 0 and variance 1, the same with every version of every library."""
  bits = np.random.Philox(key=[VERSION, number]).random_raw(int(np.prod(shape)))
  return ((bits >> np.uint64(11)) / 2.0**53 * 2 - 1).reshape(shape) * np.sqrt(3)
