"""Nearest neighbours, and the metrics that use them: precision, recall, density, coverage."""

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from diffusion_jax.metrics.base import FeatureSet, Measurement, MetricBase
from diffusion_jax.metrics.feature_arrays import (
  as_float64,
  check_integers,
  check_same_width,
  feature_table,
  row_blocks,
)

BLOCK_BYTES = 64 * 2**20
"""Bytes of one block of distances, float64.

Three or four such arrays exist at a time, besides one centred float64 copy of each table.
"""

CLOSED_NEIGHBOURS, OPEN_NEIGHBOURS = 3, 5
CLOSED = f"distance at most the k-th neighbour's, k = {CLOSED_NEIGHBOURS}"
OPEN = f"distance below the k-th neighbour's, k = {OPEN_NEIGHBOURS}"


@dataclasses.dataclass(frozen=True)
class Precision(MetricBase):
  """Precision of `precision_recall`."""

  name: ClassVar[str] = "precision"
  description: ClassVar[str] = "share of samples inside the manifold of the data"
  higher_is_better: ClassVar[bool] = True
  card: ClassVar[float] = 3.0
  min_num_reference: ClassVar[int] = CLOSED_NEIGHBOURS + 1

  def compute(self, samples: FeatureSet, reference: FeatureSet) -> Measurement:
    """Return the share, in [0, 1]."""
    precision, _ = precision_recall(reference.pool, samples.pool, CLOSED_NEIGHBOURS)
    return Measurement(precision, protocol=CLOSED)


@dataclasses.dataclass(frozen=True)
class Recall(MetricBase):
  """Recall of `precision_recall`."""

  name: ClassVar[str] = "recall"
  description: ClassVar[str] = "share of the data inside the manifold of the samples"
  higher_is_better: ClassVar[bool] = True
  card: ClassVar[float] = 4.0
  min_num_reference: ClassVar[int] = CLOSED_NEIGHBOURS + 1

  def compute(self, samples: FeatureSet, reference: FeatureSet) -> Measurement:
    """Return the share, in [0, 1]."""
    _, recall = precision_recall(reference.pool, samples.pool, CLOSED_NEIGHBOURS)
    return Measurement(recall, protocol=CLOSED)


@dataclasses.dataclass(frozen=True)
class Density(MetricBase):
  """Density of `density_coverage`."""

  name: ClassVar[str] = "density"
  description: ClassVar[str] = "samples around each datum, relative to the data"
  higher_is_better: ClassVar[bool] = True
  min_num_reference: ClassVar[int] = OPEN_NEIGHBOURS + 1

  def compute(self, samples: FeatureSet, reference: FeatureSet) -> Measurement:
    """Return the density, at least 0."""
    density, _ = density_coverage(reference.pool, samples.pool, OPEN_NEIGHBOURS)
    return Measurement(density, protocol=OPEN)


@dataclasses.dataclass(frozen=True)
class Coverage(MetricBase):
  """Coverage of `density_coverage`."""

  name: ClassVar[str] = "coverage"
  description: ClassVar[str] = "share of the data with a sample near by"
  higher_is_better: ClassVar[bool] = True
  min_num_reference: ClassVar[int] = OPEN_NEIGHBOURS + 1

  def compute(self, samples: FeatureSet, reference: FeatureSet) -> Measurement:
    """Return the share, in [0, 1]."""
    _, coverage = density_coverage(reference.pool, samples.pool, OPEN_NEIGHBOURS)
    return Measurement(coverage, protocol=OPEN)


class Nearest(NamedTuple):
  """The nearest rows of a database, nearest first; ties go to the lower index.

  Attributes:
    index: indices of the rows, [Q, K].
    distance: Euclidean distances, [Q, K].
  """

  index: Int[np.ndarray, "Q K"]  # pyright: ignore[reportIncompatibleMethodOverride]
  distance: Float[np.ndarray, "Q K"]


