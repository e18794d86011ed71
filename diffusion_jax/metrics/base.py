"""Contract of a sample metric: computation, name, description, direction and report card.

A metric is one frozen dataclass and one entry of `metrics.METRICS`. All code that names metrics
(the evaluation, the terminal, the report) reads these members.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from diffusion_jax.core.parts import Part
from diffusion_jax.metrics.moments import Gaussian, Moments

PUBLISHED_NUM_SAMPLES = 50_000
"""Number of samples in the published protocols."""

FEATURES = frozenset({"logits", "spatial"})
"""Features that an extractor may not provide; see `Metric.needs`."""


class FeatureSet(NamedTuple):
  """Features of one set of images.

  Attributes:
    pool: features of individual images, in order; for a reference at most 50,000, evenly spaced,
      and none if others have published only its mean and covariance.
    moments: sums of the pooled features over all images; of a reference of others their Gaussian.
    logits: class logits of the extractor; None for a reference.
    spatial: sums of the spatial features, or their Gaussian; None if the extractor has none.
  """

  pool: Float[np.ndarray, "N D"]
  moments: Moments | Gaussian
  logits: Float[np.ndarray, "N K"] | None = None
  spatial: Moments | Gaussian | None = None


class Measurement(NamedTuple):
  """The value of a metric on one set of samples.

  Attributes:
    value: value of the metric.
    standard_error: standard error of the value over fresh samples; None if it is not estimated.
    protocol: settings that another program needs to reproduce the value, in words.
    details: further entries for this metric in metrics.json; JSON values.
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
    """Name of the metric: lower-case letters, digits and _, e.g. "fid"."""
    ...

  @property
  def domain_name(self) -> str:
    """Name on features other than the published Inception's, e.g. "fd"; empty: the same name."""
    ...

  @property
  def description(self) -> str:
    """Description for the report, e.g. "share of samples inside the manifold of the data"."""
    ...

  @property
  def domain_description(self) -> str:
    """Description on features other than the published Inception's; empty: the same."""
    ...

  @property
  def higher_is_better(self) -> bool:
    """Direction: True if a larger value is better."""
    ...

  @property
  def card(self) -> float:
    """Position among the cards at the top of the report, lower first; 0: no card.

    Likelihoods have position 2. The first four cards are shown.
    """
    ...

  @property
  def needs(self) -> frozenset[str]:
    """Features needed besides the pooled ones: "logits", "spatial"; skipped if there are none."""
    ...

  @property
  def full_num_samples(self) -> int:
    """Number of samples in its protocol; other numbers are added to the name, e.g. fid_5k."""
    ...

  @property
  def min_num_reference(self) -> int:
    """Minimum number of reference images."""
    ...

  @property
  def first_seed_only(self) -> bool:
    """True if only the first of several sets of samples is measured, to save time."""
    ...

  @property
  def in_sweeps(self) -> bool:
    """True if it is measured at each setting of a sweep."""
    ...

  def min_num_samples(self, num_features: int) -> int:
    """Return the minimum number of samples for `num_features` features per image."""
    ...

  def compute(self, samples: FeatureSet, reference: FeatureSet) -> Measurement | float:
    """Return the value with its error; raise a one-sentence ValueError if that is impossible."""
    ...


@dataclasses.dataclass(frozen=True)
class MetricBase(Part):
  """Defaults of a metric: one name, no card, 50,000 samples, at least 2 reference images."""

  domain_name: ClassVar[str] = ""
  domain_description: ClassVar[str] = ""
  card: ClassVar[float] = 0.0
  needs: ClassVar[frozenset[str]] = frozenset()
  full_num_samples: ClassVar[int] = PUBLISHED_NUM_SAMPLES
  min_num_reference: ClassVar[int] = 2
  first_seed_only: ClassVar[bool] = False
  in_sweeps: ClassVar[bool] = True

  def min_num_samples(self, num_features: int) -> int:
    """Return `min_num_reference`, for any number of features."""
    del num_features
    return self.min_num_reference


def metric_fault(metric: Metric) -> str | None:
  """Return a description of an invalid member of a metric, or None."""
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
  """Return the description of a metric.

  Args:
    metric: the metric.
    is_published: True on the published Inception features.
  """
  return metric.description if is_published else metric.domain_description or metric.description
