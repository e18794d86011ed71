"""A variance-preserving process whose noise schedule is trained with the network.

gamma_t, an increasing function with trained parameters, is minus the log-SNR: alpha_t^2 =
sigmoid(-gamma), sigma_t^2 = sigmoid(gamma). It always returns JAX arrays. Source: Kingma et al.
2021 (arXiv 2107.00630), section 3.1. A scale of the images is a factor of alpha.
"""

import abc
import dataclasses
import functools
import math
from collections.abc import Callable
from typing import NoReturn

import jax
import jax.numpy as jnp

from diffusion_jax.processes.base import ProcessBase, Times
from diffusion_jax.types import Key, Params

NETWORK_SCALE = 1000.0
BISECTIONS = 32
"""Bisections of [0, 1] to find the time of a log-SNR, to float32 precision."""


@dataclasses.dataclass(frozen=True)
class LearnedSchedule(ProcessBase):
  """A config of a learned schedule, given by `init` and `gamma`; `bind` makes it a process.

  Attributes:
    gamma_min: minus the log-SNR at t = 0 at the start of training.
    gamma_max: minus the log-SNR at t = 1 at the start of training.
    image_scale: factor of the images before noise is added: (L - 1) / L puts level k of L at 2 (k +
      1/2) / L - 1, as in the original.
  """

  gamma_min: float = -13.3
  gamma_max: float = 5.0
  image_scale: float = 1.0

  learned = True
  noisier = ("gamma_max", "higher")

  def __post_init__(self):
    if self.gamma_min >= self.gamma_max:
      raise ValueError(f"gamma_min={self.gamma_min} must be below gamma_max={self.gamma_max}")
    if self.image_scale <= 0:
      raise ValueError(
        f"image_scale={self.image_scale} must be positive; 1 leaves images as they are"
      )

  @abc.abstractmethod
  def init(self, key: Key) -> Params:
    """Return the initial parameters, a dict of float32 arrays."""

  @abc.abstractmethod
  def gamma(self, params: Params, t: Times) -> Times:
    """Return gamma, which increases with t, for t of any shape in [0, 1].

    Its gradient goes to the parameters that the variational bound depends on.
    """

  def bind(self, params: Params) -> "Learned":
    """Return the process for these parameters."""
    gamma = functools.partial(self.gamma, params)
    return Learned(gamma, self.gamma_min, self.gamma_max, None, self.image_scale)

  def alpha_sigma(self, t: Times) -> NoReturn:
    self._refuse()

  def log_snr(self, t: Times) -> NoReturn:
    self._refuse()

  def time_of(self, log_snr: Times) -> NoReturn:
    self._refuse()

  def network_time(self, t: Times) -> NoReturn:
    self._refuse()

  def _refuse(self) -> NoReturn:
    raise ValueError(
      f"{type(self).__name__} has parameters: bind them first, process.bind(process.init(key))"
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Learned(ProcessBase):
  """A process at every t in [0, 1], for fixed parameters of its schedule.

  Attributes:
    gamma: function from t of any shape to gamma of that shape, differentiable.
    first, last: values of gamma that the network sees as the times 0 and 1000.
    interior: gamma again, with gradients to the parts between its endpoints; None: nothing to
      train.
    image_scale: factor of the images in x_t, and so of alpha.
  """

  gamma: Callable[[Times], Times]
  first: float
  last: float
  interior: Callable[[Times], Times] | None = None  # pyright: ignore[reportIncompatibleMethodOverride]
  image_scale: float = 1.0

  def alpha_sigma(self, t: Times) -> tuple[Times, Times]:
    gamma = self._gamma(t)
    return self.image_scale * jnp.sqrt(jax.nn.sigmoid(-gamma)), jnp.sqrt(jax.nn.sigmoid(gamma))

  def log_snr(self, t: Times) -> Times:
    return 2.0 * math.log(self.image_scale) - self._gamma(t)

  def time_of(self, log_snr: Times) -> Times:
    """Return the time of a log-SNR by bisection; beyond the range, the nearest endpoint's."""
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

  def _gamma(self, t: Times) -> Times:
    return self.gamma(jnp.asarray(t, jnp.float32))
