"""The ODE's likelihood against closed forms of Gaussian data, on every continuous process."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_draws import normal
from scipy import integrate, stats

from diffusion_jax.auditing.oracles import ExactDenoiser
from diffusion_jax.core import rng
from diffusion_jax.likelihood import ProbabilityFlow
from diffusion_jax.likelihood.probability_flow import divergence_of
from diffusion_jax.processes import PROCESSES, Denoiser, LinearVP
from diffusion_jax.types import Condition, Examples

COVARIANCE = np.asarray([[1.0, 0.6, 0.0, 0.2], [0.6, 1.0, 0.3, 0.0], [0.0, 0.3, 0.5, 0.1],
                         [0.2, 0.0, 0.1, 0.8]])  # fmt: skip


def keys(num, seed=0):
  return rng.example_keys(jax.random.key(seed), np.arange(num, dtype=np.uint32))


def best_model(process, values, vectors):
  """The exact denoiser of centred Gaussian images [2 2 1], by their covariance's eigenvectors."""

  def estimate(at, condition):
    alpha, sigma = (c.reshape(-1, 1) for c in (at.alpha, at.sigma))
    along = at.xt.reshape(len(at.xt), 4) @ vectors
    along = along * alpha * values / (alpha**2 * values + sigma**2)
    return (along @ vectors.T).reshape(at.xt.shape)

  return ExactDenoiser(process=process, estimate=estimate)


def exact_bits(process, covariance, x):
  """Of x at min_time, where its covariance is alpha^2 C + sigma^2 I."""
  alpha, sigma = process.alpha_sigma(np.asarray(process.min_time or 1e-5))
  marginal = alpha**2 * covariance + sigma**2 * np.eye(4)
  log_prob = stats.multivariate_normal(np.zeros(4), marginal).logpdf(np.float64(x).reshape(-1, 4))
  return -log_prob / (4 * math.log(2))


def bits(config, process, covariance, x, num_levels=None):
  law = [np.float32(v) for v in np.linalg.eigh(covariance)]
  return jax.device_get(program(config, process, num_levels)(keys(len(x)), np.float32(x), *law))


@functools.cache
def program(config, process, num_levels):
  """The compiled likelihood: (keys, images, eigenvalues, eigenvectors) -> estimate."""

  def run(keys, x, values, vectors):
    model = best_model(process, values, vectors)
    return config.estimate(model, Examples(x, num_levels=num_levels), keys)

  return jax.jit(run)


@functools.cache
def made(name):
  return PROCESSES[name]()


@pytest.mark.parametrize("name", ["vp", "sub_vp", "cosine", "ve", "edm", "flow"])
def test_each_image_has_its_exact_density(name):
  """Correlated data, exact trace; the prior is a little off the marginal at t = 1."""
  process = made(name)
  rng = np.random.default_rng(0)
  x = rng.multivariate_normal(np.zeros(4), COVARIANCE, 16).reshape(-1, 2, 2, 1).astype(np.float32)
  found = bits(ProbabilityFlow(1e-6, 1e-6, "exact"), process, COVARIANCE, x)
  np.testing.assert_allclose(found.bits_per_dim, exact_bits(process, COVARIANCE, x), atol=3e-3)
  parts = sum(np.asarray(v) for v in found.terms.values())
  np.testing.assert_allclose(parts, found.bits_per_dim, rtol=1e-6)


@pytest.mark.parametrize(
  ("std", "nats"), [(0.05, -1.576794), (0.25, 0.032644), (0.5, 0.725791), (1.0, 1.418939)]
)
def test_published_entropies_of_the_vp_sde(std, nats):
  """-E log p by Gauss-Hermite points instead of samples: log p is quadratic, so 2 points do.

  Each eight times: so many images have a compiled program already.
  """
  process = made("vp")
  x = np.repeat([-std, std], 8)[:, None, None, None] * np.ones((16, 2, 2, 1))
  config = ProbabilityFlow(1e-6, 1e-6, "exact")
  found = bits(config, process, std**2 * np.eye(4), x).bits_per_dim
  # t0 = 1e-5 instead of 0: sigma^2 = 1e-6 widens the narrowest by 2e-4 nats.
  np.testing.assert_allclose(np.mean(found) * math.log(2), nats, atol=6e-4)


