"""The simplest baseline: independent pixels, estimated by counting."""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Float


def pixel_histogram(images: Iterable[np.ndarray], num_levels: int) -> Float[np.ndarray, "H W C L"]:
  """Return P(level) of each pixel, with one added to every count (Laplace), float64.

  Args:
    images: chunks [N, H, W, C] with levels 0..num_levels-1.
    num_levels: number L of pixel levels.
  """
  counts = None
  for chunk in images:
    shape, num_dims = chunk.shape[1:], chunk[0].size
    slot = chunk.reshape(-1, num_dims).astype(np.int64) + num_levels * np.arange(num_dims)
    more = np.bincount(slot.ravel(), minlength=num_dims * num_levels).reshape(*shape, num_levels)
    counts = more if counts is None else counts + more
  if counts is None:
    raise ValueError("no images to count")
  return (counts + 1.0) / (counts + 1.0).sum(axis=-1, keepdims=True)


def independent_pixel_bits(
  train: Iterable[np.ndarray],
  test: Iterable[np.ndarray],
  num_levels: int,
) -> float:
  """Return bits/dim of test images under independent pixels counted on the training images.

  Args:
    train, test: chunks [N, H, W, C] with levels 0..num_levels-1.
    num_levels: number L of pixel levels.

  Returns:
    Mean of -log2 P(pixel) over all pixels of all test images.
  """
  bits = -np.log2(pixel_histogram(train, num_levels))
  total, count = 0.0, 0
  for chunk in test:
    total += np.take_along_axis(bits[None], chunk[..., None].astype(np.int64), axis=-1).sum()
    count += chunk.size
  return float(total / count)


def independent_binary_bits(
  train: Iterable[np.ndarray],
  test: Iterable[np.ndarray],
  num_levels: int,
) -> float:
  """Return the same for randomly binarised images, on with probability k / (L - 1).

  It is the baseline for a Bernoulli decoder: both take the expectation over the binarisations.
  """
  levels = np.arange(num_levels) / (num_levels - 1)
  p_on = pixel_histogram(train, num_levels) @ levels
  bits_on, bits_off = -np.log2(p_on), -np.log2(1.0 - p_on)
  total, count = 0.0, 0
  for chunk in test:
    x = levels[chunk]
    total += (x * bits_on + (1.0 - x) * bits_off).sum()
    count += chunk.size
  return float(total / count)
