"""Contract of a forward process q(x_t | x_0) = N(alpha_t x_0, sigma_t^2 I), and defaults.

Time t is in [0, 1], where 0 is the data. For NumPy float64 times, as in the samplers' coefficients,
a process returns NumPy float64; for JAX arrays it returns JAX arrays. A config class is the process
itself: a frozen dataclass that inherits one of these bases and defines what has no default.

  ContinuousProcess    alpha_sigma(t), time_of(log_snr)
  VariancePreserving   log_snr(t), time_of(log_snr)
  DiscreteVP           betas(), in `discrete_vp`
  LearnedSchedule      init(key), gamma(params, t), in `learned`
"""

import abc
import dataclasses
from collections.abc import Callable
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffusion_jax.core.parts import Part
from diffusion_jax.types import Key, Params

Data = Float[Array, "B ..."]
"""Examples of any shape: images, points, sequences."""

Times = Any
"""A time, an array of times, or one value per time: NumPy on the host, JAX on a device."""

EMBED_SCALE = 999.0
"""Scale of the network's time input, 0 to 999, as in networks trained with 1000 steps."""


@runtime_checkable
class Process(Protocol):
  """A forward process, or a config of one with a learned noise schedule."""

  @property
  def num_timesteps(self) -> int | None:
    """T of a process that exists only at t = n / T; None: continuous time."""
    ...

  @property
  def prior_std(self) -> float:
    """Standard deviation of the distribution of x_1."""
    ...

  @property
  def min_time(self) -> float:
    """Smallest time at which a network is evaluated."""
    ...

  @property
  def learned(self) -> bool:
    """True if the process has parameters from `init`; without them only `bind` can be called."""
    ...

  @property
  def interior(self) -> Callable[[Times], Times] | None:
    """Map of t to -log_snr with gradients to a learned schedule's interior; None: no interior."""
    ...

  @property
  def noisier(self) -> tuple[str, str]:
    """Name of the field that makes x_1 noisier, and "higher" or "lower"; ("", "") if none does."""
    ...

  def init(self, key: Key) -> Params:
    """Return the initial parameters of the noise schedule; {} for a fixed one."""
    ...

  def bind(self, params: Params) -> "Process":
    """Return the process for given parameters; itself if it has none."""
    ...

  def alpha_sigma(self, t: Times) -> tuple[Times, Times]:
    """Return alpha_t and sigma_t."""
    ...

  def log_snr(self, t: Times) -> Times:
    """Return log(alpha_t^2 / sigma_t^2), which decreases in t."""
    ...

  def time_of(self, log_snr: Times) -> Times:
    """Return the time of a log-SNR; on a process with steps, the nearest step's."""
    ...

  def network_time(self, t: Times) -> Times:
    """Return the input of the network's time embedding."""
    ...

  def time_at(self, quantile: Times) -> Times:
    """Return the training time at a quantile in [0, 1)."""
    ...


@dataclasses.dataclass(frozen=True)
class ProcessBase(Part, abc.ABC):
  """Defaults of a process: a fixed schedule at every t in [min_time, 1].

  An entry must define the abstract methods, or use one of the bases below. A field or a property
  may override `prior_std` and `min_time`.
  """

  num_timesteps = None
  prior_std = 1.0
  min_time = 0.0
  learned = False
  noisier = ("", "")

  @property
  def interior(self) -> Callable[[Times], Times] | None:
    """None: the schedule is fixed."""
    return None

  @abc.abstractmethod
  def alpha_sigma(self, t: Times) -> tuple[Times, Times]:
    """Return alpha_t and sigma_t."""

  @abc.abstractmethod
  def log_snr(self, t: Times) -> Times:
    """Return log(alpha_t^2 / sigma_t^2), which decreases in t."""

  @abc.abstractmethod
  def time_of(self, log_snr: Times) -> Times:
    """Return the time of a log-SNR."""

  def init(self, key: Key) -> Params:
    """Return {}: the schedule is fixed."""
    del key
    return {}

  def bind(self, params: Params) -> Process:
    """Return itself: the schedule is fixed."""
    del params
    return self

  def network_time(self, t: Times) -> Times:
    """Return 999 t."""
    return EMBED_SCALE * t

  def time_at(self, quantile: Times) -> Times:
    """Return the quantile of uniform times on [min_time, 1]."""
    return self.min_time + (1.0 - self.min_time) * quantile


@dataclasses.dataclass(frozen=True)
class ContinuousProcess(ProcessBase):
  """A process in continuous time, given by `alpha_sigma` and `time_of`."""

  def log_snr(self, t: Times) -> Times:
    """Return log(alpha_t^2 / sigma_t^2); infinite without data or without noise."""
    alpha, sigma = self.alpha_sigma(t)
    xp = namespace(alpha, sigma)
    with np.errstate(divide="ignore"):
      return 2.0 * (xp.log(alpha) - xp.log(sigma))


@dataclasses.dataclass(frozen=True)
class VariancePreserving(ProcessBase):
  """A process with alpha_t^2 + sigma_t^2 = 1, given by `log_snr` and `time_of`."""

  def alpha_sigma(self, t: Times) -> tuple[Times, Times]:
    """Return the square roots of sigmoid(log_snr) and sigmoid(-log_snr)."""
    x = self.log_snr(t)
    xp = namespace(x)
    return xp.exp(-0.5 * softplus(-x)), xp.exp(-0.5 * softplus(x))


def check_bindable(process: Any) -> None:
  """Raise a ValueError for what is no process: a name, a class instead of an instance, None."""
  if isinstance(process, type):
    raise ValueError(f"process={process.__name__} is a class; write {process.__name__}()")
  if not hasattr(process, "alpha_sigma"):
    raise ValueError(f"process={process!r}: it must be a process, e.g. processes.Flow()")


def softplus(x: Times) -> Times:
  """Return log(1 + e^x), elementwise."""
  return namespace(x).logaddexp(x, 0.0)


def namespace(*values: Any) -> ModuleType:
  """Return numpy for host values, jax.numpy if any value is a JAX array."""
  host = all(isinstance(v, np.ndarray | np.generic | float | int) for v in values)
  return np if host else jnp
