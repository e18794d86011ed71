"""Observation models p(x | z) of a VAE: the meaning of its decoder network's output.

Each is a config dataclass. Images are on the grid 2 k / (L - 1) - 1 of their levels k = 0..L-1.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.core import distributions
from diffusion_jax.core.parts import Part

Raw = Float[Array, "B H W P"]
Images = Float[Array, "B H W C"]


@dataclasses.dataclass(frozen=True)
class Bernoulli(Part):
  """A Bernoulli variable per pixel, 1 with probability sigmoid(logit).

  A grey image represents its random binarisations, in which a pixel is 1 with probability
  k / (L - 1). The log-probability is their expectation; its bits/dim count two levels for any L.
  """

  def num_outputs(self, channels: int) -> int:
    return channels

  def num_levels(self, num_levels: int | None) -> int | None:
    del num_levels
    return 2

  def log_prob(self, raw: Raw, x: Images, num_levels: int | None) -> Float[Array, "B"]:
    del num_levels
    return _sum(distributions.bernoulli_log_prob((x + 1.0) / 2.0, raw))

  def mean(self, raw: Raw) -> Images:
    return 2.0 * jax.nn.sigmoid(raw) - 1.0


@dataclasses.dataclass(frozen=True)
class Gaussian(Part):
  """A Gaussian per pixel: integrated over each level's bin, or its density for float data.

  Attributes:
    std: standard deviation on the [-1, 1] axis; None: the network predicts one per pixel.
    min_log_std: lower bound of the predicted log-deviation.
  """

  std: float | None = None
  min_log_std: float = -7.0

  def __post_init__(self):
    if self.std is not None and self.std <= 0:
      raise ValueError(f"std={self.std} must be positive, or none to predict it")

  def num_outputs(self, channels: int) -> int:
    return channels if self.std is not None else 2 * channels

  def num_levels(self, num_levels: int | None) -> int | None:
    return num_levels

  def log_prob(self, raw: Raw, x: Images, num_levels: int | None) -> Float[Array, "B"]:
    mean, log_std = self._split(raw)
    if num_levels is None:
      return _sum(distributions.gaussian_log_prob(x, mean, log_std))
    return _sum(distributions.discretized_gaussian_log_prob(x, mean, log_std, num_levels))

  def mean(self, raw: Raw) -> Images:
    return self._split(raw)[0]

  def _split(self, raw):
    if self.std is not None:
      return raw, jnp.full_like(raw, math.log(self.std))
    mean, log_std = jnp.split(raw, 2, axis=-1)
    return mean, jnp.maximum(log_std, self.min_log_std)


@dataclasses.dataclass(frozen=True)
class DiscretizedLogistic(Part):
  """A logistic per pixel, integrated over the bins of the data's levels.

  Attributes:
    min_log_scale: lower bound of the predicted log-scale on the [-1, 1] axis.
  """

  min_log_scale: float = -7.0

  def num_outputs(self, channels: int) -> int:
    return 2 * channels

  def num_levels(self, num_levels: int | None) -> int | None:
    if num_levels is None:
      raise ValueError("the discretized_logistic decoder needs data with levels; use gaussian")
    return num_levels

  def log_prob(self, raw: Raw, x: Images, num_levels: int) -> Float[Array, "B"]:
    mean, log_scale = self._split(raw)
    return _sum(distributions.discretized_logistic_log_prob(x, mean, log_scale, num_levels))

  def mean(self, raw: Raw) -> Images:
    return self._split(raw)[0]

  def _split(self, raw):
    mean, log_scale = jnp.split(raw, 2, axis=-1)
    return mean, jnp.maximum(log_scale, self.min_log_scale)


def _sum(x: Float[Array, "B ..."]) -> Float[Array, "B"]:
  return jnp.sum(x, axis=tuple(range(1, x.ndim)))
