"""Check the ELBO and IWAE bounds of a linear VAE, whose evidence is a Gaussian density.

p(z) = N(0, I), p(x | z) = N(W z + b, s I), so p(x) = N(b, W W' + s I) (Tipping and Bishop 1999).
"""

import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.auditing import oracles
from diffusion_jax.auditing.rows import Row
from diffusion_jax.core import rng
from diffusion_jax.core.distributions import gaussian_log_prob
from diffusion_jax.likelihood import ImportanceWeighted
from diffusion_jax.losses import elbo_terms

WEIGHT = np.asarray([[1.0, 0.2], [-0.5, 0.8], [0.3, -0.6], [0.0, 0.4]])
BIAS = np.asarray([0.1, -0.2, 0.0, 0.3])
VARIANCE = 0.25
IMAGE = np.asarray([0.5, -1.0, 0.3, 0.8])
MEAN, VAR = np.asarray([0.3, -0.2]), np.asarray([0.2, 0.3])
"""Parameters of a deliberately wrong posterior q."""

NUM = 4000


def evidence() -> float:
  """Return log p(x) in nats."""
  covariance = WEIGHT @ WEIGHT.T + VARIANCE * np.eye(4)
  away = IMAGE - BIAS
  return float(-0.5 * (away @ np.linalg.solve(covariance, away)
                       + np.linalg.slogdet(2 * math.pi * covariance)[1]))  # fmt: skip


def posterior() -> tuple[np.ndarray, np.ndarray]:
  """Return the mean and covariance of p(z | x)."""
  m = WEIGHT.T @ WEIGHT + VARIANCE * np.eye(2)
  return np.linalg.solve(m, WEIGHT.T @ (IMAGE - BIAS)), VARIANCE * np.linalg.inv(m)


def gap() -> float:
  """Return KL(q || p(z | x)) in nats, the gap between evidence and ELBO."""
  mean, covariance = posterior()
  away = MEAN - mean
  inside = np.trace(np.linalg.solve(covariance, np.diag(VAR)))
  inside += away @ np.linalg.solve(covariance, away) - 2
  return float(0.5 * (inside + np.linalg.slogdet(covariance)[1] - np.log(VAR).sum()))


def audit_linear_vae() -> Iterator[Row]:
  """Check ELBO = evidence - gap and ELBO <= IWAE_2 <= IWAE_50 <= evidence, within errors."""
  exact, elbo = evidence(), evidence() - gap()
  measured, error = _elbo()
  yield Row("elbo", "nats of the linear VAE", elbo, measured, error)
  bounds = {1: (measured, error)}
  for k in (1, 2, 50):
    bounds[k] = _importance(k)
    value, error = bounds[k]
    yield Row(f"iwae_{k}", "minus the bound against minus the evidence", -exact, -value, error,
              relation="at_least")  # fmt: skip
  yield Row("iwae_1", "it is the elbo", elbo, *bounds[1])
  for fewer, more in ((1, 2), (2, 50)):
    error = math.hypot(bounds[fewer][1], bounds[more][1])
    yield Row(f"iwae_{more}", f"at least iwae_{fewer}", bounds[fewer][0], bounds[more][0], error,
              relation="at_least")  # fmt: skip
  value, error = _importance(1, exact_posterior=True)
  yield Row("iwae_1", "from the exact posterior it is the evidence", exact, value, None, 1e-4)


def _draw(keys, exact_posterior: bool = False):
  """Return log p(x | z), z and log q(z) for one z ~ q per example."""
  mean, root = MEAN, np.diag(np.sqrt(VAR))
  if exact_posterior:
    mean, covariance = posterior()
    root = np.linalg.cholesky(covariance)
  noise = rng.normal(keys, (2,))
  z = jnp.asarray(mean, jnp.float32) + noise @ jnp.asarray(root.T, jnp.float32)
  log_q = gaussian_log_prob(noise, 0 * noise, 0 * noise).sum(-1) - np.linalg.slogdet(root)[1]
  decoded = z @ jnp.asarray(WEIGHT.T, jnp.float32) + jnp.asarray(BIAS, jnp.float32)
  x = jnp.broadcast_to(jnp.asarray(IMAGE, jnp.float32), decoded.shape)
  scale = jnp.full_like(x, 0.5 * math.log(VARIANCE))
  return gaussian_log_prob(x, decoded, scale).sum(-1), z, log_q


def _elbo() -> tuple[float, float]:
  log_prob, _, _ = _draw(oracles.keys(NUM))
  mean, log_var = (jnp.broadcast_to(jnp.asarray(v, jnp.float32), (NUM, 2))
                   for v in (MEAN, np.log(VAR)))  # fmt: skip
  return oracles.mean_and_error(-elbo_terms(log_prob, mean, log_var).negative_elbo)


def _importance(k: int, exact_posterior: bool = False) -> tuple[float, float]:
  """Return the bound in nats and its standard error over NUM repetitions."""

  def log_weight(keys):
    log_prob, z, log_q = _draw(keys, exact_posterior)
    return log_prob + gaussian_log_prob(z, 0 * z, 0 * z).sum(-1) - log_q

  estimator = ImportanceWeighted(k)
  run = jax.jit(lambda keys: estimator.estimate(log_weight, keys, 1).bits_per_dim)
  return oracles.mean_and_error(-np.float64(run(oracles.keys(NUM))) * math.log(2))
