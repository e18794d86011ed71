"""Variance-preserving processes in continuous time: alpha_t^2 + sigma_t^2 = 1, and sub-VP.

alpha_t^2 = sigmoid(lambda_t), sigma_t^2 = sigmoid(-lambda_t); a schedule is its log-SNR lambda_t
and the inverse of that. For larger images the same schedule destroys less, since neighbouring
pixels repeat each other: `shift` adds to lambda, e.g. 2 log(64 / pixels a side) (Hoogeboom et al.
2023, arXiv 2301.11093, equation 4).
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from diffusion_jax.processes.base import Continuous, Times, namespace

EMBED_SCALE = 999.0
"""Networks see times as numbers from 0 to 999, as those that were trained with 1000 steps do."""


def softplus(x: Times) -> Times:
  """log(1 + e^x)."""
  return namespace(x).logaddexp(x, 0.0)


def _preserving(
  log_snr: Callable[[Times], Times], time_of: Callable[[Times], Times], min_time: float
) -> Continuous:
  def coefficients(t):
    x, xp = log_snr(t), namespace(t)
    return xp.exp(-0.5 * softplus(-x)), xp.exp(-0.5 * softplus(x))

  return Continuous(coefficients, time_of, lambda t: EMBED_SCALE * t, 1.0, min_time)


@dataclasses.dataclass(frozen=True)
class ContinuousLinearVP:
  """The SDE dx = -beta x / 2 dt + sqrt(beta) dw with beta(t) = beta_min + t (beta_max - beta_min).

  lambda_t = -log(e^B - 1) with B the integral of beta from 0 to t. Source: Song et al. 2021 (arXiv
  2011.13456), equations 32 and 33; with 0.1 and 20 it is the limit of DDPM's linear betas.

  Attributes:
    beta_min, beta_max: at t = 0 and 1.
    min_time: times below it are not trained or sampled.
    shift: added to the log-SNR.
  """

  beta_min: float = 0.1
  beta_max: float = 20.0
  min_time: float = 1e-5
  shift: float = 0.0

  def __post_init__(self):
    if not 0 < self.beta_min <= self.beta_max:
      raise ValueError(
        f"beta_min={self.beta_min}, beta_max={self.beta_max}: both must be positive, in that order"
      )
    _check_min_time(self.min_time)

  def create(self) -> Continuous:
    slope = self.beta_max - self.beta_min

    def log_snr(t):
      xp, integral = namespace(t), t * (self.beta_min + 0.5 * slope * t)
      return self.shift - xp.log(xp.expm1(integral))

    def time_of(value):
      integral = softplus(self.shift - value)
      root = namespace(value).sqrt(self.beta_min**2 + 2.0 * slope * integral)
      return 2.0 * integral / (self.beta_min + root)

    return _preserving(log_snr, time_of, self.min_time)


@dataclasses.dataclass(frozen=True)
class LinearLogSNR:
  """lambda_t falling linearly from log_snr_max to log_snr_min.

  Source: Kingma et al. 2021 (arXiv 2107.00630), with the ends that its CIFAR-10 model starts from;
  there they, and the slope, are learned.

  Attributes:
    log_snr_max, log_snr_min: at t = 0 and 1.
  """

  log_snr_max: float = 13.3
  log_snr_min: float = -5.0

  def __post_init__(self):
    if self.log_snr_max <= self.log_snr_min:
      raise ValueError(f"log_snr_max={self.log_snr_max} must exceed log_snr_min={self.log_snr_min}")

  def create(self) -> Continuous:
    width = self.log_snr_max - self.log_snr_min
    return _preserving(
      lambda t: self.log_snr_max - width * t, lambda value: (self.log_snr_max - value) / width, 0.0
    )


@dataclasses.dataclass(frozen=True)
class ContinuousCosineVP:
  """lambda_t = -2 log tan(pi u / 2), u linear in t: lambda falls from its maximum to its minimum.

  Source: Nichol and Dhariwal 2021 with the cut of Hoogeboom et al. 2023 (arXiv 2301.11093), section
  2 and appendix: alpha = cos(pi u / 2), sigma = sin(pi u / 2).

  Attributes:
    log_snr_max, log_snr_min: at t = 0 and 1, before the shift.
    shift: added to the log-SNR.
  """

  log_snr_max: float = 15.0
  log_snr_min: float = -15.0
  shift: float = 0.0

  def __post_init__(self):
    if self.log_snr_max <= self.log_snr_min:
      raise ValueError(f"log_snr_max={self.log_snr_max} must exceed log_snr_min={self.log_snr_min}")

  def create(self) -> Continuous:
    first, last = (math.atan(math.exp(-0.5 * x)) for x in (self.log_snr_max, self.log_snr_min))

    def log_snr(t):
      return self.shift - 2.0 * namespace(t).log(namespace(t).tan(first + t * (last - first)))

    def time_of(value):
      xp = namespace(value)
      return (xp.arctan(xp.exp(0.5 * (self.shift - value))) - first) / (last - first)

    return _preserving(log_snr, time_of, 0.0)


@dataclasses.dataclass(frozen=True)
class ContinuousSigmoidVP:
  """alpha_t^2 falls along a part of a sigmoid, stretched to run from 1 to 0.

  alpha_t^2 = (s(end) - s(start + t (end - start))) / (s(end) - s(start)), s(x) = sigmoid(x / tau).
  Source: Jabri et al. 2023 (arXiv 2212.11972), algorithm 3.

  Attributes:
    start, end, temperature: of the sigmoid; tau is the temperature.
    min_time: times below it, and above 1 - min_time, are cut off, where the log-SNR is infinite.
    shift: added to the log-SNR.
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

  def create(self) -> Continuous:
    low, high = (1.0 / (1.0 + math.exp(-x / self.temperature)) for x in (self.start, self.end))

    def log_snr(t):
      xp = namespace(t)
      u = xp.minimum(t, 1.0 - self.min_time)
      here = 1.0 / (1.0 + xp.exp(-(self.start + u * (self.end - self.start)) / self.temperature))
      return self.shift + xp.log(high - here) - xp.log(here - low)

    def time_of(value):
      xp = namespace(value)
      share = xp.exp(-softplus(self.shift - value))  # alpha_t^2 before the shift
      here = high - share * (high - low)
      logit = xp.log(here) - xp.log1p(-here)
      return (self.temperature * logit - self.start) / (self.end - self.start)

    return _preserving(log_snr, time_of, self.min_time)


