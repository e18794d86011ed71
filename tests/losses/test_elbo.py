"""The ELBO against a linear VAE, whose evidence and posterior are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_draws import normal

from diffusion_jax.core.distributions import gaussian_log_prob
from diffusion_jax.losses import ELBO, ElboTerms, elbo_terms

W = np.asarray([[1, 0.2], [-0.5, 0.8], [0.3, -0.6], [0, 0.4]])
B = np.asarray([0.1, -0.2, 0, 0.3])
X = np.asarray([0.5, -1, 0.3, 0.8])
LOG_EVIDENCE = -3.8007885297
POSTERIOR_COV = np.asarray([[0.1677386516, 0.0439590949], [0.0439590949, 0.1839341076]])
NUM = 100_000


@jax.jit
def negative_elbo(mean, log_var, noise):
  decoded = (mean + jnp.exp(0.5 * log_var) * noise) @ jnp.asarray(W.T, jnp.float32) + B
  log_prob = jnp.sum(gaussian_log_prob(jnp.asarray(X), decoded, jnp.full(4, np.log(0.5))), axis=-1)
  return elbo_terms(log_prob, mean, log_var).negative_elbo


@pytest.mark.parametrize(
  ("mean", "var", "elbo"),
  [
    ((0.50219795, -0.24080329), np.diag(POSTERIOR_COV), -3.835266),
    ((0.50219795, -0.24080329), 1 / np.diag(np.linalg.inv(POSTERIOR_COV)), -3.833129),
    ((0.3, -0.2), (0.2, 0.3), -4.089271),
    ((0.0, 0.0), (1.0, 1.0), -8.263165),
  ],
)
def test_elbo_of_a_linear_vae(mean, var, elbo):
  """Its Monte Carlo mean is the closed form, and evidence - ELBO is KL(q || posterior)."""
  mean, log_var = (np.tile(np.float32(v), (NUM, 1)) for v in (mean, np.log(var)))
  estimates = -np.float64(negative_elbo(mean, log_var, normal(0, NUM, 2)))
  error = estimates.std() / np.sqrt(NUM)
  assert abs(estimates.mean() - elbo) < 4 * error + 1e-5
  assert error < 0.03
  gap = kl_to_posterior(np.float64(mean[0]), np.exp(np.float64(log_var[0])))
  assert LOG_EVIDENCE - elbo == pytest.approx(gap, abs=2e-6)


def kl_to_posterior(mean, var):
  """KL(N(mean, diag var) || posterior) in float64."""
  precision = np.linalg.inv(POSTERIOR_COV)
  shift = mean - np.asarray([0.50219795, -0.24080329])
  trace = (precision @ np.diag(var)).trace() + shift @ precision @ shift
  return 0.5 * (trace - 2 + np.log(np.linalg.det(POSTERIOR_COV)) - np.log(var).sum())


TERMS = ElboTerms(jnp.asarray([10.0, 20.0]), jnp.asarray([[0.1, 3.0], [0.3, 5.0]]))
ONES = jnp.ones(2)


def test_beta_one_is_the_bound_and_beta_weighs_the_kl():
  np.testing.assert_allclose(ELBO()(TERMS, ONES), [13.1, 25.3], rtol=1e-6)
  np.testing.assert_allclose(ELBO(beta=4.0)(TERMS, ONES), [10 + 12.4, 20 + 21.2], rtol=1e-6)


def test_free_bits_hold_the_average_of_each_dimension():
  """Dimension 0 averages 0.2 < 0.5, so it counts 0.5; dimension 1 averages 4 and stays."""
  np.testing.assert_allclose(ELBO(free_bits=0.5)(TERMS, ONES), [13.5, 25.5], rtol=1e-6)


def test_free_bits_ask_the_average_and_not_the_example():
  """0.1 is below 0.15 and its dimension's average is not; 5 is above 4.5 and its average is not."""
  np.testing.assert_allclose(ELBO(free_bits=0.15)(TERMS, ONES), [13.1, 25.3], rtol=1e-6)
  np.testing.assert_allclose(ELBO(free_bits=4.5)(TERMS, ONES), [19.0, 29.0], rtol=1e-6)


def test_free_bits_stop_the_gradient_of_cheap_dimensions_only():
  @jax.jit
  @jax.grad
  def gradient(kl):
    return jnp.mean(ELBO(free_bits=0.5)(ElboTerms(TERMS.reconstruction, kl), ONES))

  np.testing.assert_allclose(gradient(TERMS.kl), [[0, 0.5], [0, 0.5]])


def test_padding_does_not_count_towards_the_average():
  mask = jnp.asarray([1.0, 0.0])
  loss = ELBO(free_bits=0.2)(TERMS, mask)
  np.testing.assert_allclose(loss[0], 10 + 0.2 + 3.0, rtol=1e-6)


@pytest.mark.parametrize("fields", [{"beta": -1.0}, {"free_bits": -0.1}])
def test_negative_weights_are_refused(fields):
  with pytest.raises(ValueError, match="must not be negative"):
    ELBO(**fields)
