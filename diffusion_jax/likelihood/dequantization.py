"""Noise that turns pixel levels into continuous values with a density.

log P(k) >= E_q[log p(x + u) - log q(u | k)], where P(k) is the integral of p over the level's bin,
which x + u never leaves. The bound is tight if q(u | k) equals p within the bin (Theis et al. 2016,
arXiv 1511.01844; Ho et al. 2019, arXiv 1902.00275).
"""

import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import erf
from jaxtyping import Array, Float

from diffusion_jax.core import rng
from diffusion_jax.core.broadcasting import sum_dims
from diffusion_jax.core.rng import Stream
from diffusion_jax.processes import Data, Process, first_time
from diffusion_jax.types import Keys

Dequantization = Literal["uniform", "truncated_normal"]


class Dequantized(NamedTuple):
  """Dequantised data.

  Attributes:
    x: images at the process's first time.
    log_q: log density of the noise, in nats per example.
  """

  x: Data
  log_q: Float[Array, "B"]


def dequantize(
  kind: Dequantization, process: Process, keys: Keys, x0: Data, num_levels: int | None
) -> Dequantized:
  """Draw the noise of each example.

  uniform: over the bin, one level wide. truncated_normal: x = alpha x0 + sigma z with z a standard
  normal number truncated at the ends of the bin, alpha and sigma those of the process's first time;
  a model that knows its levels spreads them in this way there (Zheng et al. 2023, arXiv 2305.03935,
  section 4.2).

  Args:
    kind: kind of the noise.
    process: process of the model.
    keys: one per example.
    x0: data; level k of L is 2 k / (L - 1) - 1.
    num_levels: number L of pixel levels. None: float data, which are returned unchanged.
  """
  keys = rng.stream(keys, Stream.DEQUANTIZATION)
  if num_levels is None:
    return Dequantized(x0, jnp.zeros(len(x0)))
  width = 2.0 / (num_levels - 1)
  if kind == "uniform":
    noise = jax.vmap(lambda key: jax.random.uniform(key, x0.shape[1:]))(keys)
    log_q = jnp.full(len(x0), -math.log(width) * math.prod(x0.shape[1:]))
    return Dequantized(x0 + width * (noise - 0.5), log_q)
  alpha, sigma = process.alpha_sigma(jnp.asarray(first_time(process)))
  z, log_q = _truncated_normal(keys, 0.5 * width * alpha / sigma, x0.shape[1:])
  return Dequantized(alpha * x0 + sigma * z, sum_dims(log_q - jnp.log(sigma)))


def _truncated_normal(
  keys: Keys, limit: Float[Array, ""], shape: tuple[int, ...]
) -> tuple[Data, Data]:
  """Return standard normal numbers within +-limit, and their log density."""
  z = jax.vmap(lambda key: jax.random.truncated_normal(key, -limit, limit, shape))(keys)
  log_share = jnp.log(erf(limit / math.sqrt(2.0)))
  return z, -0.5 * jnp.square(z) - 0.5 * math.log(2.0 * math.pi) - log_share