@dataclasses.dataclass(frozen=True)
class SubVP:
  """As ContinuousLinearVP, with the smaller sigma_t = 1 - alpha_t^2.

  Source: Song et al. 2021 (arXiv 2011.13456), equation 29 (the sub-VP SDE).

  Attributes:
    beta_min, beta_max, min_time: as of ContinuousLinearVP.
  """

  beta_min: float = 0.1
  beta_max: float = 20.0
  min_time: float = 1e-3

  def __post_init__(self):
    ContinuousLinearVP(self.beta_min, self.beta_max, self.min_time)

  def create(self) -> Continuous:
    slope = self.beta_max - self.beta_min

    def coefficients(t):
      xp, integral = namespace(t), t * (self.beta_min + 0.5 * slope * t)
      return xp.exp(-0.5 * integral), -xp.expm1(-integral)

    def time_of(value):
      # sigma / alpha = e^(B/2) - e^(-B/2) = 2 sinh(B / 2) = e^(-lambda / 2)
      xp = namespace(value)
      integral = 2.0 * xp.arcsinh(0.5 * xp.exp(-0.5 * value))
      return 2.0 * integral / (self.beta_min + xp.sqrt(self.beta_min**2 + 2.0 * slope * integral))

    return Continuous(coefficients, time_of, lambda t: EMBED_SCALE * t, 1.0, self.min_time)


def _check_min_time(min_time: float) -> None:
  if not 0 < min_time < 0.5 or not np.isfinite(min_time):
    raise ValueError(f"min_time={min_time} must lie between 0 and 0.5")
