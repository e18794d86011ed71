"""Densities and divergences against float64 references and their own identities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from diffusion_jax.core import distributions

LEVELS = [2, 17, 256]
LOG_PROBS = {
  name: jax.jit(getattr(distributions, f"{name}_log_prob"), static_argnums=3)
  for name in ("discretized_logistic", "discretized_gaussian", "approximate_discretized_gaussian")
}


def log_prob_of(name, mean, log_std, num_levels):
  """Of every level, float64."""
  levels = np.float32(grid(num_levels))
  found = LOG_PROBS[name](levels, np.float32(mean), np.float32(log_std), num_levels)
  return np.asarray(found, np.float64)


def grid(num_levels):
  return 2.0 * np.arange(num_levels) / (num_levels - 1) - 1.0


def bin_edges(num_levels):
  """Open ends around each level's bin, float64."""
  half = 1.0 / (num_levels - 1)
  low, high = grid(num_levels) - half, grid(num_levels) + half
  low[0], high[-1] = -np.inf, np.inf
  return low, high


@pytest.mark.parametrize(
  ("m1", "v1", "m2", "v2"), [(0.3, 0.2, -1.0, 2.0), (0, 1, 0, 1), (5, 3, 5, 0.1)]
)
def test_gaussian_kl_is_the_integral(m1, v1, m2, v2):
  x = np.linspace(m1 - 12 * np.sqrt(v1), m1 + 12 * np.sqrt(v1), 200_001)
  p, q = stats.norm(m1, np.sqrt(v1)), stats.norm(m2, np.sqrt(v2))
  integral = np.trapezoid(p.pdf(x) * (p.logpdf(x) - q.logpdf(x)), x)
  kl = jax.jit(distributions.gaussian_kl)(*map(np.float32, (m1, np.log(v1), m2, np.log(v2))))
  np.testing.assert_allclose(kl, integral, rtol=2e-6, atol=1e-9)


def test_gaussian_kl_of_nearly_equal_gaussians_keeps_its_digits():
  """KL(N(0, e^r) || N(0, 1)) = r^2 / 4 + O(r^3): subtracting in float32 would lose it."""
  r = np.float32([1e-2, -1e-2, 1e-3, 1e-4])
  kl = np.float64(jax.jit(distributions.gaussian_kl)(0 * r, r, np.float32(0), np.float32(0)))
  exact = np.asarray(r, np.float64) ** 2 / 4 + np.asarray(r, np.float64) ** 3 / 12
  assert (kl >= 0).all()
  np.testing.assert_allclose(kl[:2], exact[:2], rtol=1e-3)
  np.testing.assert_allclose(kl[2:], exact[2:], atol=2e-10)


@pytest.mark.parametrize("num_levels", LEVELS)
@pytest.mark.parametrize("log_scale", [-7.0, -4.0, -1.0, 1.0])
@pytest.mark.parametrize("mean", [-1.3, -0.31, 0.0, 0.999])
def test_discretized_logistic_matches_float64_and_sums_to_one(num_levels, log_scale, mean):
  low, high = bin_edges(num_levels)
  law = stats.logistic(mean, np.exp(log_scale))
  exact = np.where(low > mean, law.sf(low) - law.sf(high), law.cdf(high) - law.cdf(low))
  log_prob = log_prob_of("discretized_logistic", mean, log_scale, num_levels)
  seen = exact > 1e-30
  np.testing.assert_allclose(np.exp(log_prob).sum(), 1.0, rtol=2e-5)
  # In float32 the edge x - half_bin is rounded: its error over the scale is what log P may lose.
  tolerance = 1e-4 + 2e-7 / np.exp(log_scale)
  np.testing.assert_allclose(log_prob[seen], np.log(exact[seen]), rtol=2e-5, atol=tolerance)


