"""Processes that add noise to unscaled data, and the straight line from data to noise."""

import dataclasses
import math

from diffusion_jax.processes.base import EMBED_SCALE, ContinuousProcess, Times, namespace


@dataclasses.dataclass(frozen=True)
class VarianceExploding(ContinuousProcess):
  """alpha = 1 and log sigma_t linear in t from sigma_min to sigma_max.

  The network sees log(sigma) / 4. Source: Song et al. 2021 (arXiv 2011.13456), equation 30 (the VE
  SDE), with 0.01 and 50 for CIFAR-10; Karras et al. 2022 (arXiv 2206.00364), table 1, whose EDM is
  the same family with 0.002 and 80.

  Attributes:
    sigma_min: standard deviation of the noise at t = 0.
    sigma_max: standard deviation of the noise at t = 1.
  """

  sigma_min: float = 0.01
  sigma_max: float = 50.0

  noisier = ("sigma_max", "higher")

  def __post_init__(self):
    if not 0 < self.sigma_min < self.sigma_max:
      raise ValueError(
        f"sigma_min={self.sigma_min}, sigma_max={self.sigma_max}: both must be positive, in that "
        "order"
      )

  @property
  def prior_std(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
    """Standard deviation of the noise at t = 1, sigma_max."""
    return self.sigma_max

  def alpha_sigma(self, t: Times) -> tuple[Times, Times]:
    """Return 1 and sigma_min (sigma_max / sigma_min)^t."""
    sigma = namespace(t).exp(self._log_sigma(t))
    return namespace(t).ones_like(sigma), sigma

  def time_of(self, log_snr: Times) -> Times:
    """Return the time at which log sigma = -log_snr / 2."""
    return (-0.5 * log_snr - math.log(self.sigma_min)) / self._width

  def network_time(self, t: Times) -> Times:
    """Return log(sigma_t) / 4."""
    return 0.25 * self._log_sigma(t)

  @property
  def _width(self) -> float:
    return math.log(self.sigma_max / self.sigma_min)

  def _log_sigma(self, t: Times) -> Times:
    return math.log(self.sigma_min) + t * self._width


@dataclasses.dataclass(frozen=True)
class EDMProcess(VarianceExploding):
  """EDM's noise levels, 0.002 to 80 (Karras et al. 2022, arXiv 2206.00364, table 1)."""

  sigma_min: float = 0.002
  sigma_max: float = 80.0


@dataclasses.dataclass(frozen=True)
class Flow(ContinuousProcess):
  """x_t = (1 - t) x_0 + t eps: flow matching's straight paths, rectified flow.

  Sources: Lipman et al. 2023 (arXiv 2210.02747) and Liu et al. 2023 (arXiv 2209.03003), with time
  running from data to noise; the shift of Esser et al. 2024 (arXiv 2403.03206), equation 23.

  Attributes:
    shift: s of u = s t / (1 + (s - 1) t), the position on the path at time t; above 1 means more
      noise, for larger images. It adds -2 log(s) to the log-SNR.
    min_time: smallest time in training and sampling; 0: that of the data. Above it, a sampler's
      last step goes from there to the data, as with the schedulers of diffusers.
  """

  shift: float = 1.0
  min_time: float = 0.0  # pyright: ignore[reportIncompatibleVariableOverride]

  def __post_init__(self):
    if self.shift <= 0:
      raise ValueError(f"shift={self.shift} must be positive")
    if not 0 <= self.min_time < 0.5:
      raise ValueError(f"min_time={self.min_time} must be at least 0 and below 0.5")

  def alpha_sigma(self, t: Times) -> tuple[Times, Times]:
    """Return 1 - u and u."""
    return 1.0 - self._position(t), self._position(t)

  def time_of(self, log_snr: Times) -> Times:
    """Return 1 / (1 + s e^(log_snr / 2))."""
    return 1.0 / (1.0 + self.shift * namespace(log_snr).exp(0.5 * log_snr))

  def network_time(self, t: Times) -> Times:
    """Return 999 u."""
    return EMBED_SCALE * self._position(t)

  def _position(self, t: Times) -> Times:
    """Return u, the distance from the data along the path."""
    return self.shift * t / (1.0 + (self.shift - 1.0) * t)
