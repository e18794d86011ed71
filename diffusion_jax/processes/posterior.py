"""Gaussian steps p(x_{t-1} | x_t) of a process with steps, and their terms of the bound.

-log p(x0) <= KL(q(x_T | x0) || N(0, I)) + sum_{t=2..T} KL(q(x_{t-1} | x_t, x0) || p(x_{t-1} | x_t))
              - log p(x0 | x_1)
Sources: Ho et al. 2020 (arXiv 2006.11239), equations 5 to 8; variances that the network gives:
Nichol and Dhariwal 2021 (arXiv 2102.09672), equation 15.
"""

import math
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from diffusion_jax.core import distributions
from diffusion_jax.core.broadcasting import expand, sum_dims
from diffusion_jax.processes.base import Data
from diffusion_jax.processes.discrete_vp import DiscreteVP

Row = Any
"""One number per step: NumPy [T] on the host, or values for the images of a batch."""


class ReverseSteps(NamedTuple):
  """Coefficients of the bound for the steps t = 1..T, float64 on the host.

  A model's variance is small e^r with r from 0 to `width`, or beyond. Both Gaussians of a KL have
  the same x_t coefficient, so their means differ by gain (x0 - x0_hat).

  Attributes:
    alpha, sigma: coefficients of q(x_t | x0).
    log_small: log variance of q(x_{t-1} | x_t, x0). At t = 1 this variance is 0 and that of t = 2
      is used (as in the code of Nichol and Dhariwal 2021); a process with one step uses beta_1.
    width: log beta_t - log_small.
    weight: gain^2 / (2 small).
  """

  alpha: Row
  sigma: Row
  log_small: Row
  width: Row
  weight: Row


def reverse_steps(process: DiscreteVP) -> ReverseSteps:
  """Return the coefficients of every step of a process."""
  now, before = process.alphas_cumprod[1:], process.alphas_cumprod[:-1]
  betas = 1.0 - now / before
  small = betas * (1.0 - before) / (1.0 - now)
  small[0] = small[1] if process.num_timesteps > 1 else betas[0]
  gain = np.sqrt(before) * betas / (1.0 - now)
  return ReverseSteps(
    alpha=np.sqrt(now),
    sigma=np.sqrt(1.0 - now),
    log_small=np.log(small),
    width=np.log(betas / small),
    weight=0.5 * gain**2 / small,
  )


def at_steps(steps: ReverseSteps, t_index: Int[Array, "B"], like: Data) -> ReverseSteps:
  """Return the coefficients of one step t of 1..T per example, float32 [B 1 ...] for `like`."""
  tables = (jnp.asarray(table, jnp.float32) for table in steps)
  return ReverseSteps(*(expand(table[t_index - 1], like) for table in tables))


def log_ratio(logits: Any, width: Row) -> Any:
  """Return log(variance / small) for a network's variance logits.

  log variance = v log beta + (1 - v) log small, v = (logits + 1) / 2, per dimension.

  Args:
    logits: second half of the network's output; -1 is the small variance, 1 the large.
    width: log beta - log small of the step.
  """
  return 0.5 * (logits + 1.0) * width


def divergence(step: ReverseSteps, ratio: Any, x0: Data, estimate: Data) -> Data:
  """Return KL(q(x_{t-1} | x_t, x0) || p(x_{t-1} | x_t)) of each dimension, in nats.

  (e^-r - 1 + r) / 2 + weight e^-r (x0 - x0_hat)^2 for the variance small e^r. It subtracts no
  logarithms, so it keeps its precision where the Gaussians are nearly equal.

  Args:
    step: coefficients of one step, or one per image.
    ratio: r, one number or one per dimension.
    x0: images.
    estimate: x0_hat.
  """
  offset = 0.5 * (jnp.expm1(-ratio) + ratio)
  return offset + step.weight * jnp.exp(-ratio) * jnp.square(x0 - estimate)


def decoder_log_prob(
  x0: Data,
  estimate: Data,
  log_var: Any,
  num_levels: int | None,
  cdf: Literal["exact", "tanh"] = "exact",
) -> Data:
  """Return log p(x0 | x_1) of each dimension, in nats.

  Args:
    x0: images; level k of L is 2 k / (L - 1) - 1.
    estimate: x0_hat at t = 1, the mean.
    log_var: log variance of the Gaussian at step t = 1.
    num_levels: number L of pixel levels. None: x0 is not quantised, the result is a log-density.
    cdf: integral of the Gaussian over a level, see `distributions`.
  """
  scale = 0.5 * jnp.broadcast_to(log_var, x0.shape)
  if num_levels is None:
    return distributions.gaussian_log_prob(x0, estimate, scale)
  if cdf == "exact":
    return distributions.discretized_gaussian_log_prob(x0, estimate, scale, num_levels)
  return distributions.approximate_discretized_gaussian_log_prob(x0, estimate, scale, num_levels)


def bound_term(
  steps: ReverseSteps,
  t_index: Int[Array, "B"],
  x0: Data,
  estimate: Data,
  logits: Data,
  num_levels: int | None,
) -> Float[Array, "B"]:
  """Return the bound's term at one step per image, in nats: KL, or reconstruction at t = 1.

  Args:
    steps: coefficients of the process.
    t_index: step t of 1..T.
    x0: images.
    estimate, logits: outputs of the network at x_t.
    num_levels: L or None, as in `decoder_log_prob`.
  """
  step = at_steps(steps, t_index, x0)
  ratio = log_ratio(logits, step.width)
  first = expand(t_index == 1, x0)
  # Double-where: feed safe inputs where t != 1, so that the unselected branch has finite gradients.
  mean = jnp.where(first, estimate, x0)
  log_var = jnp.where(first, step.log_small + ratio, 0.0)
  decoded = -decoder_log_prob(x0, mean, log_var, num_levels)
  return sum_dims(jnp.where(first, decoded, divergence(step, ratio, x0, estimate)))


def prior_kl(process: DiscreteVP, x0: Data) -> Float[Array, "B"]:
  """Return KL(q(x_T | x0) || N(0, I)) in nats per example: information on x0 left in x_T."""
  alpha_bar = float(process.alphas_cumprod[-1])
  constant = math.prod(x0.shape[1:]) * (alpha_bar + math.log1p(-alpha_bar))
  return 0.5 * (alpha_bar * sum_dims(jnp.square(x0)) - constant)