@pytest.mark.parametrize("num_levels", LEVELS)
@pytest.mark.parametrize("std", [0.01, 0.1, 1.0, 3.0])
@pytest.mark.parametrize("mean", [-1.1, -0.31, 0.25])
def test_discretized_gaussian_matches_float64_and_sums_to_one(num_levels, std, mean):
  low, high = bin_edges(num_levels)
  law = stats.norm(mean, std)
  exact = np.where(low > mean, law.sf(low) - law.sf(high), law.cdf(high) - law.cdf(low))
  log_prob = log_prob_of("discretized_gaussian", mean, np.log(std), num_levels)
  seen = exact > 1e-20
  np.testing.assert_allclose(np.exp(log_prob).sum(), 1.0, rtol=1e-4)
  np.testing.assert_allclose(log_prob[seen], np.log(exact[seen]), rtol=2e-4, atol=1e-3)


@pytest.mark.parametrize("num_levels", LEVELS)
@pytest.mark.parametrize("std", [0.007, 0.1, 1.0])
@pytest.mark.parametrize("mean", [-1.1, -0.31, 0.25])
def test_the_tanh_approximation_is_its_formula_in_float64(num_levels, std, mean):
  """0.5 (1 + tanh(sqrt(2 / pi) (y + 0.044715 y^3))) at both edges, no level below 1e-12."""
  cdf = [
    0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
    for y in ((edge - mean) / std for edge in bin_edges(num_levels))
  ]
  exact = np.log(np.maximum(cdf[1] - cdf[0], 1e-12))
  log_prob = log_prob_of("approximate_discretized_gaussian", mean, np.log(std), num_levels)
  # The reference itself subtracts two numbers near 1 in the right tail: 1e-16 of 1e-9.
  seen = exact > np.log(1e-9)
  np.testing.assert_allclose(log_prob[seen], exact[seen], rtol=2e-4, atol=1e-4)
  np.testing.assert_allclose(log_prob.min(), max(exact.min(), np.log(1e-12)), rtol=1e-4)
  assert (log_prob[exact <= np.log(1e-12)] == np.float32(np.log(1e-12))).all()


def test_the_tanh_approximation_stays_near_the_exact_function():
  """Its cdf is right to 3e-4, so a level's probability is to 6e-4; and it is another function."""
  exact = np.exp(log_prob_of("discretized_gaussian", 0.1, np.log(0.02), 256))
  near = np.exp(log_prob_of("approximate_discretized_gaussian", 0.1, np.log(0.02), 256))
  assert 1e-5 < np.abs(near - exact).max() < 6e-4
  np.testing.assert_allclose(near.sum(), 1.0, rtol=1e-6)


@pytest.mark.parametrize("name", LOG_PROBS)
def test_discretized_gradients_stay_finite_far_away(name):
  levels = np.float32(grid(256))
  total = lambda mean, log_scale: jnp.sum(LOG_PROBS[name](levels, mean, log_scale, 256))  # noqa: E731
  value_and_gradients = jax.jit(jax.value_and_grad(total, (0, 1)))
  for mean in (-30.0, -1.0, 0.0, 30.0):
    for log_scale in (-7.0, 0.0, 5.0):
      value, grads = value_and_gradients(np.float32(mean), np.float32(log_scale))
      assert np.isfinite(np.asarray([value, *grads])).all(), (mean, log_scale)


def test_bernoulli_is_the_expected_log_probability_of_the_binarised_pixel():
  logits, x = np.float32([-3.0, 0.0, 40.0]), np.float32([0.0, 0.25, 1.0])
  p = 1.0 / (1.0 + np.exp(-np.float64(logits)))
  exact = [np.log(1 - p[0]), 0.25 * np.log(p[1]) + 0.75 * np.log(1 - p[1]), np.log(p[2])]
  found = jax.jit(distributions.bernoulli_log_prob)(x, logits)
  np.testing.assert_allclose(found, exact, rtol=1e-6, atol=1e-7)


def test_gaussian_log_prob_is_scipys():
  x, mean, log_std = np.float32([[0.3, -4.0], [0.0, 1.0], [-1.0, 0.5]])
  exact = stats.norm(np.float64(mean), np.exp(np.float64(log_std))).logpdf(np.float64(x))
  found = jax.jit(distributions.gaussian_log_prob)(x, mean, log_std)
  np.testing.assert_allclose(found, exact, rtol=1e-6)


def test_uniform_over_256_levels_is_8_bits():
  nats = jnp.float32(48 * np.log(256))
  np.testing.assert_allclose(distributions.nats_to_bits_per_dim(nats, 48), 8.0, rtol=1e-6)
