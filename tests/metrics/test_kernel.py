"""The kernel distance: the protocol's subsets, and an error that holds over fresh data."""

from itertools import combinations, combinations_with_replacement
from math import factorial

import numpy as np
import pytest
from sklearn.metrics.pairwise import polynomial_kernel

from diffusion_jax.metrics import kernel_distance
from diffusion_jax.metrics.kernel import (
  Components,
  complete_variance,
  cubic_kernel,
  unbiased_mmd,
  variance_components,
)

# Two distributions on three points of the plane each.
ATOMS_P, WEIGHTS_P = np.asarray([[0.0, 1.0], [2.0, 0.3], [-1.0, 0.5]]), np.asarray([0.5, 0.3, 0.2])
ATOMS_Q, WEIGHTS_Q = np.asarray([[0.4, 0.9], [1.5, -1.0], [0.2, 2.0]]), np.asarray([0.2, 0.2, 0.6])


def draws(atoms, weights, num):
  """Every sample of `num` points up to order, with its probability."""
  for chosen in combinations_with_replacement(range(len(atoms)), num):
    counts = np.bincount(chosen, minlength=len(atoms))
    ways = factorial(num) / np.prod([factorial(c) for c in counts])
    yield atoms[list(chosen)], ways * np.prod(weights**counts)


def kernels(x, y):
  return tuple(polynomial_kernel(a, b, degree=3) for a, b in ((x, x), (y, y), (x, y)))


def true_components():
  """By sums over the atoms."""
  p, q = WEIGHTS_P, WEIGHTS_Q
  xx, yy, xy = kernels(ATOMS_P, ATOMS_Q)

  def variance(f, w):
    return w @ f**2 - (w @ f) ** 2

  def centred_square(k, a, b):
    c = k - (k @ b)[:, None] - a @ k + a @ k @ b
    return a @ c**2 @ b

  return Components(
    variance(xx @ p - xy @ q, p),
    variance(xy.T @ p - yy @ q, q),
    centred_square(xx, p, p),
    centred_square(yy, q, q),
    centred_square(xy, p, q),
  )


def test_kernel_is_sklearns():
  x, y = np.random.default_rng(0).normal(size=(2, 6, 5))
  np.testing.assert_allclose(cubic_kernel(x, y), polynomial_kernel(x, y, degree=3), rtol=1e-12)


def test_expectation_and_variance_over_every_possible_sample():
  """No simulation: all samples of 4 and of 5 points, weighted by their probability."""
  total, square, parts, probability = 0.0, 0.0, np.zeros(5), 0.0
  for x, weight_x in draws(ATOMS_P, WEIGHTS_P, 4):
    for y, weight_y in draws(ATOMS_Q, WEIGHTS_Q, 5):
      weight = weight_x * weight_y
      value = unbiased_mmd(*kernels(x, y))
      total, square = total + weight * value, square + weight * value**2
      parts += weight * np.asarray(variance_components(*kernels(x, y)))
      probability += weight
  xx, yy, xy = kernels(ATOMS_P, ATOMS_Q)
  p, q = WEIGHTS_P, WEIGHTS_Q
  assert probability == pytest.approx(1.0)
  assert total == pytest.approx(p @ xx @ p + q @ yy @ q - 2.0 * p @ xy @ q, rel=1e-12)
  assert square - total**2 == pytest.approx(complete_variance(true_components(), 4, 5), rel=1e-11)
  np.testing.assert_allclose(parts, true_components(), rtol=1e-11)


def test_subsets_are_unbiased_for_the_whole():
  x, y = np.random.default_rng(3).normal(size=(2, 6, 2))
  subsets = [list(s) for s in combinations(range(6), 4)]
  found = [unbiased_mmd(*kernels(x[a], y[b])) for a in subsets for b in subsets]
  assert np.mean(found) == pytest.approx(unbiased_mmd(*kernels(x, y)), rel=1e-12)


def test_value_and_deviation_follow_the_protocol():
  """Subsets in torch-fidelity's order of draws, the distance by loops over pairs."""
  rng = np.random.default_rng(1)
  x, y = rng.normal(size=(30, 4)), 0.3 + rng.normal(size=(25, 4))
  state, values = np.random.RandomState(7), []
  for _ in range(6):
    a = x[state.choice(30, 9, replace=False)]
    b = y[state.choice(25, 9, replace=False)]

    def k(u, v):
      return (u @ v / 4.0 + 1.0) ** 3

    same = sum(k(a[i], a[j]) + k(b[i], b[j]) for i in range(9) for j in range(9) if i != j)
    values.append(same / 72.0 - 2.0 * sum(k(u, v) for u in a for v in b) / 81.0)
  found = kernel_distance(x, y, num_subsets=6, subset_size=9, seed=7)
  assert found.value == pytest.approx(np.mean(values), rel=1e-11)
  assert found.standard_deviation == pytest.approx(np.std(values), rel=1e-11)


