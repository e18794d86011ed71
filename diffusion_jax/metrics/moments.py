"""Mean and covariance of features that arrive in batches, from sums that merge exactly."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from diffusion_jax.metrics.feature_arrays import as_float64, feature_table, row_blocks


class Moments(NamedTuple):
  """Unnormalised sums over images, float64; sums over parts add up to the sums over all.

  The covariance is a difference of sums with an error of about 1e-16 times the squared mean. For
  features around 10 with variances down to 2e-6 this changes a Frechet distance by 2e-6.

  Attributes:
    num: number of images.
    total: sum of x, [D].
    outer: sum of x x^T, [D, D].
  """

  num: int
  total: Float[np.ndarray, "D"]
  outer: Float[np.ndarray, "D D"]

  @property
  def mean(self) -> Float[np.ndarray, "D"]:
    """Return the mean [D]; raise a ValueError if there are no images."""
    _check_num(self.num, 1)
    return self.total / self.num

  @property
  def covariance(self) -> Float[np.ndarray, "D D"]:
    """Return the covariance [D, D] (divided by num - 1); ValueError below two images."""
    _check_num(self.num, 2)
    return (self.outer - np.outer(self.total, self.total / self.num)) / (self.num - 1)


class Gaussian(NamedTuple):
  """Mean and covariance of features of an unknown number of images, as others publish them.

  Attributes:
    mean: mean of the features, [D], float64.
    covariance: covariance of the features, [D, D], float64.
  """

  mean: Float[np.ndarray, "D"]
  covariance: Float[np.ndarray, "D D"]


def zeros(dim: int) -> Moments:
  """Return the moments of an empty set of images with `dim` features."""
  return Moments(0, np.zeros(dim), np.zeros((dim, dim)))


def add(moments: Moments, features: Float[np.ndarray, "N D"]) -> Moments:
  """Add N images to the moments; float32 features are converted block by block.

  Raises:
    ValueError: features that are not finite, or of another width.
  """
  features = feature_table(features, "features", min_num=0)
  if features.shape[1] != len(moments.total):
    raise ValueError(f"{features.shape[1]} features per image, not {len(moments.total)}")
  total, outer = moments.total.copy(), moments.outer.copy()
  for rows in row_blocks(len(features)):
    block = as_float64(features[rows])
    total += block.sum(axis=0)
    outer += block.T @ block
  return Moments(moments.num + len(features), total, outer)


def merge(a: Moments, b: Moments) -> Moments:
  """Return the moments of the union of two sets of images."""
  if a.total.shape != b.total.shape:
    raise ValueError(f"moments of {len(a.total)} and of {len(b.total)} features do not merge")
  return Moments(a.num + b.num, a.total + b.total, a.outer + b.outer)


def _check_num(num_images: int, min_num: int) -> None:
  if num_images < min_num:
    what = "a mean" if min_num == 1 else "a covariance"
    raise ValueError(f"{num_images} images are too few for {what}: at least {min_num} are needed")
