"""EDM's loss, weighted at each noise level by what the model has learned of its own error."""

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.losses.base import Objective
from diffusion_jax.losses.weighted import EDMLoss
from diffusion_jax.processes import Process
from diffusion_jax.types import Params

Values = Float[Array, "B"]


@dataclasses.dataclass(frozen=True)
class Uncertainty:
  """L(sigma) / exp(u(sigma)) + u(sigma), with EDM's L and a learned u of the noise level.

  Where u is best, exp(u) is the mean of L at that noise level, and every level's gradient counts
  alike. u = w . f(log(sigma) / 4) is linear in `num_features` random Fourier features, with
  sigma / alpha for sigma; w starts at 0, so that the loss starts as EDM's. The original also keeps
  the norm of w at 1. Source: Karras et al. 2024 (arXiv 2312.02696), section 2.2 and equation 20.

  Attributes:
    log_sigma_mean, log_sigma_std, sigma_data: as of EDMLoss; the paper has -0.4, 1.0 and 0.5.
    num_features: of u.
  """

  log_sigma_mean: float = -0.4
  log_sigma_std: float = 1.0
  sigma_data: float = 0.5
  num_features: int = 128

  needs_derivative: ClassVar[bool] = False
  needs_variance: ClassVar[bool] = False

  def __post_init__(self):
    self._edm()
    if self.num_features < 1:
      raise ValueError(f"num_features={self.num_features} must be at least 1")

  def objective(self, process: Process, num_levels: int | None = None) -> Objective:
    """The loss with u; its metrics are "edm", EDM's own loss, and "uncertainty", u."""
    del process, num_levels
    edm = self._edm()

    def measured(network, process, params, own, memory, place, keys, *rest: Any):
      del place
      values = edm(network, process, params, keys, *rest)
      log_sigma = -0.5 * process.log_snr(edm.training_times(process, keys))
      u = uncertainty(own, log_sigma)
      return values * jnp.exp(-u) + u, {"edm": values, "uncertainty": u}, memory

    return Objective(lambda key: {"weight": jnp.zeros(self.num_features)}, {}, measured)

  def _edm(self) -> EDMLoss:
    return EDMLoss(self.log_sigma_mean, self.log_sigma_std, self.sigma_data)


def uncertainty(own: Params, log_sigma: Values) -> Values:
  """u at noise levels, from its parameters."""
  return fourier_features(0.25 * log_sigma, len(own["weight"])) @ own["weight"]


def fourier_features(x: Values, num: int) -> Float[Array, "B D"]:
  """sqrt(2) cos(2 pi (f x + p)): mean square 1, with f ~ N(0, 1) and p ~ U(0, 1).

  The frequencies and phases are the same in every run and not trained. Source: Karras et al. 2024
  (arXiv 2312.02696), equation 75.
  """
  keys = jax.random.split(jax.random.key(0))
  frequency, phase = jax.random.normal(keys[0], (num,)), jax.random.uniform(keys[1], (num,))
  angle = 2.0 * math.pi * (x[:, None] * frequency + phase)
  return math.sqrt(2.0) * jnp.cos(angle)
