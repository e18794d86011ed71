"""Terms of the continuous-time variational bound at the two endpoints of a process.

Source: Kingma et al. 2021 (arXiv 2107.00630), equations 11 to 13 and appendix C.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffusion_jax.core import distributions, rng
from diffusion_jax.core.broadcasting import sum_dims
from diffusion_jax.processes.base import Data, Process, Times
from diffusion_jax.types import Keys

MIN_TIME = 1e-5
"""First time of the bound for a process whose min_time is 0."""

MAX_PRIOR_BITS = 0.01
"""Prior term in bits/dim above which x_1 is too far from noise to start sampling there.

The published processes have at most 0.005 (VDM's, before training moves its endpoint); DDPM's betas
for T = 100 without their scaling have 0.32.
"""


def first_time(process: Process) -> float:
  """Return the time of z_0 in the bound, where sigma > 0."""
  return process.min_time or MIN_TIME


def prior_bits(process: Process) -> float:
  """Return the prior term KL(q(x_1 | x) || N(0, prior_std^2)) of a pixel at -1 or 1, in bits.

  It is also the mean over data with second moment 1, such as scaled latents.
  """
  alpha, sigma = (float(c[0]) / process.prior_std for c in process.alpha_sigma(np.ones(1)))
  return (0.5 * (alpha**2 + sigma**2 - 1.0) - math.log(sigma)) / math.log(2.0)


def end_kl(process: Process, x0: Data) -> Float[Array, "B"]:
  """Return KL(q(z_1 | x) || N(0, prior_std^2)) in nats per example."""
  alpha, sigma = process.alpha_sigma(jnp.ones(()))
  std = process.prior_std
  mean, log_var = alpha / std * x0, 2.0 * jnp.log(sigma / std)
  return sum_dims(distributions.gaussian_kl(mean, log_var, 0.0, 0.0))


def reconstruction(
  process: Process, keys: Keys, x0: Data, num_levels: int | None, first: Times = None
) -> Float[Array, "B"]:
  """Return -log p(x | z_0) in nats per example, from one z_0 drawn per key.

  p(x | z_0) is proportional to q(z_0 | x) over the pixel levels.

  Args:
    process: the process; q(z_0 | x) is its marginal at the time `first`.
    keys: one per example.
    x0: data; level k of L is 2 k / (L - 1) - 1.
    num_levels: number L of pixel levels. None: a density, p(x | z_0) = N(z_0 / alpha,
      (sigma / alpha)^2).
    first: time of z_0; None: `first_time`.
  """
  alpha, sigma = process.alpha_sigma(jnp.asarray(first_time(process) if first is None else first))
  ratio = sigma / alpha
  noise = rng.normal(rng.stream(keys, rng.Stream.RECONSTRUCTION), x0.shape[1:])
  if num_levels is None:
    log_std = jnp.broadcast_to(jnp.log(ratio), x0.shape)
    density = distributions.gaussian_log_prob(ratio * noise, jnp.zeros_like(x0), log_std)
    return -sum_dims(density)
  level = 2.0 * jnp.arange(num_levels) / (num_levels - 1) - 1.0
  away = ((x0 + ratio * noise)[..., None] - level) / ratio
  log_prob = -0.5 * jnp.square(noise) - jax.nn.logsumexp(-0.5 * jnp.square(away), axis=-1)
  return -sum_dims(log_prob)
