"""The Frechet distance against closed forms, and its extrapolation against known Gaussians."""

import numpy as np
import pytest
import scipy.linalg

from diffusion_jax.metrics import (
  add,
  frechet_distance,
  frechet_infinity,
  frechet_standard_error,
  gaussian_distance,
  zeros,
)


def rotation(dim, seed=0):
  return np.linalg.qr(np.random.default_rng(seed).normal(size=(dim, dim)))[0]


def commuting(dim, rank, seed=0):
  """Two covariances with the same eigenvectors, and the exact distance of their Gaussians."""
  rng = np.random.default_rng(seed)
  q, there = rotation(dim, seed), np.arange(dim) < rank
  w1 = there * (np.exp(-np.arange(dim) / (0.15 * dim)) + 3e-3)
  w2 = w1 * rng.uniform(0.4, 1.8, dim)
  shift = 0.05 * rng.normal(size=dim)
  exact = np.square(shift).sum() + np.square(np.sqrt(w1) - np.sqrt(w2)).sum()
  return shift, (q * w1) @ q.T, (q * w2) @ q.T, exact


def test_in_one_dimension_it_is_the_difference_of_means_and_deviations():
  found = gaussian_distance(
    np.ones(1), np.full((1, 1), 9.0), np.full(1, 3.0), np.full((1, 1), 0.25)
  )
  assert found == pytest.approx(2.0**2 + 2.5**2, rel=1e-14)


@pytest.mark.parametrize("rank", [192, 84], ids=["full", "deficient"])
def test_commuting_covariances(rank):
  """The deficient case is the one that roots of products get wrong by about 1e-6."""
  shift, cov1, cov2, exact = commuting(192, rank)
  found = gaussian_distance(shift, cov1, np.zeros(192), cov2)
  assert found == pytest.approx(exact, abs=1e-12)
  assert gaussian_distance(np.zeros(192), cov2, shift, cov1) == pytest.approx(exact, abs=1e-12)


def test_the_deficient_case_tells_the_forms_apart():
  shift, cov1, cov2, exact = commuting(192, 84)
  roots = np.sqrt(np.linalg.eigvals(cov1 @ cov2).astype(complex)).real.sum()
  product_form = np.square(shift).sum() + np.trace(cov1) + np.trace(cov2) - 2.0 * roots
  assert abs(product_form - exact) > 1e-8


def test_two_dimensions_without_common_eigenvectors():
  """tr((AB)^(1/2)) = (tr AB + 2 (det AB)^(1/2))^(1/2) for 2 x 2."""
  a, b = np.asarray([[2.0, 0.5], [0.5, 1.0]]), np.asarray([[0.7, -0.3], [-0.3, 3.0]])
  cross = np.sqrt(np.trace(a @ b) + 2.0 * np.sqrt(np.linalg.det(a) * np.linalg.det(b)))
  exact = 25.0 + np.trace(a) + np.trace(b) - 2.0 * cross
  found = gaussian_distance(np.asarray([3.0, 4.0]), a, np.zeros(2), b)
  assert found == pytest.approx(exact, rel=1e-13)


def test_general_covariances_by_scipys_matrix_root():
  rng = np.random.default_rng(1)
  x, y = rng.normal(size=(2, 200, 20)) @ rng.normal(size=(20, 20))
  cov1, cov2 = np.cov(x.T), np.cov((y * np.linspace(0.5, 2.0, 20)).T)
  cross = np.trace(scipy.linalg.sqrtm(cov1 @ cov2)).real
  exact = np.square(x.mean(0) - 1.0).sum() + np.trace(cov1) + np.trace(cov2) - 2.0 * cross
  assert gaussian_distance(x.mean(0), cov1, np.ones(20), cov2) == pytest.approx(exact, rel=1e-10)


def test_equal_gaussians_are_at_zero():
  _, cov, _, _ = commuting(192, 84)
  assert abs(gaussian_distance(np.ones(192), cov, np.ones(192), cov)) < 1e-12


def gaussian_case(num, dim, seed, scale=1.3, shift=0.5):
  """Samples of one Gaussian, the exact moments of another, and their exact distance."""
  std = np.linspace(0.3, 2.0, dim)
  x = np.random.default_rng(seed).normal(size=(num, dim)) * std
  exact = shift**2 + np.square((scale - 1.0) * std).sum()
  return x, np.full(dim, shift / dim**0.5), np.diag(np.square(scale * std)), exact


def test_extrapolation_finds_gaussians_within_its_error():
  """Over 120 repetitions: no bias that shows, errors of the right size and coverage."""
  values, errors, plain = [], [], []
  for seed in range(120):
    x, mean, cov, exact = gaussian_case(1000, 8, seed)
    found = frechet_infinity(x, mean, cov, seed=seed)
    values.append(found.value - exact)
    errors.append(found.standard_error)
    plain.append(found.values[-1] - exact)
  spread = np.std(values, ddof=1)
  assert abs(np.mean(values)) < 3.0 * spread / 120**0.5
  assert np.mean(plain) > 4.0 * np.std(plain) / 120**0.5
  assert np.mean(errors) == pytest.approx(spread, rel=0.2)
  assert 0.88 <= np.mean(np.abs(values) < 2.0 * np.asarray(errors)) <= 0.99


