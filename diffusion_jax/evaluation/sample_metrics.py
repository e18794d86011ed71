"""Sample metrics of features against a reference, named so that the name tells the protocol."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from diffusion_jax import metrics
from diffusion_jax.evaluation.reference import Reference
from diffusion_jax.extractors import Extractor, Features
from diffusion_jax.metrics import Moments, moments
from diffusion_jax.metrics.kernel import MIN_SUBSET

FULL = 50_000
"""Samples that the published protocols ask for."""

PUBLISHED = {
  "fd": "fid", "fd_infinity": "fid_infinity", "sfd": "sfid", "kd": "kid", "is": "is",
  "precision": "precision", "recall": "recall", "density": "density", "coverage": "coverage",
}  # fmt: skip
"""Names that only the published Inception weights may carry."""

HIGHER_IS_BETTER = {"is", "precision", "recall", "density", "coverage"}
SUBSETS, SUBSET_SIZE, SPLITS = 100, 1000, 10
PR_NEIGHBOURS, DC_NEIGHBOURS = 3, 5
MIN_EXTRAPOLATED, MIN_EXTRAPOLATED_PER_FEATURE = 100, 20
"""An extrapolation needs so many samples, and so many a feature: its smallest subset is a tenth of
them, and near the number of features the distance is no straight line in 1/N."""


class SampleSet(NamedTuple):
  """What the metrics need of the samples of one seed.

  Attributes:
    pool, logits: features of all samples, in order.
    moments, spatial: sums of the pooled and of the spatial features.
  """

  pool: Float[np.ndarray, "N D"]
  logits: Float[np.ndarray, "N K"]
  moments: Moments
  spatial: Moments | None


class Protocol(NamedTuple):
  """What decides a figure's name.

  Attributes:
    extractor: of the features.
    split: of the reference; "train", the whole of a data set's, goes without saying.
    num_samples: at hand.
    full: samples that the protocol asks for.
    num_reference: images of the reference.
  """

  extractor: Extractor
  split: str
  num_samples: int
  full: int
  num_reference: int = 0

  def name(self, metric: str) -> str:
    """Return fid, fid_5k, fid_test, fid_given20, fd_digits: what differs from the protocol is said.

    Images or statistics that a user gave have their number, since no data set tells it.
    """
    name = self.extractor.name
    stem = PUBLISHED[metric] if name == "inception" else f"{metric}_{name}"
    given = f"given{short_count(self.num_reference)}"
    split = {"train": [], "given": [given]}.get(self.split, [self.split])
    count = [] if self.num_samples == self.full else [short_count(self.num_samples)]
    return "_".join([stem, *split, *count])


def short_count(num: int) -> str:
  """5000 as "5k", 1500 as "1500"."""
  return f"{num // 1000}k" if num % 1000 == 0 else str(num)


def full_protocol(extractor: Extractor, num_reference: int) -> int:
  """50,000 with Inception; as many as reference images, at most 50,000, with domain features."""
  return FULL if extractor.resolution is None else min(num_reference, FULL)


def gather(parts: Sequence[Features]) -> SampleSet:
  """Features of successive chunks as one set; the sums do not depend on the cuts' devices."""
  sums = moments.zeros(parts[0].pool.shape[1])
  spatial = None if parts[0].spatial is None else moments.zeros(parts[0].spatial.shape[1])
  for part in parts:
    sums = moments.add(sums, part.pool)
    if spatial is not None and part.spatial is not None:
      spatial = moments.add(spatial, part.spatial)
  pool, logits = (np.concatenate([getattr(p, n) for p in parts]) for n in ("pool", "logits"))
  return SampleSet(pool, logits, sums, spatial)


