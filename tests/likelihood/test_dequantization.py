"""Noise of grey levels: inside its bin, of its density, and a bound that is tight where it fits."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from diffusion_jax.auditing.oracles import ExactDenoiser
from diffusion_jax.core import rng
from diffusion_jax.likelihood import ProbabilityFlow
from diffusion_jax.likelihood.dequantization import dequantize
from diffusion_jax.processes import LinearLogSNR
from diffusion_jax.types import Examples

LEVELS = 17
WIDTH = 2 / (LEVELS - 1)
GRID = 2 * np.arange(LEVELS) / (LEVELS - 1) - 1
KINDS = ("uniform", "truncated_normal")
PROCESS = LinearLogSNR(log_snr_max=7.8, log_snr_min=-6.0)
"""Its noise at 0 is a sixth of a level's width: bins end at 3.1 standard deviations."""
SHARE = stats.norm.pdf(GRID, 0.1, 0.4)
SHARE /= SHARE.sum()
"""Gaussian data, quantised: the probability of each level."""


def keys(num, seed=0):
  return rng.example_keys(jax.random.key(seed), np.arange(num, dtype=np.uint32))


def images(num, seed=0):
  drawn = np.random.default_rng(seed).choice(LEVELS, (num, 2, 2, 1), p=SHARE)
  return drawn, np.float32(GRID[drawn])


def quantised_model(process):
  """E[x0 | x_t] of independent pixels that take the levels with their probabilities."""
  levels, log_share = (jnp.asarray(v, jnp.float32) for v in (GRID, np.log(SHARE)))

  def estimate(at, condition):
    away = (at.xt[..., None] - at.alpha[..., None] * levels) / at.sigma[..., None]
    return jax.nn.softmax(log_share - 0.5 * jnp.square(away)) @ levels

  return ExactDenoiser(process=process, estimate=estimate)


@functools.partial(jax.jit, static_argnums=(0, 3))
def noised(kind, keys, x0, num_levels=LEVELS):
  return dequantize(kind, PROCESS, keys, x0, num_levels)


@pytest.mark.parametrize("kind", KINDS)
def test_noise_stays_in_its_bin_and_has_the_density_that_it_claims(kind):
  """E[f / q] over q is the integral of f over the bin, for f = 1 and f = u^2."""
  _, x0 = images(20_000)
  noisy = noised(kind, keys(len(x0)), x0)
  alpha = 1.0 if kind == "uniform" else float(PROCESS.alpha_sigma(jnp.asarray(1e-5))[0])
  u = np.float64(noisy.x) - alpha * np.float64(x0)
  width = alpha * WIDTH
  assert np.abs(u).max() <= width / 2 + 1e-6
  assert np.abs(u).max() > 0.45 * width
  # Of one pixel: its own density, from images of a single dimension.
  one = noised(kind, keys(len(x0)), x0[:, :1, :1])
  u = np.float64(one.x).reshape(-1) - alpha * np.float64(x0[:, 0, 0, 0])
  inside = np.abs(u) < width / 4  # where 1 / q is small
  for f, expected in ((1.0, width / 2), (u**2, 2 * (width / 4) ** 3 / 3)):
    values = np.where(inside, f / np.exp(np.float64(one.log_q)), 0.0)
    error = values.std() / math.sqrt(len(values))
    assert abs(values.mean() - expected) < 4 * error + 1e-5 * expected


def test_quantised_data_cost_what_they_cost_and_the_noise_that_fits_loses_least():
  """Exact: -log2 of each level's probability. Truncated normal noise is within the model's own
  spread of a level, so that its bound is tight; uniform noise lies above it."""
  num = 200
  drawn, x0 = images(num)
  exact = -np.log2(SHARE[drawn]).mean((1, 2, 3))
  model, above = quantised_model(PROCESS), {}
  for kind in KINDS:
    config = ProbabilityFlow(1e-4, 1e-4, "exact", dequantization=kind)
    run = jax.jit(lambda k, x, c=config: c.estimate(model, Examples(x, num_levels=LEVELS), k))
    found = run(keys(num), x0)
    terms = map(np.asarray, found.terms.values())
    np.testing.assert_allclose(sum(terms), found.bits_per_dim, rtol=1e-5)
    above[kind] = np.float64(found.bits_per_dim) - exact
  mean = {kind: v.mean() for kind, v in above.items()}
  error = {kind: v.std(ddof=1) / math.sqrt(num) for kind, v in above.items()}
  for kind in KINDS:
    assert mean[kind] > -4 * error[kind] - 2e-3, kind
  # 0.2% of a level's noise lies beyond its bin: at most as many nats are lost.
  assert abs(mean["truncated_normal"]) < 4 * error["truncated_normal"] + 6e-3
  # KL(uniform || normal cut to its bin), of a bin of +-3.1 standard deviations.
  limit = 0.5 * WIDTH * math.exp(0.5 * 7.8)
  divergence = limit**2 / 6 + 0.5 * math.log(2 * math.pi) - math.log(2 * limit)
  divergence += math.log(math.erf(limit / math.sqrt(2)))
  assert abs(mean["uniform"] - divergence / math.log(2)) < 4 * error["uniform"] + 6e-3
  assert mean["uniform"] > mean["truncated_normal"] + 0.3


def test_float_data_stay_as_they_are():
  _, x0 = images(5)
  for kind in KINDS:
    noisy = noised(kind, keys(5), x0, None)
    np.testing.assert_array_equal(noisy.x, x0)
    assert not np.asarray(noisy.log_q).any()


def test_draws_belong_to_the_example():
  _, x0 = images(6)
  for kind in KINDS:
    whole = noised(kind, keys(6), x0)
    part = noised(kind, keys(6)[3:], x0[3:])
    np.testing.assert_array_equal(np.asarray(whole.x)[3:], part.x)
    np.testing.assert_allclose(np.asarray(whole.log_q)[3:], part.log_q, rtol=1e-6)
