"""Compute sample metrics from features: NumPy and SciPy, float64, on the host, without jax.

Features have one row per image. If a metric treats samples and reference differently, its docstring
gives their order; symmetric metrics accept either order. Every function raises a one-sentence
ValueError if features are not finite or too few.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Literal

from diffusion_jax.core.own_code import own_code
from diffusion_jax.core.registry import Registry
from diffusion_jax.metrics.base import (
  FeatureSet,
  Measurement,
  Metric,
  MetricBase,
  describe_metric,
  metric_fault,
)
from diffusion_jax.metrics.frechet import (
  Extrapolation,
  FrechetDistance,
  FrechetInfinity,
  SpatialFrechetDistance,
  frechet_distance,
  frechet_infinity,
  frechet_standard_error,
  gaussian_distance,
  moments_distance,
)
from diffusion_jax.metrics.kernel import KernelDistance, KernelMetric, kernel_distance
from diffusion_jax.metrics.memorization import Copying, Distances, copying
from diffusion_jax.metrics.moments import Gaussian, Moments, add, merge, zeros
from diffusion_jax.metrics.neighbours import (
  Coverage,
  Density,
  Nearest,
  Precision,
  Recall,
  density_coverage,
  nearest,
  precision_recall,
)
from diffusion_jax.metrics.scores import InceptionScore, Score, inception_score
from diffusion_jax.types import UserError

METRICS = Registry(
  "metric",
  Metric,
  {
    "fid": FrechetDistance,
    "fid_infinity": FrechetInfinity,
    "sfid": SpatialFrechetDistance,
    "kid": KernelMetric,
    "is": InceptionScore,
    "precision": Precision,
    "recall": Recall,
    "density": Density,
    "coverage": Coverage,
  },
  base=MetricBase,
)
"""Sample metrics by name, as in `eval.metrics`."""


PACKAGED = tuple(METRICS)
"""Names of the metrics of this package."""

RESERVED = {name: cls for cls in METRICS.values() for name in (cls.name, cls.domain_name) if name}
"""Names in reports -> the class of this package that alone may have each."""


def create_metrics(asked: Literal["all"] | Sequence[str] = "all") -> list[Metric]:
  """Return metrics by their names in `METRICS` or as "module:Class".

  Args:
    asked: names; "all" for the whole registry, including those of installed packages.

  Raises:
    UserError: a metric does not exist, breaks the contract, or has the name of another metric,
      measured or not: what is called fid follows the published protocol.
  """
  if not isinstance(asked, Iterable) or (isinstance(asked, str) and asked != "all"):
    raise UserError(f"metrics={asked!r}: must be a list such as ['fid', 'kid'], or 'all'")
  names = [*METRICS, *METRICS.names()] if asked == "all" else asked
  chosen: list[Metric] = []
  taken: dict[str, str] = {}
  for entry in dict.fromkeys(names):
    metric = _create(entry)
    for name in {metric.name, metric.domain_name} - {""}:
      if (other := taken.setdefault(name, entry)) != entry:
        raise UserError(f"config.eval.metrics={entry}: it has the name {name}, as {other} does.")
    chosen.append(metric)
  return chosen


def _create(entry: str) -> Metric:
  """Create one metric and check its members."""
  cls = METRICS.find(entry, "config.eval.metrics")
  refusals = TypeError, ValueError
  try:
    with own_code({"eval.metrics": cls}, refusals):
      metric = cls()
  except refusals as error:
    raise UserError(
      f"config.eval.metrics={entry}: {cls.__name__}() raises {type(error).__name__}: {error}"
    ) from error
  with own_code({"eval.metrics": cls}):
    fault = metric_fault(metric) or _taken_name(metric)
  if fault:
    raise UserError(f"config.eval.metrics={entry}: {fault}.")
  return metric


def _taken_name(metric: Metric) -> str | None:
  """Return a description of a name that only a metric of this package may have, or None.

  fid_5k, fid_test and fid_adm are taken too: they are fid of 5,000 samples, against the test split
  or against ADM's statistics.
  """
  for field in ("name", "domain_name"):
    name = getattr(metric, field)
    stem = re.sub(r"(_(test|stats|adm|given\d*k?|\d+k?))+$", "", name)
    if RESERVED.get(stem, type(metric)) is not type(metric):
      return (
        f"{field} is {name!r}, but {stem} is a metric of this package; give yours another name, "
        f"e.g. 'my_{stem}'"
      )
  return None


__all__ = [
  "METRICS",
  "PACKAGED",
  "Copying",
  "Coverage",
  "Density",
  "Distances",
  "Extrapolation",
  "FeatureSet",
  "FrechetDistance",
  "FrechetInfinity",
  "Gaussian",
  "InceptionScore",
  "KernelDistance",
  "KernelMetric",
  "Measurement",
  "Metric",
  "MetricBase",
  "Moments",
  "Nearest",
  "Precision",
  "Recall",
  "Score",
  "SpatialFrechetDistance",
  "add",
  "copying",
  "create_metrics",
  "density_coverage",
  "describe_metric",
  "frechet_distance",
  "frechet_infinity",
  "frechet_standard_error",
  "gaussian_distance",
  "inception_score",
  "kernel_distance",
  "merge",
  "moments_distance",
  "nearest",
  "precision_recall",
  "zeros",
]


def __dir__() -> list[str]:
  """Return the public names, for completion."""
  return sorted(__all__)