def nearest(
  queries: Float[np.ndarray, "Q D1"],
  database: Float[np.ndarray, "N D2"],
  k: int = 1,
  exclude_self: bool = False,
) -> Nearest:
  """Return the `k` rows of the database that are nearest to each query.

  Distances are exact up to the rounding of sum((x - y)^2) in float64: equal rows are at distance 0,
  and d(x, y) equals d(y, x) bit for bit, wherever the rows are stored.

  Args:
    queries, database: features, one row per image.
    k: number of neighbours, at most N.
    exclude_self: True if the queries are the database and row i is not a neighbour of query i.

  Raises:
    ValueError: too few rows, different widths, or features that are not finite.
  """
  check_integers(k=k)
  queries = feature_table(queries, "queries", 1)
  database = feature_table(database, "database rows", max(1, k + exclude_self))
  check_same_width(queries, database, "queries", "database rows")
  if k < 1:
    raise ValueError(f"k={k}: at least 1 neighbour is needed")
  if exclude_self and queries.shape != database.shape:
    raise ValueError("exclude_self needs queries that are the database")
  pairs = _Pairs.of(queries, database)
  blocks = [_block_nearest(pairs, rows, k, exclude_self) for rows in pairs.blocks()]
  index, squares = (np.concatenate(part) for part in zip(*blocks, strict=True))
  return Nearest(index, np.sqrt(squares))


def precision_recall(
  reference: Float[np.ndarray, "N D1"], samples: Float[np.ndarray, "M D2"], k: int = 3
) -> tuple[float, float]:
  """Return improved precision and recall (Kynkaanniemi et al. 2019, 1904.06991, eq. 1 and 2).

  Precision is the share of samples that are, for at least one reference image, within the distance
  to its k-th nearest other reference image; recall exchanges the two sides. The ball is closed:
  `<=`.

  Args:
    reference: features of the data, one row per image. They come first, unlike in
      `kernel_distance`.
    samples: features of the samples.
    k: neighbour that gives each radius.

  Returns:
    (precision, recall), each in [0, 1].

  Raises:
    ValueError: at most k rows on a side, different widths, or features that are not finite.
  """
  reference, samples = _checked_sides(reference, samples, k)
  precise = _num_balls(samples, reference, _squared_radii(reference, k), closed=True) > 0
  recalled = _num_balls(reference, samples, _squared_radii(samples, k), closed=True) > 0
  return float(precise.mean()), float(recalled.mean())


def density_coverage(
  reference: Float[np.ndarray, "N D1"], samples: Float[np.ndarray, "M D2"], k: int = 5
) -> tuple[float, float]:
  """Return density and coverage (Naeem et al. 2020, 2002.09797, eq. 6 and 7).

  Density is the mean number of reference balls around a sample, divided by k; coverage is the share
  of reference balls that contain a sample. The radius is that of `precision_recall`, the ball is
  open (`<`, as in the authors' code): samples equal to the reference have density 1.

  Args:
    reference: features of the data, one row per image. They come first, unlike in
      `kernel_distance`.
    samples: features of the samples.
    k: neighbour that gives each radius.

  Returns:
    (density, coverage): density is at least 0; coverage is in [0, 1], with expectation
    1 - prod_{i=1..k} (N - i) / (N + M - i) for equal distributions.

  Raises:
    ValueError: at most k rows on a side, different widths, or features that are not finite.
  """
  reference, samples = _checked_sides(reference, samples, k)
  squared_radii = _squared_radii(reference, k)
  density = _num_balls(samples, reference, squared_radii, closed=False).mean() / k
  pairs = _Pairs.of(reference, samples)
  closest = [_block_nearest(pairs, rows, 1, False)[1][:, 0] for rows in pairs.blocks()]
  return float(density), float((np.concatenate(closest) < squared_radii).mean())


