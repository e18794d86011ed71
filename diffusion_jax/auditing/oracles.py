"""Models with known answers: exact denoisers of correlated Gaussian data.

The pixels must be correlated: for independent pixels a trace estimate by random signs is exact
whether or not the code is right (Hutchinson's with Rademacher probes sees only the diagonal).
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.core import rng
from diffusion_jax.processes import Denoiser, DiscreteVP, Predicted
from diffusion_jax.types import UNCONDITIONAL, Condition, Keys

SHAPE = (4, 4, 1)
NUM_DIMS = 16
VARIANCES = np.geomspace(0.02, 1.0, NUM_DIMS)
AXES = np.linalg.qr(np.random.default_rng(0).normal(size=(NUM_DIMS, NUM_DIMS)))[0]
"""Axes and variances of the data, N(0, AXES diag(VARIANCES) AXES')."""


def _no_network(*args: Any) -> Any:
  raise NotImplementedError("the estimate is known: there is no network")


@dataclasses.dataclass(frozen=True)
class ExactDenoiser(Denoiser):
  """A denoiser with a known x0 estimate, which determines every prediction.

  Attributes:
    estimate: (noised data with t, alpha and sigma, condition) -> x0 estimate, or that estimate and
      variance logits with learned_variance.
  """

  network: Any = _no_network
  process: Any = None
  estimate: Any = None

  def predict(self, at: Any, condition: Condition = UNCONDITIONAL, dropout_key: Any = None):
    """Return the output that encodes the estimate."""
    x0, logits = self.estimate(at, condition), None
    if self.learned_variance:
      x0, logits = x0
    eps = (at.xt - at.alpha * x0) / at.sigma
    return Predicted(self.formulas.target(x0, eps, at.alpha, at.sigma), x0, logits)


def gaussian_denoiser(process: Any, scale: Any = 1.0) -> Denoiser:
  """Return the posterior mean E[x0 | xt] times `scale`, as a prediction of the noise.

  On a discrete process it also returns the best variances.
  """
  variances, axes = (jnp.asarray(v, jnp.float32) for v in (VARIANCES, AXES))

  def mean(at: Any, condition: Condition):
    alpha, sigma = (c.reshape(-1, 1) for c in (at.alpha, at.sigma))
    along = at.xt.reshape(len(at.xt), NUM_DIMS) @ axes
    kept = alpha * variances / (alpha**2 * variances + sigma**2)
    return scale * ((along * kept) @ axes.T).reshape(at.xt.shape)

  if process.num_timesteps is None:
    return ExactDenoiser(process=process, estimate=mean)
  logits = jnp.asarray(best_logits(process), jnp.float32)

  def mean_and_logits(at: Any, condition: Condition):
    step = jnp.round(at.t * process.num_timesteps).astype(jnp.int32)
    return mean(at, condition), logits[step - 1]

  return ExactDenoiser(process=process, estimate=mean_and_logits, learned_variance=True)


def left_open(process: DiscreteVP) -> np.ndarray:
  """Return Var(x0 | x_t) of each dimension for t = 1..T, [T, *SHAPE], float64."""
  alpha_bar = process.alphas_cumprod[1:, None]
  along = VARIANCES * (1 - alpha_bar) / (alpha_bar * VARIANCES + 1 - alpha_bar)
  return (along @ (AXES**2).T).reshape(-1, *SHAPE)


def best_variances(process: DiscreteVP) -> np.ndarray:
  """Return the best variance of p(x_{t-1} | x_t) per dimension, [T, *SHAPE], float64.

  It is the posterior's variance plus the part due to Var(x0 | x_t), for t = 1..T. Each minimises
  the KL of its step (the reconstruction term at t = 1).
  """
  now, before = (a[:, None, None, None] for a in (process.alphas_cumprod[1:],
                                                  process.alphas_cumprod[:-1]))  # fmt: skip
  beta = 1 - now / before
  gain = np.sqrt(before) * beta / (1 - now)
  return beta * (1 - before) / (1 - now) + gain**2 * left_open(process)


def best_logits(process: DiscreteVP) -> np.ndarray:
  """Return the variance logits that encode `best_variances`.

  -1 is the posterior's variance and 1 is beta. At t = 1 the posterior's variance of t = 2 is used.
  """
  now, before = process.alphas_cumprod[1:], process.alphas_cumprod[:-1]
  beta = 1 - now / before
  small = beta * (1 - before) / (1 - now)
  small[0] = small[1]
  low, high = (np.log(v)[:, None, None, None] for v in (small, beta))
  return 2 * (np.log(best_variances(process)) - low) / (high - low) - 1


def gaussian_images(n: int, seed: int = 0) -> jax.Array:
  """Return samples of the data [n, 4, 4, 1]."""
  noise = jax.random.normal(jax.random.key(seed), (n, NUM_DIMS))
  return ((noise * jnp.sqrt(jnp.asarray(VARIANCES))) @ jnp.asarray(AXES.T)).reshape(n, *SHAPE)


def exact_bits(images: Any) -> np.ndarray:
  """Return -log2 p(x) divided by the number of dimensions of each image, float64."""
  along = np.float64(images).reshape(len(images), NUM_DIMS) @ AXES
  return 0.5 * np.mean(
    np.log2(2 * math.pi * VARIANCES) + along**2 / VARIANCES / math.log(2), axis=1
  )


def entropy_bits() -> float:
  """Return the mean of `exact_bits` over the data."""
  return float(np.mean(0.5 * np.log2(2 * math.pi * math.e * VARIANCES)))


def bound_bits(first: float, last: float) -> float:
  """Return the continuous-time bound for the data and the exact denoiser, in bits/dim.

  The log-SNR runs from `first` to `last`. Prior: KL of Gaussians; middle term: half the difference
  of ln(1 + v SNR) at the endpoints, v the variances; reconstruction: the entropy of N(0, 1 / SNR).
  """
  alpha2, sigma2 = 1 / (1 + math.exp(-last)), 1 / (1 + math.exp(last))
  prior = 0.5 * (alpha2 * VARIANCES + sigma2 - 1 - math.log(sigma2))
  high, low = (np.log1p(VARIANCES * math.exp(end)) for end in (first, last))
  decoder = 0.5 * (math.log(2 * math.pi * math.e) - first)
  return float(np.mean(prior + 0.5 * (high - low) + decoder) / math.log(2))


def keys(n: int, seed: int = 1) -> Keys:
  """Return one key per example."""
  return rng.example_keys(jax.random.key(seed), jnp.arange(n))


def mean_and_error(values: Any) -> tuple[float, float]:
  """Return the mean of independent values and its standard error, in float64."""
  values = np.float64(values)
  return float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values)))
