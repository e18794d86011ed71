"""A metric in a plug-in: the distance of the samples' mean feature from the data's."""

import dataclasses

import numpy as np

from diffusion_jax.metrics.base import Measurement, MetricBase


@dataclasses.dataclass(frozen=True)
class MeanShift(MetricBase):
  """Squared distance of the mean features, divided by the reference's total variance.

  The standard error is due to the samples' mean, to first order.
  """

  name = "mean_shift"
  description = "squared distance between mean features, in units of the data's variance"
  higher_is_better = False

  def compute(self, samples, reference):
    """Return the distance with its standard error."""
    shift = samples.pool.mean(0) - reference.pool.mean(0)
    variance = np.square(reference.pool - reference.pool.mean(0)).sum(1).mean()
    along = samples.pool @ shift
    error = 2 * along.std(ddof=1) / np.sqrt(len(along))
    return Measurement(shift @ shift / variance, error / variance)
