"""A variance-preserving process whose noise schedule is trained with the network.

gamma_t, a rising function of trained parameters, is minus the log-SNR: alpha_t^2 = sigmoid(-gamma),
sigma_t^2 = sigmoid(gamma). It answers in JAX whatever it is asked in. Source: Kingma et al. 2021
(arXiv 2107.00630), section 3.1. Images may enter at another scale, which is a factor of alpha.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from diffusion_jax.processes.base import Times

NETWORK_SCALE = 1000.0
BISECTIONS = 32
"""Halvings of [0, 1] that find the time of a log-SNR: to float32's last digit."""


@dataclasses.dataclass(frozen=True, eq=False)
class Learned:
  """A process at every t in [0, 1], for fixed parameters of its schedule.

  Attributes:
    gamma: t of any shape -> gamma of that shape, differentiable.
    first, last: gamma that the network sees as the times 0 and 1000.
    interior: gamma once more, to take the gradient of what lies between its ends; None: there is
      nothing to train.
    image_scale: factor of the images in x_t, and so of alpha.
  """

  gamma: Callable[[Times], Times]
  first: float
  last: float
  interior: Callable[[Times], Times] | None = None
  image_scale: float = 1.0

  @property
  def num_timesteps(self) -> None:
    """None: it has no steps."""
    return None

  @property
  def prior_std(self) -> float:
    """1: z_1 is taken for pure noise, and the bound pays for what it is not."""
    return 1.0

  @property
  def min_time(self) -> float:
    """0: there is noise at 0 already."""
    return 0.0

  def alpha_sigma(self, t: Times) -> tuple[Times, Times]:
    gamma = self._gamma(t)
    return self.image_scale * jnp.sqrt(jax.nn.sigmoid(-gamma)), jnp.sqrt(jax.nn.sigmoid(gamma))

  def log_snr(self, t: Times) -> Times:
    return 2.0 * math.log(self.image_scale) - self._gamma(t)

  def time_of(self, log_snr: Times) -> Times:
    """By bisection. Log-SNRs beyond the schedule's ends have the end's time, so that churn lifts no
    state beyond them."""
    wanted = 2.0 * math.log(self.image_scale) - jnp.asarray(log_snr, jnp.float32)

    def halve(_, bracket):
      low, high = bracket
      middle = 0.5 * (low + high)
      above = self._gamma(middle) > wanted
      return jnp.where(above, low, middle), jnp.where(above, middle, high)

    start = jnp.zeros_like(wanted), jnp.ones_like(wanted)
    low, high = jax.lax.fori_loop(0, BISECTIONS, halve, start)
    return 0.5 * (low + high)

  def network_time(self, t: Times) -> Times:
    return NETWORK_SCALE * (self._gamma(t) - self.first) / (self.last - self.first)

  def time_at(self, quantile: Times) -> Times:
    """Uniform on [0, 1]."""
    return quantile

  def _gamma(self, t: Times) -> Times:
    return self.gamma(jnp.asarray(t, jnp.float32))
