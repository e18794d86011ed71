"""Log-densities and divergences shared by models, losses and likelihoods, all in nats.

Every function is elementwise and differentiable, and stays finite in float32.
"""

import math

import jax
import jax.numpy as jnp
from jax.scipy.special import log_ndtr
from jaxtyping import Array, Float

LOG_2 = math.log(2.0)
LOG_2PI = math.log(2.0 * math.pi)


def nats_to_bits_per_dim(nats: Float[Array, "..."], num_dims: int) -> Float[Array, "..."]:
  """Convert nats per example to bits per dimension."""
  return nats / (num_dims * LOG_2)


def gaussian_log_prob(
  x: Float[Array, "..."], mean: Float[Array, "..."], log_std: Float[Array, "..."]
) -> Float[Array, "..."]:
  """Compute log N(x; mean, exp(log_std)^2), elementwise."""
  return -0.5 * (jnp.square((x - mean) * jnp.exp(-log_std)) + LOG_2PI) - log_std


def gaussian_kl(
  mean1: Float[Array, "..."],
  log_var1: Float[Array, "..."],
  mean2: Float[Array, "..."] | float,
  log_var2: Float[Array, "..."] | float,
) -> Float[Array, "..."]:
  """Compute KL(N(mean1, exp(log_var1)) || N(mean2, exp(log_var2))), elementwise.

  With r = log_var1 - log_var2 the variance term is (e^r - 1 - r) / 2. It is computed with expm1, so
  that it neither cancels nor becomes negative for nearly equal Gaussians.
  """
  ratio = log_var1 - log_var2
  distance = jnp.square(mean1 - mean2) * jnp.exp(-log_var2)
  return 0.5 * (jnp.expm1(ratio) - ratio + distance)


def bernoulli_log_prob(x: Float[Array, "..."], logits: Float[Array, "..."]) -> Float[Array, "..."]:
  """Compute x log p + (1 - x) log(1 - p) with p = sigmoid(logits), for x in [0, 1].

  For x strictly between 0 and 1 this is the expected log-probability of a pixel that is binarised
  at random, 1 with probability x.
  """
  return x * logits - jax.nn.softplus(logits)


def discretized_logistic_log_prob(
  x: Float[Array, "..."],
  mean: Float[Array, "..."],
  log_scale: Float[Array, "..."],
  num_levels: int,
) -> Float[Array, "..."]:
  """Compute the log-probability of a pixel level under a logistic cut into `num_levels` bins.

  Args:
    x: level k on the grid 2 k / (L - 1) - 1.
    mean, log_scale: parameters of the logistic, on the same axis.
    num_levels: L. The first and last bins reach to infinity, so that the levels' probabilities
      sum to one.

  Returns:
    log P(k). Source: Kingma et al. 2016 (arXiv 1606.04934), section 5.2.
  """
  half_bin = 1.0 / (num_levels - 1)
  low = (x - half_bin - mean) * jnp.exp(-log_scale)
  high = (x + half_bin - mean) * jnp.exp(-log_scale)
  # sigmoid(high) - sigmoid(low) = sigmoid(high) sigmoid(-low) (1 - exp(low - high))
  width = 2.0 * half_bin * jnp.exp(-log_scale)
  inner = jax.nn.log_sigmoid(high) + jax.nn.log_sigmoid(-low) + _log1mexp(width)
  return _with_open_ends(x, half_bin, jax.nn.log_sigmoid(high), inner, jax.nn.log_sigmoid(-low))


def discretized_gaussian_log_prob(
  x: Float[Array, "..."],
  mean: Float[Array, "..."],
  log_std: Float[Array, "..."],
  num_levels: int,
) -> Float[Array, "..."]:
  """Compute the log-probability of a pixel level under a Gaussian cut into `num_levels` bins.

  Arguments and outer bins are as in `discretized_logistic_log_prob`. It uses the exact normal
  distribution function, not its tanh approximation. Source: Ho et al. 2020 (arXiv 2006.11239),
  equation 13.
  """
  half_bin = 1.0 / (num_levels - 1)
  low = (x - half_bin - mean) * jnp.exp(-log_std)
  high = (x + half_bin - mean) * jnp.exp(-log_std)
  # Far in the right tail both cdfs round to 1: use the mirrored interval of the left tail.
  right = low > 0
  near, far = jnp.where(right, -low, high), jnp.where(right, -high, low)
  log_near = log_ndtr(near)
  inner = log_near + _log1mexp(jnp.maximum(log_near - log_ndtr(far), 1e-12))
  return _with_open_ends(x, half_bin, log_ndtr(high), inner, log_ndtr(-low))


def approximate_discretized_gaussian_log_prob(
  x: Float[Array, "..."],
  mean: Float[Array, "..."],
  log_std: Float[Array, "..."],
  num_levels: int,
  floor: float = 1e-12,
) -> Float[Array, "..."]:
  """Approximate `discretized_gaussian_log_prob` with tanh, to compare published figures.

  cdf(y) = sigmoid(2 u(y)) with u(y) = sqrt(2 / pi) (y + 0.044715 y^3). Every level has at least
  `floor`, so the levels' probabilities may sum to slightly more than one. Source: the code of Ho et
  al. 2020 and of Nichol and Dhariwal 2021; the approximation is Page's (1977).
  """
  half_bin, cubic = 1.0 / (num_levels - 1), 0.044715
  low = (x - half_bin - mean) * jnp.exp(-log_std)
  high = (x + half_bin - mean) * jnp.exp(-log_std)
  slope = 2.0 * math.sqrt(2.0 / math.pi)
  logit_low, logit_high = (slope * (y + cubic * y**3) for y in (low, high))
  # high^3 - low^3 = (high - low)(high^2 + high low + low^2): the difference without cancellation.
  width = 2.0 * half_bin * jnp.exp(-log_std)
  difference = slope * width * (1.0 + cubic * (high**2 + high * low + low**2))
  first, last = jax.nn.log_sigmoid(logit_high), jax.nn.log_sigmoid(-logit_low)
  inner = first + last + _log1mexp(difference)
  return jnp.maximum(_with_open_ends(x, half_bin, first, inner, last), math.log(floor))


def _log1mexp(y: Float[Array, "..."]) -> Float[Array, "..."]:
  """Compute log(1 - exp(-y)) for y > 0 (Maechler 2012: expm1 below log 2, log1p above)."""
  small = y < LOG_2
  safe_small, safe_large = jnp.where(small, y, 0.5), jnp.where(small, 1.0, y)
  return jnp.where(small, jnp.log(-jnp.expm1(-safe_small)), jnp.log1p(-jnp.exp(-safe_large)))


def _with_open_ends(x, half_bin, first, inner, last):
  """Select the value of each level's bin; the first and last bins include a whole tail."""
  is_first, is_last = x < -1.0 + half_bin, x > 1.0 - half_bin
  return jnp.where(is_first, first, jnp.where(is_last, last, inner))
