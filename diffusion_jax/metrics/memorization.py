"""Whether samples stand closer to the training images than held-out images do."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.stats import rankdata

from diffusion_jax.metrics.feature_arrays import check_features
from diffusion_jax.metrics.neighbours import nearest


class Distances(NamedTuple):
  """Distances to the nearest training image, in units of the features."""

  median: float
  mean: float


class Copying(NamedTuple):
  """How samples stand to the training images, beside held-out images.

  Attributes:
    samples_to_train: of the samples.
    test_to_train: of the held-out images.
    closer_than_test: share of samples that are closer than the median held-out image; 0.5 where
      they are spread as the data are.
    c_t: standardised Mann-Whitney U; about N(0, 1) where samples are as good as fresh data, below
      -3 copying, above 3 samples that keep off the data.
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
  """Distances to the nearest training image, and the data-copying test of Meehan et al. 2020.

  arXiv 2004.05675, section 4, with the whole space as the only cell. `train` must be all that the
  model was trained on, and none of `test`; features of images that its extractor was itself trained
  on may set train and test apart.

  Raises:
    ValueError: fewer than 2 samples or held-out images, no training image, features of other widths
      or not finite.
  """
  check_features(samples, "samples")
  check_features(test, "held-out features")
  check_features(train, "training features", 1)
  of_samples = nearest(samples, train).distance[:, 0]
  of_test = nearest(test, train).distance[:, 0]
  return Copying(
    _summary(of_samples),
    _summary(of_test),
    float((of_samples < np.median(of_test)).mean()),
    mann_whitney_z(of_samples, of_test),
  )


def mann_whitney_z(a: Float[np.ndarray, "N"], b: Float[np.ndarray, "M"]) -> float:
  """(U - N M / 2) / sigma with U the pairs where a > b, ties half; below 0 where a is smaller.

  sigma^2 = N M / 12 (S + 1 - sum(t^3 - t) / (S (S - 1))) over the tied groups t, S = N + M
  (Lehmann 1975, section 1.4). Where all values are equal the answer is 0.
  """
  n, m = len(a), len(b)
  both = np.concatenate([a, b])
  u = rankdata(both)[:n].sum() - n * (n + 1) / 2
  ties = np.unique(both, return_counts=True)[1].astype(np.float64)
  spread = n + m + 1 - (ties**3 - ties).sum() / ((n + m) * (n + m - 1))
  return float((u - n * m / 2) / np.sqrt(n * m / 12 * spread)) if len(ties) > 1 else 0.0


def _summary(distances: Float[np.ndarray, "N"]) -> Distances:
  return Distances(float(np.median(distances)), float(distances.mean()))