def test_extrapolation_of_samples_of_the_reference_finds_zero():
  cases = [gaussian_case(1500, 12, seed, scale=1.0, shift=0.0) for seed in range(40)]
  found = [frechet_infinity(x, mean, cov) for x, mean, cov, _ in cases]
  values, errors = np.asarray([(f.value, f.standard_error) for f in found]).T
  assert abs(values.mean()) < 3.0 * values.std() / 40**0.5
  assert np.mean(np.abs(values) < 2.0 * errors) >= 0.85
  assert min(f.values[-1] for f in found) > 4.0 * abs(values.mean())


def test_the_error_sees_noise_beyond_first_order():
  """Few samples of the reference itself: without the residual part it would be 0.69 of the spread,
  and two errors would hold 0 in 83% of the repetitions instead of 91%."""
  found = [
    frechet_infinity(*gaussian_case(300, 12, seed, 1.0, 0.0)[:3], seed=seed) for seed in range(100)
  ]
  values, errors = np.asarray([(f.value, f.standard_error) for f in found]).T
  assert np.square(errors).mean() ** 0.5 == pytest.approx(values.std(), rel=0.25)
  assert np.mean(np.abs(values) < 2.0 * errors) >= 0.88


def test_extrapolation_is_the_line_through_its_points():
  x, mean, cov, _ = gaussian_case(700, 4, 0)
  found = frechet_infinity(x, mean, cov, num_points=7, min_num=5000)
  assert found.nums.tolist() == [70, 175, 280, 385, 490, 595, 700]
  assert found.value == pytest.approx(np.polyfit(1.0 / found.nums, found.values, 1)[1], rel=1e-10)
  whole = add(zeros(4), x)
  exact = gaussian_distance(whole.mean, whole.covariance, mean, cov)
  assert found.values[-1] == pytest.approx(exact, rel=1e-11)


def test_extrapolation_follows_min_num_and_seed():
  x, mean, cov, _ = gaussian_case(700, 4, 0)
  first, again, other = (frechet_infinity(x, mean, cov, 5, 60, seed) for seed in (3, 3, 4))
  assert first.nums[0] == 60
  assert (first.values == again.values).all()
  assert (first.values[:-1] != other.values[:-1]).all()
  np.testing.assert_allclose(first.values[-1], other.values[-1], rtol=1e-12)


def test_a_far_mean_does_not_matter():
  x, mean, cov, _ = gaussian_case(300, 4, 0)
  near, far = frechet_infinity(x, mean, cov), frechet_infinity(x + 1e6, mean + 1e6, cov)
  assert far.value == pytest.approx(near.value, rel=1e-7)
  assert far.standard_error == pytest.approx(near.standard_error, rel=1e-7)


def test_standard_error_is_that_of_the_numerical_derivative():
  """The effect of a little more weight on each sample, by central differences."""
  x, mean, cov, _ = gaussian_case(40, 3, 0)
  q = rotation(3)
  cov = q @ cov @ q.T
  mean1, cov1, step = x.mean(axis=0), np.cov(x.T), 1e-5

  def moved(row, by):
    gap = row - mean1
    return gaussian_distance(mean1 + by * gap, cov1 + by * (np.outer(gap, gap) - cov1), mean, cov)

  slope = np.asarray([(moved(row, step) - moved(row, -step)) / (2.0 * step) for row in x])
  exact = slope.std(ddof=1) / 40**0.5
  assert frechet_standard_error(x, mean, cov) == pytest.approx(exact, rel=1e-6)


def test_standard_error_lives_with_fewer_samples_than_features():
  x, mean, cov, _ = gaussian_case(30, 64, 0)
  assert (
    0.0
    < frechet_standard_error(x, mean, cov)
    < gaussian_distance(x.mean(axis=0), np.cov(x.T), mean, cov)
  )


def test_wrong_input_is_one_sentence():
  eye, x = np.eye(3), np.ones((50, 3))
  with pytest.raises(ValueError, match=r"first mean \(2,\) and covariance \(3, 3\) do not fit"):
    gaussian_distance(np.zeros(2), eye, np.zeros(3), eye)
  with pytest.raises(ValueError, match="of 3 and of 2 features"):
    gaussian_distance(np.zeros(3), eye, np.zeros(2), np.eye(2))
  with pytest.raises(ValueError, match="second mean or covariance is not finite"):
    gaussian_distance(np.zeros(3), eye, np.zeros(3), eye * np.nan)
  with pytest.raises(ValueError, match="1 samples are too few: at least 20 are needed"):
    frechet_infinity(x[:1], np.zeros(3), eye)
  with pytest.raises(ValueError, match="1 samples are too few: at least 2 are needed"):
    frechet_standard_error(x[:1], np.zeros(3), eye)
  with pytest.raises(ValueError, match="same extractor"):
    frechet_infinity(x, np.zeros(2), np.eye(2))
  with pytest.raises(ValueError, match="num_points=2"):
    frechet_infinity(x, np.zeros(3), eye, num_points=2)
  with pytest.raises(ValueError, match="50 of 50 samples are not finite"):
    frechet_infinity(x * np.inf, np.zeros(3), eye)


def test_the_distance_of_two_tables_is_that_of_their_gaussians():
  rng = np.random.default_rng(0)
  x, y = rng.normal(size=(50, 3)).astype(np.float32), rng.normal(1.0, 2.0, size=(40, 3))
  exact = gaussian_distance(x.mean(0), np.cov(x.T), y.mean(0), np.cov(y.T))
  assert frechet_distance(x, y) == pytest.approx(exact, rel=1e-6)
  assert frechet_distance(x, x + 2.0) == pytest.approx(12.0, rel=1e-6)
  with pytest.raises(
    ValueError, match=r"2 features per image \(features1\) against 3 \(features2\)"
  ):
    frechet_distance(x[:, :2], y)
