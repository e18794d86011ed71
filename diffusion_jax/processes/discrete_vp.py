"""Variance-preserving processes with T discrete steps: alpha_t^2 + sigma_t^2 = 1.

Time t lies in [0, 1] with 0 = data. Step n of 1..T of the literature is t = n / T; the network
sees the number n - 1 of 0..T-1, as in the original code of DDPM.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from diffusion_jax.processes.base import Times, namespace

MAX_BETA = 0.999
"""The largest beta of schedules that are made for any T, as Nichol and Dhariwal's cosine has it."""


@dataclasses.dataclass(frozen=True, eq=False)
class DiscreteVP:
  """A process on the grid t = n / T.

  Attributes:
    alphas_cumprod: alpha_bar_n = alpha_n^2 for n = 0..T in float64; alpha_bar_0 = 1.
    network_steps: the network sees n - 1 as if T were this number; None: T.
  """

  alphas_cumprod: Float[np.ndarray, "T1"]
  network_steps: int | None = None

  @property
  def num_timesteps(self) -> int:
    """T."""
    return len(self.alphas_cumprod) - 1

  @property
  def prior_std(self) -> float:
    """1: x_T is taken for pure noise."""
    return 1.0

  @property
  def min_time(self) -> float:
    """1 / T: the network was never asked at 0."""
    return 1.0 / self.num_timesteps

  def alpha_sigma(self, t: Times) -> tuple[Times, Times]:
    """alpha_t and sigma_t, from float64 tables; on a device rounded once to float32."""
    alpha_bar = self.alphas_cumprod
    return self._lookup(np.sqrt(alpha_bar), t), self._lookup(np.sqrt(1.0 - alpha_bar), t)

  def log_snr(self, t: Times) -> Times:
    """log(alpha_t^2 / sigma_t^2); infinite at t = 0."""
    return self._lookup(self._log_snrs(), t)

  def time_of(self, log_snr: Times) -> Times:
    """The nearest step's time, n / T with n of 1..T."""
    xp = namespace(log_snr)
    table = xp.asarray(self._log_snrs()[:0:-1])  # rising, T..1
    right = xp.clip(xp.searchsorted(table, log_snr), min(1, len(table) - 1), len(table) - 1)
    nearer = log_snr - table[right - 1] < table[right] - log_snr
    if self.num_timesteps == 1:
      nearer = xp.zeros_like(nearer)
    return (self.num_timesteps - (right - nearer)) / self.num_timesteps

  def network_time(self, t: Times) -> Times:
    """What the network's time embedding takes: n - 1 of 0..T-1, or that times network_steps / T."""
    number = namespace(t).round(t * self.num_timesteps) - 1.0
    if self.network_steps is None:
      return number
    return number * (self.network_steps / self.num_timesteps)

  def time_at(self, quantile: Times) -> Times:
    """The training time at a quantile in [0, 1): each n / T, n = 1..T, equally often."""
    num, xp = self.num_timesteps, namespace(quantile)
    return (xp.minimum(xp.floor(quantile * num), num - 1) + 1.0) / num

  def _log_snrs(self) -> Float[np.ndarray, "T1"]:
    with np.errstate(divide="ignore"):
      return np.log(self.alphas_cumprod) - np.log(1.0 - self.alphas_cumprod)

  def _lookup(self, table: Float[np.ndarray, "T1"], t: Times) -> Times:
    if namespace(t) is np:
      return table[np.round(np.asarray(t) * self.num_timesteps).astype(np.int64)]
    step = jnp.round(t * self.num_timesteps).astype(jnp.int32)
    return jnp.asarray(table, jnp.float32)[step]


@dataclasses.dataclass(frozen=True)
class LinearVP:
  """Betas rising linearly from `beta_start` to `beta_end` over T steps.

  Source: Ho et al. 2020 (arXiv 2006.11239), section 4, with 1e-4 and 0.02 for T = 1000; for another
  T both are multiplied by 1000 / T, as the program of Nichol and Dhariwal 2021 does, so that x_1 is
  noise at every T. There they must stay below 1, so T above 20; here they are capped at MAX_BETA.

  Attributes:
    num_timesteps: T.
    beta_start, beta_end: the first and the last beta, as given; None: the above, which becomes the
      number.
  """

  num_timesteps: int = 1000
  beta_start: float | None = None
  beta_end: float | None = None

  def __post_init__(self):
    _check_num_timesteps(self.num_timesteps)
    for name, of_1000 in (("beta_start", 1e-4), ("beta_end", 0.02)):
      if getattr(self, name) is None:  # so that a stored config holds the number
        scaled = min(of_1000 * (1000 / self.num_timesteps), MAX_BETA)
        object.__setattr__(self, name, scaled)
    first, last = self._ends()
    if not 0 < first <= last < 1:
      raise ValueError(
        f"beta_start={first}, beta_end={last}: both must lie between 0 and 1, in that order; leave "
        "them out for those of DDPM at any num_timesteps"
      )

  def _ends(self) -> tuple[float, float]:
    assert self.beta_start is not None
    assert self.beta_end is not None
    return self.beta_start, self.beta_end

  def create(self) -> DiscreteVP:
    first, last = self._ends()
    if self.num_timesteps == 1:  # the only step ends in noise
      return _from_betas(np.asarray([last]))
    return _from_betas(np.linspace(first, last, self.num_timesteps))


@dataclasses.dataclass(frozen=True)
class CosineVP:
  """alpha_bar(t) = cos^2((t + s) / (1 + s) pi / 2), normalised at 0, with betas capped.

  Source: Nichol and Dhariwal 2021 (arXiv 2102.09672), equation 17; s = 0.008, cap 0.999. Their code
  shows the network every T as 1000 steps: network_steps.
  """

  num_timesteps: int = 1000
  offset: float = 0.008
  max_beta: float = MAX_BETA
  network_steps: int | None = None

  def __post_init__(self):
    _check_num_timesteps(self.num_timesteps)
    if self.network_steps is not None and self.network_steps < 1:
      raise ValueError(f"network_steps={self.network_steps} must be at least 1, or none for T")
    if self.offset < 0 or not 0 < self.max_beta < 1:
      raise ValueError(
        f"offset={self.offset}, max_beta={self.max_beta}: offset must not be negative and "
        "max_beta must lie between 0 and 1"
      )

  def create(self) -> DiscreteVP:
    t = np.arange(self.num_timesteps + 1) / self.num_timesteps
    f = np.cos((t + self.offset) / (1 + self.offset) * np.pi / 2) ** 2
    process = _from_betas(np.minimum(1 - f[1:] / f[:-1], self.max_beta))
    return dataclasses.replace(process, network_steps=self.network_steps)


def _check_num_timesteps(num_timesteps: int) -> None:
  if num_timesteps < 1:
    raise ValueError(f"num_timesteps={num_timesteps} must be at least 1")


def _from_betas(betas: Float[np.ndarray, "T"]) -> DiscreteVP:
  return DiscreteVP(np.concatenate([[1.0], np.cumprod(1.0 - betas)]))
