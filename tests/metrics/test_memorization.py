"""The data-copying test on copies, on fresh data and on noise."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from scipy.stats import mannwhitneyu, norm

from diffusion_jax.metrics import copying
from diffusion_jax.metrics.memorization import mann_whitney_z


def normal(num, seed, dim=8):
  return np.random.default_rng(seed).normal(size=(num, dim))


def test_distances_are_those_of_the_nearest_training_image():
  samples, train, test = normal(60, 0), normal(90, 1), normal(40, 2)
  found = copying(samples, train, test)
  a, b = cdist(samples, train).min(axis=1), cdist(test, train).min(axis=1)
  assert found.samples_to_train == pytest.approx((np.median(a), a.mean()), rel=1e-12)
  assert found.test_to_train == pytest.approx((np.median(b), b.mean()), rel=1e-12)
  assert found.closer_than_test == (a < np.median(b)).mean()


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_copies_are_seen(noise):
  train = normal(400, 0)
  found = copying(train[:200] + noise * normal(200, 1), train, normal(200, 2))
  assert found.c_t < -15.0
  assert found.closer_than_test == 1.0
  assert found.samples_to_train.median < 0.5 * found.test_to_train.median


def test_a_tenth_of_copies_is_seen():
  train = normal(2000, 0)
  samples = np.concatenate([normal(900, 1), train[:100]])
  assert copying(samples, train, normal(1000, 2)).c_t < -3.0


def test_samples_off_the_data_are_the_other_sign():
  found = copying(3.0 + normal(200, 0), normal(400, 1), normal(200, 2))
  assert found.c_t > 15.0
  assert found.closer_than_test < 0.02


def test_fresh_data_are_standard_normal():
  found = [copying(*(normal(n, 9 * s + n) for n in (80, 100, 60))) for s in range(300)]
  z = np.asarray([f.c_t for f in found])
  assert abs(z.mean()) < 3.0 / 300**0.5
  assert z.std() == pytest.approx(1.0, abs=3.0 / 600**0.5)
  assert np.mean([f.closer_than_test for f in found]) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("num_values", [3, 20, 10**6], ids=["many ties", "ties", "none"])
def test_z_gives_scipys_p_value(num_values):
  rng = np.random.default_rng(3)
  a, b = rng.integers(num_values, size=50) / 2.0, rng.integers(num_values, size=70) / 2.2
  a, b = np.floor(a), np.floor(b)
  z = mann_whitney_z(a, b)
  exact = mannwhitneyu(a, b, use_continuity=False, method="asymptotic", alternative="less").pvalue
  assert norm.cdf(z) == pytest.approx(exact, rel=1e-9)


def test_equal_values_say_nothing():
  assert mann_whitney_z(np.ones(5), np.ones(7)) == 0.0


def test_wrong_input_is_one_sentence():
  x = normal(20, 0)
  with pytest.raises(ValueError, match="1 samples are too few: at least 2 are needed"):
    copying(x[:1], x, x)
  with pytest.raises(ValueError, match="0 held-out features are too few"):
    copying(x, x, x[:0])
  with pytest.raises(ValueError, match="0 training features are too few"):
    copying(x, x[:0], x)
  with pytest.raises(ValueError, match="20 of 20 training features are not finite"):
    copying(x, x * np.nan, x)
  with pytest.raises(ValueError, match="same extractor"):
    copying(x[:, :3], x, x)
