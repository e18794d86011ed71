"""Variance-preserving processes in continuous time: alpha_t^2 + sigma_t^2 = 1, and sub-VP.

alpha_t^2 = sigmoid(lambda_t), sigma_t^2 = sigmoid(-lambda_t); a schedule is its log-SNR lambda_t
and the inverse. On larger images the same schedule destroys less information, since neighbouring
pixels are redundant: `shift` adds to lambda, e.g. 2 log(64 / pixels per side), or with 32 in place
of 64 (Hoogeboom et al. 2023, arXiv 2301.11093, equation 4).
"""

import dataclasses
import math

import numpy as np

from diffusion_jax.processes.base import (
  ContinuousProcess,
  Times,
  VariancePreserving,
  namespace,
  softplus,
)


@dataclasses.dataclass(frozen=True)
class ContinuousLinearVP(VariancePreserving):
  """The VP SDE, dx = -beta x / 2 dt + sqrt(beta) dw, beta linear in t.

  lambda_t = -log(e^B - 1) with B the integral of beta from 0 to t. Source: Song et al. 2021 (arXiv
  2011.13456), equations 32 and 33; with 0.1 and 20 it is the limit of DDPM's linear betas.

  Attributes:
    beta_min: beta at t = 0.
    beta_max: beta at t = 1.
    min_time: smallest time in training and sampling.
    shift: number added to the log-SNR; negative means more noise, for larger images.
  """

  beta_min: float = 0.1
  beta_max: float = 20.0
  min_time: float = 1e-5
  shift: float = 0.0

  noisier = ("beta_max", "higher")

  def __post_init__(self):
    if not 0 < self.beta_min <= self.beta_max:
      raise ValueError(
        f"beta_min={self.beta_min}, beta_max={self.beta_max}: both must be positive, in that order"
      )
    _check_min_time(self.min_time)

  def log_snr(self, t: Times) -> Times:
    """Return shift - log(e^B - 1); infinite at t = 0."""
    xp, slope = namespace(t), self.beta_max - self.beta_min
    integral = t * (self.beta_min + 0.5 * slope * t)
    with np.errstate(divide="ignore"):
      return self.shift - xp.log(xp.expm1(integral))

  def time_of(self, log_snr: Times) -> Times:
    """Return the positive root of the quadratic B(t) = log(1 + e^(shift - log_snr))."""
    slope, integral = self.beta_max - self.beta_min, softplus(self.shift - log_snr)
    root = namespace(log_snr).sqrt(self.beta_min**2 + 2.0 * slope * integral)
    return 2.0 * integral / (self.beta_min + root)


@dataclasses.dataclass(frozen=True)
class LinearLogSNR(VariancePreserving):
  """lambda_t decreasing linearly from log_snr_max to log_snr_min.

  Source: Kingma et al. 2021 (arXiv 2107.00630), with the initial endpoints of its CIFAR-10 model,
  where they and the schedule between are learned.

  Attributes:
    log_snr_max: log-SNR at t = 0.
    log_snr_min: log-SNR at t = 1.
  """

  log_snr_max: float = 13.3
  log_snr_min: float = -5.0

  noisier = ("log_snr_min", "lower")

  def __post_init__(self):
    if self.log_snr_max <= self.log_snr_min:
      raise ValueError(f"log_snr_max={self.log_snr_max} must exceed log_snr_min={self.log_snr_min}")

  def log_snr(self, t: Times) -> Times:
    """Return the linear function between the two endpoints."""
    return self.log_snr_max - (self.log_snr_max - self.log_snr_min) * t

  def time_of(self, log_snr: Times) -> Times:
    """Return the inverse of the linear function."""
    return (self.log_snr_max - log_snr) / (self.log_snr_max - self.log_snr_min)


@dataclasses.dataclass(frozen=True)
class ContinuousCosineVP(VariancePreserving):
  """lambda_t = -2 log tan(pi u / 2), u linear in t: lambda decreases from maximum to minimum.

  Source: Nichol and Dhariwal 2021 with the cut of Hoogeboom et al. 2023 (arXiv 2301.11093), section
  2 and appendix: alpha = cos(pi u / 2), sigma = sin(pi u / 2).

  Attributes:
    log_snr_max: log-SNR at t = 0, before the shift.
    log_snr_min: log-SNR at t = 1, before the shift.
    shift: number added to the log-SNR; negative means more noise, for larger images.
  """

  log_snr_max: float = 15.0
  log_snr_min: float = -15.0
  shift: float = 0.0

  noisier = ("log_snr_min", "lower")

  def __post_init__(self):
    if self.log_snr_max <= self.log_snr_min:
      raise ValueError(f"log_snr_max={self.log_snr_max} must exceed log_snr_min={self.log_snr_min}")

  def _angles(self) -> tuple[float, float]:
    """Return pi u / 2 at t = 0 and 1."""
    return math.atan(math.exp(-0.5 * self.log_snr_max)), math.atan(
      math.exp(-0.5 * self.log_snr_min)
    )

  def log_snr(self, t: Times) -> Times:
    """Return shift - 2 log tan(pi u / 2)."""
    xp, (first, last) = namespace(t), self._angles()
    return self.shift - 2.0 * xp.log(xp.tan(first + t * (last - first)))

  def time_of(self, log_snr: Times) -> Times:
    """Return the time at which tan(pi u / 2) = e^((shift - log_snr) / 2)."""
    xp, (first, last) = namespace(log_snr), self._angles()
    return (xp.arctan(xp.exp(0.5 * (self.shift - log_snr))) - first) / (last - first)


