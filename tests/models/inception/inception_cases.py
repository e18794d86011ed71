"""Random weights and varied images for the Inception network: the same for every NumPy version.

Everything is made of integers and of raw words of the Philox counter, so that figures of another
program on the same weights and images can be kept in a file.
"""

import numpy as np

from diffusion_jax.models.inception.torch_port import torch_shapes

KINDS = ("flat", "gradient", "checkerboard", "blob", "noise")
"""Kinds of images. Noise alone would be a weak test: its features hardly differ between images."""

SHAPES = {
  "small": (5, 32, 32, 3), "full": (5, 299, 299, 3),
  "wide": (1, 48, 80, 3), "large": (1, 340, 512, 3),
}  # fmt: skip
"""Batches that the features are compared on."""

SEED = 20151205

SET_SIZE = 24

SETTINGS = {"kid_subsets": 10, "kid_subset_size": 20, "isc_splits": 2, "prc_neighborhood": 3}
"""Of torch-fidelity's metrics on sets as small as these."""


def uniform(words, num):
  """float32 numbers in [0, 1), exact multiples of 2^-24, from a Philox generator."""
  raw = words.random_raw(-(-num // 2)).view(np.uint32)[:num]
  return (raw >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)


def random_torch_state(seed):
  """A state dict of the network: He-scaled uniform convolutions, random batch norms."""
  words, state = np.random.Philox(key=seed), {}
  for name, shape in sorted(torch_shapes().items()):
    values = uniform(words, int(np.prod(shape))).reshape(shape)
    if name.endswith(("bn.weight", "running_var")):
      values = np.float32(0.5) + values
    else:
      values = np.float32(2) * values - np.float32(1)
      values *= (
        np.float32(np.sqrt(6.0 / np.prod(shape[1:]))) if len(shape) > 1 else np.float32(0.25)
      )
    if name.startswith("Mixed_7c") and name.endswith(("bn.weight", "bn.bias")):
      values = values / np.float32(16)  # features of the size that the published weights give
    state[name] = values * np.float32(16) if name == "fc.weight" else values
  return state


def image(kind, number, height, width, channels=3):
  """One uint8 image; `number` varies it."""
  words = np.random.Philox(key=SEED + number)
  low, high, *colour = (uniform(words, 2 + channels) * 256).astype(np.int64)
  y, x = np.arange(height)[:, None, None], np.arange(width)[None, :, None]
  colour = np.array(colour)
  if kind == "flat":
    found = np.broadcast_to(colour, (height, width, channels))
  elif kind == "gradient":
    found = (low * x // width + high * y // height + colour) % 256
  elif kind == "checkerboard":
    found = np.where((x // (1 + number % 7) + y // (1 + number % 5)) % 2, colour, 255 - colour)
  elif kind == "blob":
    squared = (x * 256 // width - low) ** 2 + (y * 256 // height - high) ** 2
    found = colour * 4096 // (4096 + squared)
  else:
    found = (uniform(words, height * width * channels) * 256).reshape(height, width, channels)
  return found.astype(np.uint8)


def batch(name):
  """The images of one of SHAPES."""
  num, *shape = SHAPES[name]
  first = list(SHAPES).index(name)
  return np.stack([image(KINDS[(first + i) % 5], 10 * first + i, *shape) for i in range(num)])


def samples():
  """The first of two small sets of 32x32 images for the metrics: all kinds."""
  return np.stack([image(KINDS[i % 5], 100 + i, 32, 32) for i in range(SET_SIZE)])


def reference():
  """The second: other images, blobs and noise only."""
  return np.stack([image(KINDS[3 + i % 2], 200 + i, 32, 32) for i in range(SET_SIZE)])
