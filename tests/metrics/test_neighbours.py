"""Neighbours against brute force, and the conventions of what counts as inside."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn.neighbors import NearestNeighbors

from diffusion_jax.metrics import density_coverage, nearest, neighbours, precision_recall

SMALL_BLOCKS = [64 * 2**20, 8 * 100, 1]


def normal(num, dim=6, seed=0, shift=0.0):
  return shift + np.random.default_rng(seed).normal(size=(num, dim))


def brute_prdc(reference, samples, k):
  """Precision, recall, density and coverage from full tables of distances."""
  across = cdist(reference, samples)
  radius_r = np.sort(cdist(reference, reference), axis=1)[:, k]
  radius_s = np.sort(cdist(samples, samples), axis=1)[:, k]
  return (
    (across <= radius_r[:, None]).any(axis=0).mean(),
    (across <= radius_s).any(axis=1).mean(),
    (across < radius_r[:, None]).sum(axis=0).mean() / k,
    (across.min(axis=1) < radius_r).mean(),
  )


def prdc(reference, samples, k):
  return (*precision_recall(reference, samples, k), *density_coverage(reference, samples, k))


@pytest.mark.parametrize("block_bytes", SMALL_BLOCKS)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_nearest_is_sklearns(monkeypatch, block_bytes, dtype):
  monkeypatch.setattr(neighbours, "BLOCK_BYTES", block_bytes)
  queries, database = normal(37).astype(dtype), normal(53, seed=1).astype(dtype)
  found = nearest(queries, database, k=4)
  search = NearestNeighbors(n_neighbors=4, algorithm="brute").fit(database.astype(np.float64))
  distance, index = search.kneighbors(queries.astype(np.float64))
  assert (found.index == index).all()
  np.testing.assert_allclose(found.distance, distance, rtol=1e-7 if dtype == np.float32 else 1e-12)


def test_nearest_without_itself():
  x = normal(50)
  found = nearest(x, x, k=3, exclude_self=True)
  table = cdist(x, x)
  np.fill_diagonal(table, np.inf)
  assert (found.index == np.argsort(table, axis=1)[:, :3]).all()
  assert (nearest(x, x).index[:, 0] == np.arange(50)).all()
  assert (nearest(x, x).distance == 0.0).all()


@pytest.mark.parametrize("block_bytes", SMALL_BLOCKS)
def test_ties_go_to_the_lower_index_and_duplicates_are_at_zero(monkeypatch, block_bytes):
  """Far from the origin, where |x|^2 + |y|^2 - 2 x.y alone is off by more than the distances."""
  monkeypatch.setattr(neighbours, "BLOCK_BYTES", block_bytes)
  unique = normal(20, shift=1e6)
  database = np.concatenate([unique, unique + 1e9, unique])
  found = nearest(unique, database, k=3)
  assert (found.index[:, :2] == np.arange(20)[:, None] + [0, 40]).all()
  assert (found.distance[:, :2] == 0.0).all()
  same = nearest(np.ones((3, 4)), np.ones((9, 4)), k=9)
  assert (same.index == np.arange(9)).all()


def test_distances_are_the_same_bits_in_either_direction():
  x, y = normal(40, 33, shift=50.0), normal(30, 33, seed=1, shift=50.0)
  there, back = nearest(x, y, k=30), nearest(y, x, k=40)
  table = np.empty((40, 30))
  np.put_along_axis(table, there.index, there.distance, axis=1)
  other = np.empty((30, 40))
  np.put_along_axis(other, back.index, back.distance, axis=1)
  assert (table == other.T).all()


@pytest.mark.parametrize("block_bytes", SMALL_BLOCKS)
@pytest.mark.parametrize("k", [1, 3, 5])
def test_all_four_are_those_of_brute_force(monkeypatch, block_bytes, k):
  monkeypatch.setattr(neighbours, "BLOCK_BYTES", block_bytes)
  reference, samples = normal(60), normal(45, seed=1, shift=0.4)
  assert prdc(reference, samples, k) == pytest.approx(brute_prdc(reference, samples, k), abs=1e-15)


def test_by_hand_on_a_line():
  """Radii of 0, 1, 3 are 1, 1, 2; of -1.5, 2, 5, 10 they are 3.5, 3, 3, 5 (k = 1).

  2 touches the ball of 1 and lies inside that of 3, 5 touches that of 3: closed balls hold both.
  """
  reference, samples = np.asarray([[0.0, 1.0, 3.0]]).T, np.asarray([[2.0, 5.0, -1.5, 10.0]]).T
  assert precision_recall(reference, samples, k=1) == (0.5, 1.0)
  assert density_coverage(reference, samples, k=1) == (0.25, 1 / 3)


@pytest.mark.parametrize("block_bytes", SMALL_BLOCKS)
@pytest.mark.parametrize("k", [3, 5])
def test_samples_equal_to_the_reference(monkeypatch, block_bytes, k):
  """Open balls hold k points, themselves among them; closed ones would hold k + 1 (4/3 for 3)."""
  monkeypatch.setattr(neighbours, "BLOCK_BYTES", block_bytes)
  x = normal(200, 16, shift=100.0)
  assert precision_recall(x, x, k) == (1.0, 1.0)
  assert density_coverage(x, x[::-1].copy(), k) == (pytest.approx(1.0, abs=1e-14), 1.0)
  closed = brute_prdc(x, x, k)[2] * k + 1.0
  radii = nearest(x, x, k, exclude_self=True).distance[:, -1, None]
  assert (cdist(x, x) <= radii * (1.0 + 1e-12)).sum(axis=0).mean() == pytest.approx(closed)


@pytest.mark.parametrize("block_bytes", SMALL_BLOCKS)
def test_copies_have_balls_of_radius_zero(monkeypatch, block_bytes):
  """Ten copies of each image, k below ten: closed balls hold their centre, open ones nothing."""
  monkeypatch.setattr(neighbours, "BLOCK_BYTES", block_bytes)
  unique = normal(50, 16, shift=100.0)
  reference = np.repeat(unique, 10, axis=0)
  assert precision_recall(reference, unique, 3)[0] == 1.0
  assert precision_recall(unique, reference, 3)[1] == 1.0
  assert precision_recall(reference, unique + 1e-9, 3)[0] == 0.0
  assert density_coverage(reference, unique, 3) == (0.0, 0.0)


def test_the_order_of_the_arguments_matters():
  """Samples of one of two modes are precise, but recall half; the other way round it turns."""
  both = np.concatenate([normal(150, 2), normal(150, 2, seed=1, shift=50.0)])
  one = normal(300, 2, seed=2)
  precision, recall = precision_recall(both, one)
  assert precision > 0.95
  assert 0.45 < recall <= 0.5
  assert precision_recall(one, both) == (recall, precision)
  density, coverage = density_coverage(both, one)
  assert density == pytest.approx(1.0, abs=0.2)
  assert 0.45 < coverage <= 0.5


def test_disjoint_sets_have_nothing():
  assert prdc(normal(40), normal(40, seed=1, shift=1e3), 3) == (0.0, 0.0, 0.0, 0.0)


def test_expectations_under_equal_distributions():
  """Density 1, coverage 1 - prod (N - i) / (N + M - i) (Naeem et al. 2020, appendix)."""
  found = [
    density_coverage(normal(60, 2, 2 * seed), normal(40, 2, 2 * seed + 1)) for seed in range(150)
  ]
  mean, error = np.mean(found, axis=0), np.std(found, axis=0) / 150**0.5
  i = np.arange(1, 6)
  exact = np.asarray([1.0, 1.0 - np.prod((60 - i) / (100 - i))])
  assert (np.abs(mean - exact) < 3.0 * error).all()


def test_wrong_input_is_one_sentence():
  x = normal(10)
  with pytest.raises(ValueError, match="1 samples are too few: at least 4 are needed"):
    precision_recall(x, x[:1])
  with pytest.raises(ValueError, match="5 reference features are too few: at least 6"):
    density_coverage(x[:5], x)
  with pytest.raises(ValueError, match="k=0"):
    precision_recall(x, x, 0)
  with pytest.raises(ValueError, match="same extractor"):
    nearest(x, x[:, :3])
  with pytest.raises(ValueError, match="10 database rows are too few: at least 11"):
    nearest(x, x, k=10, exclude_self=True)
  with pytest.raises(ValueError, match="exclude_self needs queries that are the database"):
    nearest(x[:5], x, exclude_self=True)
  with pytest.raises(ValueError, match="10 of 10 queries are not finite"):
    nearest(x * np.inf, x)
