"""What every forward process is: alpha_t and sigma_t, their log-SNR and its inverse.

q(x_t | x_0) = N(alpha_t x_0, sigma_t^2 I), t in [0, 1], 0 = data. Given NumPy float64 times, as the
samplers' coefficients are, a process answers in NumPy float64; given JAX arrays, in JAX.
"""

import dataclasses
from collections.abc import Callable
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np

Times = Any
"""A time or an array of them (or what belongs to each): NumPy on the host, JAX on a device."""


@runtime_checkable
class Process(Protocol):
  """A forward process.

  Attributes:
    num_timesteps: T of a process that exists only at t = n / T; None: every t.
    prior_std: of the noise that x_1 is drawn from.
    min_time: the smallest time at which a network is asked.
  """

  @property
  def num_timesteps(self) -> int | None: ...

  @property
  def prior_std(self) -> float: ...

  @property
  def min_time(self) -> float: ...

  def alpha_sigma(self, t: Times) -> tuple[Times, Times]:
    """alpha_t and sigma_t."""
    ...

  def log_snr(self, t: Times) -> Times:
    """lambda_t = log(alpha_t^2 / sigma_t^2), falling in t."""
    ...

  def time_of(self, log_snr: Times) -> Times:
    """The time of a log-SNR; of a process with steps, the nearest one's."""
    ...

  def network_time(self, t: Times) -> Times:
    """What the network's time embedding takes."""
    ...

  def time_at(self, quantile: Times) -> Times:
    """The training time at a quantile in [0, 1)."""
    ...


def namespace(*values: Any) -> ModuleType:
  """numpy for host values, jax.numpy if any of them is a JAX array."""
  host = all(isinstance(v, np.ndarray | np.generic | float | int) for v in values)
  return np if host else jnp


@dataclasses.dataclass(frozen=True, eq=False)
class Continuous:
  """A process at every t in [min_time, 1], from its formulas.

  Attributes:
    coefficients: t -> (alpha_t, sigma_t).
    inverse: log-SNR -> t.
    embed: t -> what the network's time embedding takes.
    prior_std, min_time: see `Process`.
  """

  coefficients: Callable[[Times], tuple[Times, Times]]
  inverse: Callable[[Times], Times]
  embed: Callable[[Times], Times]
  prior_std: float = 1.0
  min_time: float = 0.0

  @property
  def num_timesteps(self) -> None:
    """None: it has no steps."""
    return None

  def alpha_sigma(self, t: Times) -> tuple[Times, Times]:
    return self.coefficients(t)

  def log_snr(self, t: Times) -> Times:
    alpha, sigma = self.coefficients(t)
    xp = namespace(alpha, sigma)
    with np.errstate(divide="ignore"):
      return 2.0 * (xp.log(alpha) - xp.log(sigma))

  def time_of(self, log_snr: Times) -> Times:
    return self.inverse(log_snr)

  def network_time(self, t: Times) -> Times:
    return self.embed(t)

  def time_at(self, quantile: Times) -> Times:
    """Uniform on [min_time, 1]."""
    return self.min_time + (1.0 - self.min_time) * quantile
