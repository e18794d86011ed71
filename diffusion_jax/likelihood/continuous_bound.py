"""The variational bound of a diffusion model in continuous time.

-log p(x) <= KL(q(z_1 | x) || prior)                                    prior
             + 1/2 int SNR |x - x_hat(z, lambda)|^2 dlambda             diffusion
             - E[log p(x | z_0)]                                        reconstruction
over the process's log-SNR lambda: for the same endpoints every process has the same bound. With T
steps the middle term is T/2 E_i[(SNR((i - 1) / T) - SNR(i / T)) |x - x_hat(z_{i/T})|^2].
Source: Kingma et al. 2021 (arXiv 2107.00630), equations 11 to 18.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.core import distributions, rng
from diffusion_jax.core.broadcasting import sum_dims
from diffusion_jax.core.rng import Stream
from diffusion_jax.likelihood.base import LikelihoodBase
from diffusion_jax.processes import Denoiser, Process, end_kl, first_time, reconstruction
from diffusion_jax.types import Estimate, Examples, Keys

MAX_LOG_SNR = 20.0
"""Minus the log-SNR where the integral ends on a process that ends in pure noise.

The rest of the integral is about e^-20 nats per dimension.
"""


@dataclasses.dataclass(frozen=True)
class ContinuousBound(LikelihoodBase):
  """The bound, with its middle term from a few times per image, without guidance.

  Attributes:
    times: number of network evaluations per image: one at a random position in each equal part of
      the log-SNR, which has far less variance than positions in time; with T steps, in each part of
      the steps.
    num_timesteps: number of steps T; none: continuous time, the limit of many steps.
    max_log_snr: log-SNR of z_0, if the process starts with less noise; the result is a bound for
      every choice. Noise far below a pixel level carries no information, but there the errors of a
      network that was not trained on the bound cost the most bits. None: the start of the process.
  """

  times: int = 128
  num_timesteps: int | None = None
  max_log_snr: float | None = None

  description = "variational bound in continuous time"

  def __post_init__(self):
    if self.times < 1 or (self.num_timesteps is not None and self.num_timesteps < 1):
      raise ValueError(
        f"times={self.times}, num_timesteps={self.num_timesteps}: both must be at least 1"
      )

  @property
  def figure_name(self) -> str:
    """Return "continuous_vlb"."""
    return "continuous_vlb"

  def serves(self, process: Process) -> bool:
    """Return True in continuous time; processes with steps use the bound `vlb`."""
    return process.num_timesteps is None

  def estimate(self, model: Denoiser, examples: Examples, keys: Keys) -> Estimate:
    """Return the bound of each example in bits/dim; arguments as in `Likelihood`.

    Returns:
      bits_per_dim [B] and its terms "prior", "diffusion" and "reconstruction" [B]; and "curve"
      [B M], the middle term's M parts, from the data to the noise.
    """
    self.check(model, examples, keys, "a process in continuous time; use VariationalBound")
    process, x0 = model.process, examples.x0
    num_dims = math.prod(x0.shape[1:])
    first = self._first(process)
    curve = self._diffusion(model, examples, keys, first)
    nats = {
      "prior": end_kl(process, x0),
      "diffusion": curve.sum(1),
      "reconstruction": reconstruction(process, keys, x0, examples.num_levels, first),
    }
    total = sum(nats.values(), start=jnp.zeros(len(x0)))
    nats["curve"] = curve
    bits = {n: distributions.nats_to_bits_per_dim(v, num_dims) for n, v in nats.items()}
    return Estimate(distributions.nats_to_bits_per_dim(total, num_dims), bits)

  def _first(self, process: Process) -> Any:
    """Return the time of z_0."""
    first = first_time(process)
    if self.max_log_snr is None:
      return first
    return jnp.maximum(first, process.time_of(jnp.asarray(self.max_log_snr)))

  def _diffusion(
    self, model: Denoiser, examples: Examples, keys: Keys, first: Any
  ) -> Float[Array, "B M"]:
    """Return the parts of the middle term in nats, each from one evaluation."""
    x0, terms = examples.x0, rng.stream(keys, Stream.TERMS)

    def part(_, i):
      term = rng.numbered(terms, i)
      position = (i + rng.uniform(rng.stream(term, Stream.TIME))) / self.times
      t, weight = self._weight(model.process, position, first)
      noised = model.noised(x0, t, rng.normal(rng.stream(term, Stream.NOISE), x0.shape[1:]))
      error = x0 - model.predict(noised, examples.condition).x0
      return None, weight * sum_dims(jnp.square(error)) / self.times

    return jax.lax.scan(part, None, jnp.arange(self.times))[1].T

  def _weight(
    self, process: Process, position: Float[Array, "B"], first: Any
  ) -> tuple[Float[Array, "B"], Float[Array, "B"]]:
    """Return the time at a position in [0, 1) from data to noise, and its error's weight."""
    steps = self.num_timesteps
    if steps is None:
      high, low = process.log_snr(jnp.stack([jnp.asarray(first), jnp.ones(())]))
      low = jnp.maximum(low, -MAX_LOG_SNR)
      log_snr = high - position * (high - low)
      return process.time_of(log_snr), 0.5 * (high - low) * jnp.exp(log_snr)
    step = jnp.floor(position * steps) + 1.0
    # float32 may round the last time to slightly above 1, where a process has no alpha
    t, before = (jnp.minimum(first + (1.0 - first) * n / steps, 1.0) for n in (step, step - 1.0))
    # SNR(before) - SNR(t), finite also if the SNR at t is 0
    log_snr = process.log_snr(before)
    return t, -0.5 * steps * jnp.exp(log_snr) * jnp.expm1(process.log_snr(t) - log_snr)