class _Pairs(NamedTuple):
  """Two tables of features whose pairwise distances are needed.

  Distances are computed quickly as |x|^2 + |y|^2 - 2 x.y with a bound on the rounding error;
  callers decide comparisons within the bound by `exact`. Otherwise a duplicate would not be at
  distance 0, and `<` and `<=` would not differ reliably.

  Attributes:
    x, y: the tables as given.
    cx, cy: the tables in float64, minus the mean of y.
    xx, yy: squared norms of cx and cy.
  """

  x: Float[np.ndarray, "Q D"]
  y: Float[np.ndarray, "N D"]
  cx: Float[np.ndarray, "Q D"]
  cy: Float[np.ndarray, "N D"]
  xx: Float[np.ndarray, "Q"]
  yy: Float[np.ndarray, "N"]

  @classmethod
  def of(cls, x: Float[np.ndarray, "Q D"], y: Float[np.ndarray, "N D"]) -> "_Pairs":
    centre = y.mean(axis=0, dtype=np.float64)
    cy = y - centre
    cx = cy if x is y else x - centre
    return cls(x, y, cx, cy, np.einsum("nd,nd->n", cx, cx), np.einsum("nd,nd->n", cy, cy))

  def blocks(self) -> list[slice]:
    return row_blocks(len(self.x), max(1, BLOCK_BYTES // (8 * len(self.y))))

  def rough(self, rows: slice) -> tuple[Float[np.ndarray, "B N"], Float[np.ndarray, "B 1"]]:
    """Return squared distances of some rows of x, and an error bound for each row.

    The bound is twice D + 4 roundings (Higham 2002, section 3.1) of (|x| + |y|)^2.
    """
    squares = self.cx[rows] @ self.cy.T
    squares *= -2.0
    squares += self.xx[rows, None]
    squares += self.yy
    size = np.square(np.sqrt(self.xx[rows, None]) + np.sqrt(self.yy.max()))
    return squares, (self.x.shape[1] + 4) * np.finfo(np.float64).eps * size

  def exact(self, i: Int[np.ndarray, "P"], j: Int[np.ndarray, "P"]) -> Float[np.ndarray, "P"]:
    """Return squared distances of pairs from differences: the same bits in either order."""
    squares = np.empty(len(i))
    for part in row_blocks(len(i), max(1, BLOCK_BYTES // (8 * self.x.shape[1]))):
      gap = as_float64(self.x[i[part]]) - self.y[j[part]]
      squares[part] = np.square(gap, out=gap).sum(axis=1)
    return squares


def _block_nearest(
  pairs: _Pairs, rows: slice, k: int, exclude_self: bool
) -> tuple[Int[np.ndarray, "B K"], Float[np.ndarray, "B K"]]:
  """Return indices and squared distances; all possible nearest rows are measured exactly."""
  squares, bound = pairs.rough(rows)
  if exclude_self:
    squares[np.arange(len(squares)), np.arange(rows.start, rows.stop)] = np.inf
  last = np.partition(squares, k - 1, axis=1)[:, k - 1, None]
  i, j = np.nonzero(squares <= last + 2.0 * bound)
  exact = pairs.exact(i + rows.start, j)
  order = np.lexsort((j, exact, i))
  first = np.searchsorted(i, np.arange(len(squares)))
  chosen = order[first[:, None] + np.arange(k)]
  return j[chosen], exact[chosen]


def _squared_radii(features: Float[np.ndarray, "N D"], k: int) -> Float[np.ndarray, "N"]:
  """Return the squared distance from each row to its k-th nearest other row."""
  pairs = _Pairs.of(features, features)
  return np.concatenate([_block_nearest(pairs, rows, k, True)[1][:, -1] for rows in pairs.blocks()])


def _num_balls(
  points: Float[np.ndarray, "Q D"],
  centres: Float[np.ndarray, "N D"],
  squared_radii: Float[np.ndarray, "N"],
  closed: bool,
) -> Int[np.ndarray, "Q"]:
  """Return the number of balls that contain each point."""
  inside = _inside(_Pairs.of(points, centres), squared_radii, closed)
  return np.concatenate([block.sum(axis=1) for block in inside])


def _inside(
  pairs: _Pairs, squared_radii: Float[np.ndarray, "N"], closed: bool
) -> Iterator[Bool[np.ndarray, "B N"]]:
  compare = np.less_equal if closed else np.less
  for rows in pairs.blocks():
    squares, bound = pairs.rough(rows)
    held = compare(squares, squared_radii)
    squares -= squared_radii
    i, j = np.nonzero(np.abs(squares, out=squares) <= bound)
    held[i, j] = compare(pairs.exact(i + rows.start, j), squared_radii[j])
    yield held


def _checked_sides(
  reference: Any, samples: Any, k: int
) -> tuple[Float[np.ndarray, "N D1"], Float[np.ndarray, "M D2"]]:
  check_integers(k=k)
  if k < 1:
    raise ValueError(f"k={k}: at least 1 neighbour is needed")
  reference = feature_table(reference, "reference features", k + 1)
  samples = feature_table(samples, "samples", k + 1)
  check_same_width(samples, reference)
  return reference, samples
