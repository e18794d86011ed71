"""The inception score in closed form, and against entropies."""

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import entropy

from diffusion_jax.metrics import FeatureSet, InceptionScore, inception_score, zeros

CERTAIN = 1e3 * np.eye(8)[np.arange(5000) % 8]


def test_balanced_certain_classes_score_their_number():
  found = inception_score(CERTAIN, num_splits=1)
  assert found.mean == pytest.approx(8.0, rel=1e-12)
  assert found.standard_deviation == 0.0


def test_ten_shuffled_splits_are_biased_by_a_known_amount():
  assert inception_score(CERTAIN).mean == pytest.approx(7.936986, abs=1e-6)


def test_in_order_each_split_of_500_has_its_own_balance():
  """500 = 4 x 63 + 4 x 62 certain images: the score is exp(entropy) of those shares."""
  exact = np.exp(entropy([63] * 4 + [62] * 4))
  found = inception_score(CERTAIN, seed=None)
  assert found.mean == pytest.approx(exact, rel=1e-12)
  assert found.standard_deviation == pytest.approx(0.0, abs=1e-12)


def test_constant_logits_score_one():
  assert inception_score(np.full((100, 7), 3.0)).mean == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize("seed", [None, 2020, 5])
def test_it_is_the_exponent_of_an_entropy_difference(seed):
  """Mean KL to the mean = entropy of the mean - mean entropy; 1003 images in 10 uneven splits."""
  logits = 2.0 * np.random.default_rng(0).normal(size=(1003, 12)).astype(np.float32)
  order = np.arange(1003)
  if seed is not None:
    order = np.random.RandomState(seed).permutation(1003)
  p = softmax(logits.astype(np.float64), axis=1)[order]
  parts = [p[1003 * i // 10 : 1003 * (i + 1) // 10] for i in range(10)]
  scores = [np.exp(entropy(q.mean(axis=0)) - entropy(q, axis=1).mean()) for q in parts]
  found = inception_score(logits, seed=seed)
  assert found.mean == pytest.approx(np.mean(scores), rel=1e-10)
  assert found.standard_deviation == pytest.approx(np.std(scores), rel=1e-8)


def test_a_class_that_nobody_expects_does_no_harm():
  logits = np.concatenate([CERTAIN, np.full((5000, 2), -1e6)], axis=1)
  assert inception_score(logits, num_splits=1).mean == pytest.approx(8.0, rel=1e-12)


def test_a_constant_on_every_row_changes_nothing():
  logits = np.random.default_rng(1).normal(size=(200, 5))
  shifted = logits + 100.0 * np.random.default_rng(2).normal(size=(200, 1))
  assert inception_score(shifted).mean == pytest.approx(inception_score(logits).mean, rel=1e-11)


def test_wrong_input_is_one_sentence():
  with pytest.raises(ValueError, match=r"num_splits=10: 10 samples allow 1 to 5 .*num_splits=5"):
    inception_score(CERTAIN[:10])
  with pytest.raises(ValueError, match="1 samples are too few: at least 2 are needed"):
    inception_score(CERTAIN[:1], num_splits=1)
  with pytest.raises(ValueError, match="num_splits=0"):
    inception_score(CERTAIN, num_splits=0)
  with pytest.raises(ValueError, match="5000 of 5000 samples are not finite"):
    inception_score(CERTAIN * np.nan)


def test_the_metric_splits_few_samples_into_parts_of_two():
  """A part of one image would score 1, whatever it is."""
  logits = 1e3 * np.eye(5)
  samples = FeatureSet(np.zeros((5, 2)), zeros(2), logits)
  found = InceptionScore().compute(samples, samples)
  assert found.protocol == "2 splits, shuffled"
  assert found.value == pytest.approx((2 + 3) / 2, rel=1e-12)  # parts of two and of three classes
