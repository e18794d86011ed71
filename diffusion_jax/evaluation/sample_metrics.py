"""Sample metrics against a reference, with names that identify the protocol."""

import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.core import progress
from diffusion_jax.core.own_code import describe_error, is_own, place_of, where_raised
from diffusion_jax.evaluation.foreign_statistics import FROM_PICTURES, measurable
from diffusion_jax.evaluation.reference import Reference
from diffusion_jax.extractors import Extractor, Features
from diffusion_jax.metrics import (
  FeatureSet,
  Measurement,
  Metric,
  Moments,
  describe_metric,
  moments,
)

PUBLISHED = "inception"
"""Name of the extractor with the published Inception weights."""


class Protocol(NamedTuple):
  """Facts that determine a figure's name.

  Attributes:
    extractor: feature network.
    split: split of the reference; names omit "train".
    num_samples: number of samples.
    num_reference: number of images of the reference; None: unknown.
  """

  extractor: Extractor
  split: str
  num_samples: int
  num_reference: int | None = 0

  def name(self, metric: Metric) -> str:
    """Return fid, fid_5k, fid_test, fid_given20, fid_adm, fd_digits: deviations show.

    Images or statistics from a user have their number in the name, because no data set implies it.
    """
    name = self.extractor.name
    domain_metric = metric.domain_name or metric.name
    stem = metric.name if name == PUBLISHED else f"{domain_metric}_{name}"
    given = f"given{short_count(self.num_reference or 0)}"
    split = {"train": [], "given": [given]}.get(self.split, [self.split])
    is_full = self.num_samples == self.full_num_samples(metric)
    return "_".join([stem, *split, *([] if is_full else [short_count(self.num_samples)])])

  def full_num_samples(self, metric: Metric) -> int:
    """Return the samples in the metric's protocol; for domain features at most the reference's."""
    full = metric.full_num_samples
    return full if self.extractor.resolution is None else min(self.num_reference or full, full)


def short_count(num: int) -> str:
  """Format 5000 as "5k", 1500 as "1500"."""
  return f"{num // 1000}k" if num % 1000 == 0 else str(num)


def gather(batches: Sequence[Features]) -> FeatureSet:
  """Join the features of successive chunks; the sums do not depend on the chunks' devices."""
  sums = moments.zeros(batches[0].pool.shape[1])
  spatial = None if batches[0].spatial is None else moments.zeros(batches[0].spatial.shape[1])
  for batch in batches:
    sums = moments.add(sums, batch.pool)
    if spatial is not None and batch.spatial is not None:
      spatial = moments.add(spatial, batch.spatial)
  pool, logits = (np.concatenate(arrays) for arrays in zip(*(p[:2] for p in batches), strict=True))
  return FeatureSet(pool, sums, logits if logits.shape[1] else None, spatial)


def measure_samples(
  sets: Sequence[FeatureSet],
  reference: Reference,
  extractor: Extractor,
  metrics: Sequence[Metric],
  are_named: bool = False,
) -> tuple[dict[str, dict[str, Any]], list[str]]:
  """Compute all figures of sample sets that differ in their seed only.

  Args:
    sets: sets of samples, at least one; with several, a figure is their mean with their spread.
    reference: reference statistics.
    extractor: feature network of both.
    metrics: metrics to measure.
    are_named: the config names them one by one, so that a line says if the extractor lacks what
      one of them needs.

  Returns:
    name -> figure as in metrics.json, and one line for each unavailable figure.
  """
  other = FeatureSet(reference.features, reference.pool, None, reference.spatial)
  num_samples = len(sets[0].pool)
  split, (metrics, left_out) = reference.stamp["split"], measurable(metrics, reference.stamp)
  figures, missing = {}, [left_out] if left_out else []
  for metric in metrics:
    protocol = Protocol(extractor, split, num_samples, _num_reference(metric, reference))
    name, chosen = protocol.name(metric), sets[:1] if metric.first_seed_only else sets
    if lacking := [n for n in sorted(metric.needs) if _lacks(sets[0], other, n)]:
      needs = f"needs {' and '.join(lacking)} features, which {extractor.name} does not have"
      missing += [f"{name} {needs}"] * are_named
      continue
    try:
      if lack := _too_few(metric, sets[0], other):
        missing.append(f"{name} {lack}")
        continue
      with progress.phase(f"computing {name}"):
        measured = [_measured(metric.compute(features, other)) for features in chosen]
      figures[name] = _figure(metric, measured, protocol)
    except ValueError as error:
      missing.append(f"{name} cannot be computed: {error}")
    except Exception as error:
      if not is_own(metric) or isinstance(error, MemoryError):
        raise
      # the samples took hours and the other metrics are fine
      why = f"{place_of(metric)} raised {describe_error(error)}{where_raised(error)}"
      missing.append(f"{name} cannot be computed: {why}")
  return figures, missing


def _num_reference(metric: Metric, reference: Reference) -> int | None:
  """Return the number of images on the reference's side; None if nobody knows it."""
  if isinstance(reference.pool, Moments):
    return reference.pool.num
  return len(reference.features) if isinstance(metric, FROM_PICTURES) else None


def _lacks(samples: FeatureSet, reference: FeatureSet, features: str) -> bool:
  """Return whether features are missing; a reference has no logits."""
  if features == "logits":
    return samples.logits is None
  return samples.spatial is None or reference.spatial is None


def _too_few(metric: Metric, samples: FeatureSet, reference: FeatureSet) -> str | None:
  """Return what a metric lacks on either side, or None."""
  needed, num = metric.min_num_samples(samples.pool.shape[1]), len(samples.pool)
  if num < needed:
    return f"needs at least {needed} samples; there are {num}"
  if not isinstance(reference.moments, Moments) and not isinstance(metric, FROM_PICTURES):
    return None  # it needs only the mean and the covariance
  needed, num = metric.min_num_reference, len(reference.pool)
  return f"needs at least {needed} reference images; there are {num}" if num < needed else None


def _measured(value: Measurement | float) -> Measurement:
  """Return a metric's result as a Measurement, also if it is a bare value."""
  if isinstance(value, Measurement):
    return value
  try:
    return Measurement(float(value))
  except TypeError as error:
    raise ValueError(f"compute gave {type(value).__name__}, not a Measurement") from error


def _figure(
  metric: Metric, measurements: Sequence[Measurement], protocol: Protocol
) -> dict[str, Any]:
  values, first = [float(m.value) for m in measurements], measurements[0]
  spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
  figure = {
    "value": float(np.mean(values)),
    "standard_deviation": spread,
    "values": values,
    "num_samples": protocol.num_samples,
    "num_reference": protocol.num_reference,
    "extractor": protocol.extractor.name,
    "reference": protocol.split,
    "better": "higher" if metric.higher_is_better else "lower",
    "metric": metric.name,
    "description": describe_metric(metric, protocol.extractor.name == PUBLISHED),
    "card": metric.card,
    "protocol": first.protocol,
  }
  figure |= {name: value for name, value in first.details.items() if name not in figure}
  try:
    json.dumps(figure)
  except TypeError as error:
    raise ValueError(f"its details are no JSON values ({error})") from error
  if first.standard_error is not None:
    error = float(first.standard_error)
    figure["standard_error"] = error if math.isfinite(error) else None
  return figure