def test_float32_features_lose_nothing_more():
  x, y = np.random.default_rng(2).normal(size=(2, 40, 8)).astype(np.float32)
  single = kernel_distance(x, y, 3, 20)
  assert single == kernel_distance(x.astype(np.float64), y.astype(np.float64), 3, 20)


def repeated(shift, num_repeats, num, num_reference, num_subsets, subset_size):
  found = []
  for seed in range(num_repeats):
    rng = np.random.default_rng(seed)
    x, y = shift + rng.normal(size=(num, 8)), rng.normal(size=(num_reference, 8))
    found.append(kernel_distance(x, y, num_subsets, subset_size, seed))
  return np.asarray(found).T


def test_equal_distributions_have_mean_zero():
  values, _, errors = repeated(0.0, 200, 200, 150, 10, 60)
  assert abs(values.mean()) < 3.0 * values.std() / 200**0.5
  assert values.min() < 0.0
  assert errors.mean() == pytest.approx(values.std(), rel=0.25)
  assert np.mean(np.abs(values) < 2.0 * errors) >= 0.93


@pytest.mark.parametrize(
  ("num", "num_reference", "num_subsets", "subset_size"),
  [(200, 150, 10, 60), (200, 800, 2, 200), (200, 200, 1, 200)],
  ids=["overlapping", "one side whole", "complete"],
)
def test_standard_error_covers_fresh_data(num, num_reference, num_subsets, subset_size):
  """The exact distance of N(0.3, I) and N(0, I): E of t^3 + 3 t^2 + 3 t + 1 with t = x.y / 8."""
  values, deviations, errors = repeated(0.3, 200, num, num_reference, num_subsets, subset_size)
  exact = gaussian_moment(0.3, 0.3) + gaussian_moment(0.0, 0.0) - 2.0 * gaussian_moment(0.3, 0.0)
  assert abs(values.mean() - exact) < 3.0 * values.std() / 200**0.5
  assert np.square(errors).mean() ** 0.5 == pytest.approx(values.std(), rel=0.15)
  assert 0.9 <= np.mean(np.abs(values - exact) < 2.0 * errors) <= 0.99
  assert (deviations / num_subsets**0.5).mean() < 0.6 * values.std()


def gaussian_moment(a, b, dim=8):
  """E (x.y / D + 1)^3 for x ~ N(a 1, I), y ~ N(b 1, I), given x an odd moment of a normal y.

  Given x, x.y ~ N(b s, r) with s = sum x and r = |x|^2; the sums' moments come from s ~ N(D a, D)
  and r = s^2 / D + chi^2 with D - 1 degrees of freedom, independent of s.
  """
  m = dim * a
  s1, s2, s3 = m, m**2 + dim, m**3 + 3 * m * dim
  r, sr = s2 / dim + dim - 1, s3 / dim + (dim - 1) * s1
  t1, t2, t3 = b * s1, b**2 * s2 + r, b**3 * s3 + 3 * b * sr
  return t3 / dim**3 + 3.0 * t2 / dim**2 + 3.0 * t1 / dim + 1.0


def test_wrong_input_is_one_sentence():
  x = np.random.default_rng(0).normal(size=(20, 3))
  with pytest.raises(
    ValueError, match=r"subset_size=1000 must be .* the 20 images .*; pass e\.g\. subset_size=20"
  ):
    kernel_distance(x, np.tile(x, (100, 1)))
  with pytest.raises(ValueError, match="subset_size=3 must be at least 4"):
    kernel_distance(x, x, 2, 3)
  with pytest.raises(ValueError, match="num_subsets=0"):
    kernel_distance(x, x, 0, 4)
  with pytest.raises(ValueError, match="1 samples are too few"):
    kernel_distance(x[:1], x, 1, 4)
  with pytest.raises(ValueError, match="20 of 20 reference features are not finite"):
    kernel_distance(x, x * np.nan, 1, 4)
  with pytest.raises(ValueError, match="same extractor"):
    kernel_distance(x, x[:, :2], 1, 4)