@dataclasses.dataclass(frozen=True)
class ContinuousSigmoidVP(VariancePreserving):
  """alpha_t^2 decreasing along an interval of a sigmoid, rescaled to run from 1 to 0.

  alpha_t^2 = (s(end) - s(start + t (end - start))) / (s(end) - s(start)), s(x) = sigmoid(x / tau).
  Source: Jabri et al. 2023 (arXiv 2212.11972), algorithm 3.

  Attributes:
    start: start of the interval of the sigmoid.
    end: end of the interval of the sigmoid.
    temperature: temperature tau of the sigmoid, positive.
    min_time: smallest time in use, and 1 minus the largest: beyond, the log-SNR is infinite.
    shift: number added to the log-SNR; negative means more noise, for larger images.
  """

  start: float = -3.0
  end: float = 3.0
  temperature: float = 1.0
  min_time: float = 1e-4
  shift: float = 0.0

  def __post_init__(self):
    if self.start >= self.end or self.temperature <= 0:
      raise ValueError(
        f"start={self.start}, end={self.end}, temperature={self.temperature}: start must lie below "
        "end and the temperature must be positive"
      )
    _check_min_time(self.min_time)

  def _sigmoids(self) -> tuple[float, float]:
    """Return s(start) and s(end)."""
    start, end = self.start / self.temperature, self.end / self.temperature
    return 1.0 / (1.0 + math.exp(-start)), 1.0 / (1.0 + math.exp(-end))

  def log_snr(self, t: Times) -> Times:
    """Return the log-SNR; infinite at t = 0, cut off near 1."""
    xp, (low, high) = namespace(t), self._sigmoids()
    u = xp.minimum(t, 1.0 - self.min_time)
    here = 1.0 / (1.0 + xp.exp(-(self.start + u * (self.end - self.start)) / self.temperature))
    with np.errstate(divide="ignore"):
      return self.shift + xp.log(high - here) - xp.log(here - low)

  def time_of(self, log_snr: Times) -> Times:
    """Return the time at which the sigmoid has the value of this log-SNR."""
    xp, (low, high) = namespace(log_snr), self._sigmoids()
    fraction = xp.exp(-softplus(self.shift - log_snr))  # alpha_t^2 before the shift
    here = high - fraction * (high - low)
    logit = xp.log(here) - xp.log1p(-here)
    return (self.temperature * logit - self.start) / (self.end - self.start)


@dataclasses.dataclass(frozen=True)
class SubVP(ContinuousProcess):
  """The sub-VP SDE: the VP SDE with the smaller sigma_t = 1 - alpha_t^2.

  Source: Song et al. 2021 (arXiv 2011.13456), equation 29 (the sub-VP SDE).

  Attributes:
    beta_min: beta at t = 0.
    beta_max: beta at t = 1.
    min_time: smallest time in training and sampling.
  """

  beta_min: float = 0.1
  beta_max: float = 20.0
  min_time: float = 1e-3

  noisier = ("beta_max", "higher")

  def __post_init__(self):
    ContinuousLinearVP(self.beta_min, self.beta_max, self.min_time)

  def alpha_sigma(self, t: Times) -> tuple[Times, Times]:
    """Return e^(-B / 2) and 1 - e^(-B)."""
    xp, slope = namespace(t), self.beta_max - self.beta_min
    integral = t * (self.beta_min + 0.5 * slope * t)
    return xp.exp(-0.5 * integral), -xp.expm1(-integral)

  def time_of(self, log_snr: Times) -> Times:
    """Return the root of sigma / alpha = e^(B/2) - e^(-B/2) = 2 sinh(B / 2) = e^(-log_snr / 2)."""
    xp, slope = namespace(log_snr), self.beta_max - self.beta_min
    integral = 2.0 * xp.arcsinh(0.5 * xp.exp(-0.5 * log_snr))
    return 2.0 * integral / (self.beta_min + xp.sqrt(self.beta_min**2 + 2.0 * slope * integral))


def _check_min_time(min_time: float) -> None:
  if not 0 < min_time < 0.5 or not np.isfinite(min_time):
    raise ValueError(f"min_time={min_time} must be between 0 and 0.5")
