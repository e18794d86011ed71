"""Inception score of a classifier's logits."""

import dataclasses
from itertools import pairwise
from typing import ClassVar, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.special import log_softmax, logsumexp

from diffusion_jax.metrics.base import FeatureSet, Measurement, MetricBase
from diffusion_jax.metrics.feature_arrays import (
  as_float64,
  check_integers,
  check_numpy_seed,
  feature_table,
)

SPLITS = 10


@dataclasses.dataclass(frozen=True)
class InceptionScore(MetricBase):
  """Inception score of the extractor's logits, see `inception_score`."""

  name: ClassVar[str] = "is"
  description: ClassVar[str] = "Inception score"
  higher_is_better: ClassVar[bool] = True
  card: ClassVar[float] = 6.0
  needs: ClassVar[frozenset[str]] = frozenset({"logits"})

  def compute(self, samples: FeatureSet, reference: FeatureSet) -> Measurement:
    """Return the mean over the splits; the reference is not used."""
    del reference
    assert samples.logits is not None
    splits = min(SPLITS, len(samples.logits) // 2)
    value = inception_score(samples.logits, splits).mean
    return Measurement(value, protocol=f"{splits} splits, shuffled")


class Score(NamedTuple):
  """Mean and standard deviation over the splits (divided by their number)."""

  mean: float
  standard_deviation: float


def inception_score(
  logits: Float[np.ndarray, "N C"], num_splits: int = 10, seed: int | None = 2020
) -> Score:
  """Return exp of the mean KL(p(y|x) || p(y)) over splits (Salimans et al. 2016, 1606.03498).

  Small splits bias it downwards: 5,000 images of 8 classes, balanced and certain, score 8 in one
  split but 7.936986 in ten shuffled ones.

  Args:
    logits: logits of the samples; adding a constant to a row changes nothing.
    num_splits: number of consecutive splits, equal in size to within one.
    seed: seed of the shuffle before splitting, RandomState(seed).permutation as in torch-fidelity;
      None keeps the order, as in ADM's evaluator.

  Raises:
    ValueError: fewer than two images per split, or logits that are not finite. A split of one
      image has the score 1, whatever the image.
  """
  logits = feature_table(logits, "samples")
  check_integers(num_splits=num_splits)
  if seed is not None:
    check_numpy_seed(seed)
  most = len(logits) // 2
  if not 1 <= num_splits <= most:
    raise ValueError(
      f"num_splits={num_splits}: {len(logits)} samples allow 1 to {most} splits of at least 2 "
      f"images; pass e.g. num_splits={min(SPLITS, most)}"
    )
  order = slice(None) if seed is None else np.random.RandomState(seed).permutation(len(logits))
  log_p = log_softmax(as_float64(logits)[order], axis=1)
  bounds = [i * len(log_p) // num_splits for i in range(num_splits + 1)]
  splits = [log_p[a:b] for a, b in pairwise(bounds)]
  scores = [_score(split) for split in splits]
  return Score(float(np.mean(scores)), float(np.std(scores)))


def _score(log_p: Float[np.ndarray, "N C"]) -> float:
  # In log space, since 0 * infinity would result if a class's probability underflows everywhere.
  log_q = logsumexp(log_p, axis=0) - np.log(len(log_p))
  return float(np.exp((np.exp(log_p) * (log_p - log_q)).sum(axis=1).mean()))
