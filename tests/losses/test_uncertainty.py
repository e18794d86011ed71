"""The learned uncertainty is the logarithm of the loss that it divides."""

import jax
import numpy as np
import pytest
from scipy import optimize

from diffusion_jax.auditing import oracles
from diffusion_jax.losses import EDMLoss, Uncertainty
from diffusion_jax.losses.uncertainty import fourier_features, uncertainty
from diffusion_jax.processes import PROCESSES
from diffusion_jax.types import Examples

EDM = PROCESSES["edm"]()
NUM = 4000


def measured(loss_params, num=NUM):
  return Uncertainty()(*examples(num), loss_params=loss_params)


def examples(num):
  return oracles.gaussian_denoiser(EDM), Examples(oracles.gaussian_images(num)), oracles.keys(num)


def start(**fields):
  return Uncertainty(**fields).init(jax.random.key(0))


def test_it_starts_as_edms_loss():
  @jax.jit
  def both(loss_params):
    return measured(loss_params, 50), EDMLoss(-0.4, 1.0)(*examples(50)).values

  (values, metrics, state), expected = jax.device_get(both(start()))
  np.testing.assert_allclose(values, expected, rtol=1e-6)
  np.testing.assert_allclose(metrics["edm"], expected, rtol=1e-6)
  assert not metrics["uncertainty"].any()
  assert state == {}


def test_where_u_is_best_its_exponential_is_the_mean_loss_of_that_noise_level():
  """E[w |x0 - x0_hat|^2] at sigma is w times the mean of v sigma^2 / (v + sigma^2), v of the data.

  The loss is convex in the weights of u, and is minimised here to the end on fixed draws; within
  1.5 standard deviations of log(sigma), where draws are many.
  """
  gradient = jax.jit(jax.value_and_grad(lambda w: measured({"weight": w}).values.mean()))
  found = optimize.minimize(
    lambda w: [np.float64(v) for v in gradient(np.float32(w))],
    np.zeros(16), jac=True, method="L-BFGS-B", options={"maxiter": 300},
  )  # fmt: skip
  sigma = np.exp(np.linspace(-0.4 - 1.5, -0.4 + 1.5, 13))
  left = np.mean(oracles.VARIANCES[:, None] * sigma**2 / (oracles.VARIANCES[:, None] + sigma**2), 0)
  expected = np.log((sigma**2 + 0.25) / (0.5 * sigma) ** 2 * left)
  u = jax.jit(uncertainty)({"weight": np.float32(found.x)}, np.float32(np.log(sigma)))
  assert expected.max() - expected.min() > 0.2
  np.testing.assert_allclose(u, expected, atol=0.08)


def test_the_gradient_at_the_true_uncertainty_is_zero_in_the_mean():
  """d/du [L e^-u + u] = 1 - L e^-u; at u = log of the mean of L it is 0 in the mean."""

  @jax.jit
  def run():
    model, few, keys = examples(NUM)
    log_snr = EDM.log_snr(Uncertainty().noised(model, few.x0, keys).t)
    return measured(start()).metrics, log_snr

  metrics, log_snr = run()
  sigma2 = np.exp(-np.float64(log_snr))[:, None]
  left = np.mean(oracles.VARIANCES * sigma2 / (oracles.VARIANCES + sigma2), axis=1)
  true = (sigma2[:, 0] + 0.25) / (0.25 * sigma2[:, 0]) * left
  mean, error = oracles.mean_and_error(1 - np.float64(metrics["edm"]) / true)
  assert abs(mean) < 4 * error
  assert error < 0.01


def test_features_keep_the_magnitude_and_differ():
  places = np.linspace(-0.5, 0.5, 400, dtype=np.float32)
  features = np.asarray(jax.jit(fourier_features, static_argnums=1)(places, 4000))
  np.testing.assert_allclose(np.mean(features**2, axis=1), 1.0, atol=0.1)
  assert np.abs(features).max() <= np.sqrt(2) + 1e-6


def test_its_parameters_must_be_given():
  with pytest.raises(ValueError, match=r"pass loss_params=loss\.init\(key\)"):
    Uncertainty()(*examples(2))


@pytest.mark.parametrize("wrong", [{"num_features": 0}, {"sigma_data": 0.0}])
def test_impossible_fields_are_refused(wrong):
  with pytest.raises(ValueError, match=next(iter(wrong))):
    Uncertainty(**wrong)