def measure(
  sets: Sequence[SampleSet], reference: Reference, extractor: Extractor, extrapolate: bool = True
) -> tuple[dict[str, dict[str, Any]], list[str]]:
  """All figures of sample sets that differ in their seed alone.

  Args:
    sets: at least one; with several, a figure is their mean and carries their spread.
    reference: what they are compared with.
    extractor: of both.
    extrapolate: also to infinitely many samples, which takes 15 more distances.

  Returns:
    name -> figure as metrics.json has it, and one line for each figure that cannot be had.
  """
  num = len(sets[0].pool)
  num_reference = reference.pool.num
  full = full_protocol(extractor, num_reference)
  protocol = Protocol(extractor, reference.stamp["split"], num, full, num_reference)
  figures, missing = {}, []
  for metric, (count, needed) in _METRICS.items():
    if metric == "sfd" and reference.spatial is None:
      continue
    if metric == "fd_infinity" and not extrapolate:
      continue
    if metric == "fd_infinity":
      needed = max(needed, MIN_EXTRAPOLATED_PER_FEATURE * sets[0].pool.shape[1])
    at_hand = num if metric == "fd_infinity" else min(num, len(reference.features))
    if at_hand < needed:
      missing.append(f"{protocol.name(metric)} needs at least {needed} samples; there are {num}")
      continue
    rows = [count(s, reference) for s in (sets[:1] if metric == "fd_infinity" else sets)]
    figures[protocol.name(metric)] = _figure(metric, rows, protocol, reference)
  return figures, missing


def _figure(
  metric: str, rows: list[dict[str, Any]], protocol: Protocol, reference: Reference
) -> dict[str, Any]:
  values = [row.pop("value") for row in rows]
  spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
  return {
    "value": float(np.mean(values)),
    "standard_deviation": spread,
    "values": values,
    "num_samples": protocol.num_samples,
    "num_reference": reference.pool.num,
    "extractor": protocol.extractor.name,
    "reference": protocol.split,
    "better": "higher" if metric in HIGHER_IS_BETTER else "lower",
    **rows[0],
  }


def _fd(sample: SampleSet, reference: Reference) -> dict[str, Any]:
  return {"value": _distance(sample.moments, reference.pool), "protocol": "all samples"}


def _sfd(sample: SampleSet, reference: Reference) -> dict[str, Any]:
  assert sample.spatial is not None
  assert reference.spatial is not None
  return {"value": _distance(sample.spatial, reference.spatial), "protocol": "all samples"}


def _distance(a: Moments, b: Moments) -> float:
  return metrics.frechet_distance(a.mean, a.covariance, b.mean, b.covariance)


def _fd_infinity(sample: SampleSet, reference: Reference) -> dict[str, Any]:
  pool = reference.pool
  line = metrics.frechet_infinity(sample.pool, pool.mean, pool.covariance)
  return {
    "value": line.value,
    "standard_error": _finite(line.standard_error),
    "points": [[int(n), float(v)] for n, v in zip(line.nums, line.values, strict=True)],
    "protocol": f"{len(line.nums)} subset sizes, a straight line in 1/N, the first seed",
  }


def _kd(sample: SampleSet, reference: Reference) -> dict[str, Any]:
  size = min(SUBSET_SIZE, len(sample.pool), len(reference.features))
  found = metrics.kernel_distance(sample.pool, reference.features, SUBSETS, size)
  return {
    "value": found.value,
    "standard_error": _finite(found.standard_error),
    "protocol": f"{SUBSETS} subsets of {size}, polynomial kernel of degree 3, unbiased",
  }


def _is(sample: SampleSet, reference: Reference) -> dict[str, Any]:
  del reference
  splits = min(SPLITS, len(sample.logits))
  found = metrics.inception_score(sample.logits, splits)
  return {"value": found.mean, "protocol": f"{splits} splits, shuffled"}


def _pair(index: int, count: Callable, k: int, words: str) -> Callable:
  def value(sample: SampleSet, reference: Reference) -> dict[str, Any]:
    found = count(reference.features, sample.pool, k)[index]
    return {"value": float(found), "protocol": f"{words}, k = {k}"}

  return value


def _finite(value: float) -> float | None:
  return float(value) if math.isfinite(value) else None


_PR = (metrics.precision_recall, PR_NEIGHBOURS, "distance at most the k-th neighbour's")
_DC = (metrics.density_coverage, DC_NEIGHBOURS, "distance below the k-th neighbour's")
# metric -> (function, samples that it needs)
_METRICS: Mapping[str, tuple[Callable, int]] = {
  "fd": (_fd, 2),
  "fd_infinity": (_fd_infinity, MIN_EXTRAPOLATED),
  "sfd": (_sfd, 2),
  "kd": (_kd, MIN_SUBSET),
  "is": (_is, 2),
  "precision": (_pair(0, *_PR), PR_NEIGHBOURS + 1),
  "recall": (_pair(1, *_PR), PR_NEIGHBOURS + 1),
  "density": (_pair(0, *_DC), DC_NEIGHBOURS + 1),
  "coverage": (_pair(1, *_DC), DC_NEIGHBOURS + 1),
}