@pytest.mark.costly
def test_hutchinsons_estimate_is_unbiased_with_the_spread_that_theory_gives():
  """Rademacher: variance 2 |off-diagonal G|^2 with G = log(S_1 S_0^-1) / 2, of correlated data."""
  process = made("vp")
  x = np.tile(np.float32([0.5, -1.0, 0.3, 0.8]).reshape(1, 2, 2, 1), (600, 1, 1, 1))
  estimated = bits(ProbabilityFlow(1e-4, 1e-4), process, COVARIANCE, x).bits_per_dim
  nats = np.float64(estimated) * 4 * math.log(2)
  exact = float(exact_bits(process, COVARIANCE, x[:1])) * 4 * math.log(2)
  values, vectors = np.linalg.eigh(COVARIANCE)
  marginals = [a**2 * values + s**2 for a, s in map(process.alpha_sigma, np.asarray([1e-5, 1.0]))]
  g = vectors @ np.diag(0.5 * np.log(marginals[1] / marginals[0])) @ vectors.T
  spread = math.sqrt(2 * np.sum((g - np.diag(np.diag(g))) ** 2))
  assert abs(nats.mean() - exact) < 4 * spread / math.sqrt(len(nats)) + 5e-3
  np.testing.assert_allclose(nats.std(ddof=1), spread, rtol=0.15)
  more = bits(ProbabilityFlow(1e-4, 1e-4, probes=4), process, COVARIANCE, x).bits_per_dim
  np.testing.assert_allclose(np.std(np.float64(more) * 4 * math.log(2)), spread / 2, rtol=0.15)


def test_the_divergence_of_a_known_function():
  matrix = normal(0, 4, 4)
  function = lambda x: (jnp.sin(x.reshape(4)) @ matrix).reshape(x.shape)  # noqa: E731
  x = np.arange(4, dtype=np.float32).reshape(2, 2, 1)
  run = jax.jit(lambda x: (*divergence_of(function, x, None), function(x)))
  value, trace, expected = jax.device_get(run(x))
  np.testing.assert_allclose(value, expected)
  np.testing.assert_allclose(trace, np.sum(np.diag(matrix) * np.cos(np.arange(4.0))), rtol=1e-5)


def test_grey_levels_are_dequantised_uniformly():
  """Every level once: the mean over levels and noise is the cross entropy, by quadrature."""
  process, levels, variance = made("vp"), 17, 1 / 3
  width = 2 / (levels - 1)
  x = np.tile(np.linspace(-1, 1, levels)[:, None, None, None], (200, 2, 2, 1))
  config = ProbabilityFlow(1e-4, 1e-4, "exact")
  found = bits(config, process, variance * np.eye(4), x, levels)
  density = stats.norm(scale=math.sqrt(variance))
  edge = 1 + width / 2
  mean = integrate.quad(lambda y: -density.logpdf(y) / (2 * edge), -edge, edge)[0]
  expected = mean / math.log(2) - math.log2(width)
  values = np.float64(found.bits_per_dim)
  # The levels are the same in every tile: the spread between tiles is that of the dequantisation.
  error = values.reshape(200, levels).mean(1).std(ddof=1) / math.sqrt(200)
  assert abs(values.mean() - expected) < 4 * error + 1e-3
  np.testing.assert_allclose(found.terms["dequantization"], -math.log2(width), rtol=1e-6)


@pytest.mark.parametrize(
  "condition",
  [
    Condition(label=np.asarray([0, 1, 0])),
    Condition(fields={"slope": np.float32([[0, 0], [1, 1], [0, 0]])}),
  ],
)
def test_the_condition_of_each_example_reaches_the_network(condition):
  def network(x, time, given, key):
    slope = given.fields["slope"][:, 0] if given.label is None else given.label
    return x * slope[:, None, None, None]

  model = Denoiser(network, made("flow"), "velocity")
  config = ProbabilityFlow(1e-4, 1e-4, "exact")
  run = jax.jit(lambda keys, x, given: config.estimate(model, Examples(x, given), keys))
  x = np.full((3, 2, 2, 1), 0.5, np.float32)
  found = np.asarray(run(keys(3), x, condition).bits_per_dim)
  assert found[0] == found[2]
  assert abs(found[0] - found[1]) > 0.1


def test_a_process_with_steps_has_no_ode():
  assert not ProbabilityFlow().serves(LinearVP())
  assert ProbabilityFlow().serves(PROCESSES["edm"]())


@pytest.mark.parametrize("wrong", [{"rtol": 0.0}, {"probes": 0}, {"max_steps": 0}])
def test_impossible_fields_are_refused(wrong):
  with pytest.raises(ValueError, match="must"):
    ProbabilityFlow(**wrong)
