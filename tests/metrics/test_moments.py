"""Sums over images: the same in any split, and exact where the mean is large."""

import numpy as np
import pytest

from diffusion_jax.metrics import Moments, add, gaussian_distance, merge, zeros


def features(num=1000, dim=5, seed=0):
  rng = np.random.default_rng(seed)
  return rng.normal(size=(num, dim)) @ rng.normal(size=(dim, dim)) + 3.0


def in_parts(x, sizes):
  """A chain of additions and a tree of merges over the same parts."""
  parts = np.split(x, np.cumsum(sizes)[:-1])
  chain, tree = zeros(x.shape[1]), [add(zeros(x.shape[1]), part) for part in parts]
  for part in parts:
    chain = add(chain, part)
  while len(tree) > 1:
    tree = [merge(tree[-1], tree[0]), *tree[1:-1]]
  return chain, tree[0]


def test_mean_and_covariance_are_numpys():
  x = features()
  found = add(zeros(5), x)
  np.testing.assert_allclose(found.mean, x.mean(axis=0), rtol=1e-13)
  np.testing.assert_allclose(found.covariance, np.cov(x.T, ddof=1), rtol=1e-11)
  assert found.num == 1000


@pytest.mark.parametrize("sizes", [(1000,), (1, 999), (333, 0, 334, 333), (100,) * 10])
def test_any_split_is_one_pass(sizes):
  x = features()
  whole = add(zeros(5), x)
  for found in in_parts(x, sizes):
    assert found.num == whole.num
    np.testing.assert_allclose(found.total, whole.total, rtol=1e-13)
    np.testing.assert_allclose(found.outer, whole.outer, rtol=1e-13)


@pytest.mark.parametrize("sizes", [(1, 9999), (5000, 5000), (4095, 4097, 1808)])
def test_any_split_of_whole_numbers_is_bit_equal(sizes):
  x = np.random.default_rng(1).integers(-255, 256, size=(10000, 4)).astype(np.float32)
  whole = add(zeros(4), x)
  assert (whole.outer == x.astype(np.int64).T @ x.astype(np.int64)).all()
  for found in in_parts(x, sizes):
    assert (found.total == whole.total).all()
    assert (found.outer == whole.outer).all()


def test_adding_leaves_what_was_there():
  before = add(zeros(5), features())
  kept = Moments(before.num, before.total.copy(), before.outer.copy())
  add(before, features(seed=1))
  assert (before.total == kept.total).all()
  assert (before.outer == kept.outer).all()


def test_a_large_mean_costs_no_accuracy():
  """Mean 10, variances down to 2e-6: float32 sums are off by about 0.002."""
  rng = np.random.default_rng(2)
  basis = np.linalg.qr(rng.normal(size=(32, 32)))[0]
  scales = np.sqrt(np.geomspace(0.3, 2e-6, 32))
  x = (10.0 + (rng.normal(size=(20000, 32)) * scales) @ basis.T).astype(np.float32)
  exact = x.astype(np.longdouble) - x.astype(np.longdouble).mean(axis=0)
  cov = (exact.T @ exact / (len(x) - 1)).astype(np.float64)
  mean, ref = np.full(32, 10.1), 0.8 * cov

  def distance(cov1):
    return gaussian_distance(x.mean(axis=0, dtype=np.float64), cov1, mean, ref)

  found = add(zeros(32), x)
  single = x.T @ x / len(x) - np.outer(x.mean(axis=0), x.mean(axis=0))
  assert gaussian_distance(found.mean, found.covariance, mean, ref) == pytest.approx(
    distance(cov), abs=2e-6
  )
  assert abs(distance(single.astype(np.float64)) - distance(cov)) > 2e-4


def test_too_few_images_and_foreign_widths_are_refused():
  one = add(zeros(5), features(1))
  assert one.mean.shape == (5,)
  with pytest.raises(ValueError, match="1 images are too few for a covariance: at least 2"):
    _ = one.covariance
  with pytest.raises(ValueError, match="0 images are too few for a mean"):
    _ = zeros(5).mean
  with pytest.raises(ValueError, match="4 features per image, not 5"):
    add(one, features(dim=4))
  with pytest.raises(ValueError, match="do not merge"):
    merge(one, zeros(4))
  with pytest.raises(ValueError, match="1 of 3 features are not finite"):
    add(zeros(2), np.asarray([[0.0, 1.0], [np.nan, np.inf], [1.0, 1.0]]))
