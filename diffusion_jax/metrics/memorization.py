"""Test if samples are closer to the training images than held-out images are."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.stats import rankdata

from diffusion_jax.metrics.feature_arrays import check_same_width, feature_table
from diffusion_jax.metrics.neighbours import nearest


class Distances(NamedTuple):
  """Distances to the nearest training image, in units of the features."""

  median: float
  mean: float


class Copying(NamedTuple):
  """Distances of samples and held-out images to the training images.

  Attributes:
    samples_to_train: distances of the samples.
    test_to_train: distances of the held-out images.
    closer_than_test: share of samples closer than the median held-out image; 0.5 if samples are
      distributed as the data.
    c_t: standardised Mann-Whitney U: about N(0, 1) if samples are as good as fresh data, below -3
      for copying, above 3 for samples too far from the data.
  """

  samples_to_train: Distances
  test_to_train: Distances
  closer_than_test: float
  c_t: float


def copying(
  samples: Float[np.ndarray, "N D1"],
  train: Float[np.ndarray, "T D2"],
  test: Float[np.ndarray, "M D3"],
) -> Copying:
  """Compute distances to the nearest training image and a copying test (arXiv 2004.05675).

  The data-copying test of Meehan et al. 2020, section 4, with the whole space as the only cell.
  `train` must contain all training images of the model, and none of `test`. If the extractor itself
  was trained on these images, its features may separate train from test.

  Raises:
    ValueError: fewer than 2 samples or held-out images, no training image, or features of different
      widths or not finite.
  """
  samples = feature_table(samples, "samples")
  test = feature_table(test, "held-out features")
  train = feature_table(train, "training features", 1)
  check_same_width(samples, train, name2="training features")
  check_same_width(test, train, "held-out features", "training features")
  of_samples = nearest(samples, train).distance[:, 0]
  of_test = nearest(test, train).distance[:, 0]
  return Copying(
    _summary(of_samples),
    _summary(of_test),
    float((of_samples < np.median(of_test)).mean()),
    mann_whitney_z(of_samples, of_test),
  )


def mann_whitney_z(a: Float[np.ndarray, "N"], b: Float[np.ndarray, "M"]) -> float:
  """Return (U - N M / 2) / sigma; U counts pairs with a > b, ties as half; negative if a < b.

  sigma^2 = N M / 12 (S + 1 - sum(t^3 - t) / (S (S - 1))) over the tied groups t, S = N + M
  (Lehmann 1975, section 1.4). If all values are equal, the result is 0.
  """
  n, m = len(a), len(b)
  both = np.concatenate([a, b])
  u = rankdata(both)[:n].sum() - n * (n + 1) / 2
  ties = np.unique(both, return_counts=True)[1].astype(np.float64)
  spread = n + m + 1 - (ties**3 - ties).sum() / ((n + m) * (n + m - 1))
  return float((u - n * m / 2) / np.sqrt(n * m / 12 * spread)) if len(ties) > 1 else 0.0


def _summary(distances: Float[np.ndarray, "N"]) -> Distances:
  return Distances(float(np.median(distances)), float(distances.mean()))
