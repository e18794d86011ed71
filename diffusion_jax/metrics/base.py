"""The contract of a sample metric: its computation, names, words, direction and report card.

A metric is one frozen dataclass and one entry of `metrics.METRICS`. Everything else that names
metrics (the evaluation, the terminal, the report) reads these members.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from diffusion_jax.metrics.moments import Moments

PUBLISHED_NUM_SAMPLES = 50_000
"""Samples of the published protocols."""

FEATURES = frozenset({"logits", "spatial"})
"""Features that an extractor may lack; see `Metric.needs`."""


class FeatureSet(NamedTuple):
  """Features of one set of images.

  Attributes:
    pool: features of single images, in order; at most 50,000 of a reference, evenly spaced.
    moments: sums of the pooled features of all images.
    logits: class scores of the extractor; None for a reference.
    spatial: sums of the spatial features; None for an extractor without them.
  """

  pool: Float[np.ndarray, "N D"]
  moments: Moments
  logits: Float[np.ndarray, "N K"] | None = None
  spatial: Moments | None = None


class Measurement(NamedTuple):
  """The value of a metric on one set of samples.

  Attributes:
    value: of the metric.
    standard_error: of the value over fresh samples; None if the metric has no estimate of it.
    protocol: settings that another program needs for the same figure, in words.
    details: further entries of the figure in metrics.json; JSON values.
  """

  value: float
  standard_error: float | None = None
  protocol: str = ""
  details: Mapping[str, Any] = {}


@runtime_checkable
class Metric(Protocol):
  """A sample metric.

  `MetricBase` has defaults for all but name, description, higher_is_better and compute.
  """

  @property
  def name(self) -> str:
    """Name of its figures: lower-case letters, digits and _, e.g. "fid"."""
    ...

  @property
  def domain_name(self) -> str:
    """Name on other features than the published Inception's, e.g. "fd"; empty: the same name."""
    ...

  @property
  def description(self) -> str:
    """Words for the report, e.g. "share of samples inside the manifold of the data"."""
    ...

  @property
  def domain_description(self) -> str:
    """Words for it on other features than the published Inception's; empty: the same words."""
    ...

  @property
  def higher_is_better(self) -> bool:
    """Direction: True if a larger value is better."""
    ...

  @property
  def card(self) -> float:
    """Place among the cards at the top of the report, lower first; 0: no card.

    Likelihoods have place 2 and the first four cards are shown.
    """
    ...

  @property
  def needs(self) -> frozenset[str]:
    """Features beside the pooled ones: "logits", "spatial"; left out if an extractor has none."""
    ...

  @property
  def full_num_samples(self) -> int:
    """Number of samples of its protocol; figures of other numbers are stamped, as fid_5k is."""
    ...

  @property
  def min_num_reference(self) -> int:
    """Smallest number of reference images."""
    ...

  @property
  def first_seed_only(self) -> bool:
    """True if only the first of several sets of samples is measured, since it takes long."""
    ...

  @property
  def in_sweeps(self) -> bool:
    """True if it is measured at each setting of a sweep."""
    ...

  def min_num_samples(self, num_features: int) -> int:
    """Smallest number of samples, with `num_features` features an image."""
    ...

  def compute(self, samples: FeatureSet, reference: FeatureSet) -> Measurement | float:
    """Return the value with its error; ValueError, one sentence, if it cannot be computed."""
    ...


@dataclasses.dataclass(frozen=True)
class MetricBase:
  """Defaults of a metric: one name on all features, no card, 50,000 samples, at least 2 images."""

  domain_name: ClassVar[str] = ""
  domain_description: ClassVar[str] = ""
  card: ClassVar[float] = 0.0
  needs: ClassVar[frozenset[str]] = frozenset()
  full_num_samples: ClassVar[int] = PUBLISHED_NUM_SAMPLES
  min_num_reference: ClassVar[int] = 2
  first_seed_only: ClassVar[bool] = False
  in_sweeps: ClassVar[bool] = True

  def min_num_samples(self, num_features: int) -> int:
    """Return the smallest number of reference images."""
    del num_features
    return self.min_num_reference


def metric_fault(metric: Metric) -> str | None:
  """Return what is wrong with the values of a metric's members, or None."""
  for field in ("name", "domain_name"):
    name = getattr(metric, field)
    if (name or field == "name") and not re.fullmatch("[a-z][a-z0-9_]*", str(name)):
      return f"{field} is {name!r}; it must be lower-case letters, digits and _, e.g. 'fid'"
  if not metric.description or not isinstance(metric.description, str):
    return f"description is {metric.description!r}; it must be words for the report"
  if strange := sorted(set(metric.needs) - FEATURES):
    return f"needs has {strange[0]!r}; allowed are {', '.join(sorted(FEATURES))}"
  return None


def describe_metric(metric: Metric, is_published: bool) -> str:
  """Return the words for a metric.

  Args:
    metric: any.
    is_published: on the published Inception features.
  """
  return metric.description if is_published else metric.domain_description or metric.description
