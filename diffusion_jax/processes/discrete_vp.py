"""Variance-preserving processes with T discrete steps: alpha_t^2 + sigma_t^2 = 1.

Time t is in [0, 1], where 0 is the data. Step n of 1..T in the literature is t = n / T; the network
gets the number n - 1 of 0..T-1, as in DDPM's original code.
"""

import abc
import dataclasses
import functools
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from diffusion_jax.processes.base import ProcessBase, Times, namespace

MAX_BETA = 0.999
"""Largest beta of schedules for any T, as in Nichol and Dhariwal's cosine schedule."""


@dataclasses.dataclass(frozen=True)
class DiscreteVP(ProcessBase):
  """A process on the grid t = n / T, given by `betas`.

  Attributes:
    num_timesteps: T, number of steps, at least 1.
  """

  num_timesteps: int = 1000  # pyright: ignore[reportIncompatibleVariableOverride]

  noisier = ("num_timesteps", "higher")

  @abc.abstractmethod
  def betas(self) -> Float[np.ndarray, "T"]:
    """Return beta_n of n = 1..T, each in (0, 1), float64."""

  def __post_init__(self):
    if self.num_timesteps < 1:
      raise ValueError(f"num_timesteps={self.num_timesteps} must be at least 1")

  @functools.cached_property
  def alphas_cumprod(self) -> Float[np.ndarray, "T1"]:
    """Table of alpha_bar_n = alpha_n^2 for n = 0..T in float64; alpha_bar_0 = 1."""
    return np.concatenate([[1.0], np.cumprod(1.0 - self.betas())])

  @property
  def min_time(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
    """1 / T, since the network is never evaluated at 0."""
    return 1.0 / self.num_timesteps

  def alpha_sigma(self, t: Times) -> tuple[Times, Times]:
    """Return alpha_t and sigma_t, from float64 tables; on a device rounded once to float32."""
    alpha_bar = self.alphas_cumprod
    return self._lookup(np.sqrt(alpha_bar), t), self._lookup(np.sqrt(1.0 - alpha_bar), t)

  def log_snr(self, t: Times) -> Times:
    """Return log(alpha_t^2 / sigma_t^2); infinite at t = 0."""
    return self._lookup(self._log_snrs(), t)

  def time_of(self, log_snr: Times) -> Times:
    """Return the nearest step's time, n / T with n of 1..T."""
    xp = namespace(log_snr)
    table = xp.asarray(self._log_snrs()[:0:-1])  # rising, T..1
    right = xp.clip(xp.searchsorted(table, log_snr), min(1, len(table) - 1), len(table) - 1)
    nearer = log_snr - table[right - 1] < table[right] - log_snr
    if self.num_timesteps == 1:
      nearer = xp.zeros_like(nearer)
    return (self.num_timesteps - (right - nearer)) / self.num_timesteps

  def network_time(self, t: Times) -> Times:
    """Return n - 1 of 0..T-1."""
    return namespace(t).round(t * self.num_timesteps) - 1.0

  def time_at(self, quantile: Times) -> Times:
    """Return the training time at a quantile in [0, 1): each n / T, n = 1..T, equally often."""
    num_steps, xp = self.num_timesteps, namespace(quantile)
    return (xp.minimum(xp.floor(quantile * num_steps), num_steps - 1) + 1.0) / num_steps

  def _log_snrs(self) -> Float[np.ndarray, "T1"]:
    with np.errstate(divide="ignore"):
      return np.log(self.alphas_cumprod) - np.log(1.0 - self.alphas_cumprod)

  def _lookup(self, table: Float[np.ndarray, "T1"], t: Times) -> Times:
    if namespace(t) is np:
      return table[np.round(np.asarray(t) * self.num_timesteps).astype(np.int64)]
    step = jnp.round(t * self.num_timesteps).astype(jnp.int32)
    return jnp.asarray(table, jnp.float32)[step]


@dataclasses.dataclass(frozen=True)
class LinearVP(DiscreteVP):
  """Betas (or their square roots) rising linearly from `beta_start` to `beta_end` (DDPM).

  Source: Ho et al. 2020 (arXiv 2006.11239), section 4, with 1e-4 and 0.02 for T = 1000; for another
  T both are multiplied by 1000 / T, as in the code of Nichol and Dhariwal 2021, so that x_1 is
  noise for every T. Their code needs betas below 1, so T above 20; here they are capped at
  MAX_BETA. Latent and Stable Diffusion have `scaled_linear`, from 0.0015 to 0.0195 and from 0.00085
  to 0.012 (CompVis/latent-diffusion, make_beta_schedule).

  Attributes:
    beta_start: first beta, in (0, 1); none: 1e-4 scaled by 1000 / T.
    beta_end: last beta, in (0, 1); none: 0.02 scaled by 1000 / T.
    beta_schedule: `linear`, evenly spaced betas; `scaled_linear`, evenly spaced square roots.
  """

  beta_start: float | None = None
  beta_end: float | None = None
  beta_schedule: Literal["linear", "scaled_linear"] = "linear"

  noisier = ("beta_end", "higher")

  def __post_init__(self):
    super().__post_init__()
    for name, of_1000 in (("beta_start", 1e-4), ("beta_end", 0.02)):
      if getattr(self, name) is None:  # so that a stored config contains the number
        scaled = min(of_1000 * (1000 / self.num_timesteps), MAX_BETA)
        object.__setattr__(self, name, scaled)
    first, last = self._ends()
    if not 0 < first <= last < 1:
      raise ValueError(
        f"beta_start={first}, beta_end={last}: both must be between 0 and 1, in that order; leave "
        "them out for those of DDPM at any num_timesteps"
      )

  def _ends(self) -> tuple[float, float]:
    assert self.beta_start is not None
    assert self.beta_end is not None
    return self.beta_start, self.beta_end

  def betas(self) -> Float[np.ndarray, "T"]:
    """Return T betas, by `beta_schedule`; for T = 1 the last one, which ends in noise."""
    (first, last), num_steps = self._ends(), self.num_timesteps
    if num_steps == 1:
      return np.asarray([last])
    if self.beta_schedule == "scaled_linear":
      return np.linspace(first**0.5, last**0.5, num_steps) ** 2
    return np.linspace(first, last, num_steps)


@dataclasses.dataclass(frozen=True)
class CosineVP(DiscreteVP):
  """alpha_bar(t) = cos^2((t + s) / (1 + s) pi / 2), normalised at 0, with betas capped.

  Source: Nichol and Dhariwal 2021 (arXiv 2102.09672), equation 17; s = 0.008, cap 0.999. Their code
  gives the network times of 1000 steps for every T: network_steps.

  Attributes:
    offset: offset s, not negative; keeps the first betas from being tiny.
    max_beta: largest beta, in (0, 1).
    network_steps: number of steps on the network's time scale, for any T; none: T.
  """

  offset: float = 0.008
  max_beta: float = MAX_BETA
  network_steps: int | None = None

  def __post_init__(self):
    super().__post_init__()
    if self.network_steps is not None and self.network_steps < 1:
      raise ValueError(f"network_steps={self.network_steps} must be at least 1, or none for T")
    if self.offset < 0 or not 0 < self.max_beta < 1:
      raise ValueError(
        f"offset={self.offset}, max_beta={self.max_beta}: offset must not be negative and "
        "max_beta must be between 0 and 1"
      )

  def betas(self) -> Float[np.ndarray, "T"]:
    """Return 1 - alpha_bar_n / alpha_bar_{n-1}, capped."""
    t = np.arange(self.num_timesteps + 1) / self.num_timesteps
    f = np.cos((t + self.offset) / (1 + self.offset) * np.pi / 2) ** 2
    return np.minimum(1 - f[1:] / f[:-1], self.max_beta)

  def network_time(self, t: Times) -> Times:
    """Return n - 1 of 0..T-1, times network_steps / T if that is set."""
    step = super().network_time(t)
    if self.network_steps is None:
      return step
    return step * (self.network_steps / self.num_timesteps)
