"""The loss spectrum against the closed form of Gaussian data."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_draws import normal

from diffusion_jax.core import rng
from diffusion_jax.core.broadcasting import expand
from diffusion_jax.likelihood import Spectrum
from diffusion_jax.processes import PROCESSES, CosineVP, Denoiser, LinearVP
from diffusion_jax.types import Condition, Examples

LINEAR, COSINE = LinearVP(), CosineVP()
S2 = 0.25


def keys(num, seed=0):
  return rng.example_keys(jax.random.key(seed), np.arange(num, dtype=np.uint32))


def best_model(process, prediction):
  """E[x0 | x_t] for data N(0, 0.25), in each parameterisation."""

  def output(xt, time, condition, key):
    alpha, sigma = (expand(c, xt) for c in process.alpha_sigma((time + 1) / process.num_timesteps))
    variance = alpha**2 * S2 + sigma**2
    x0, eps = alpha * S2 / variance * xt, sigma / variance * xt
    return {"x0": x0, "eps": eps, "v": alpha * eps - sigma * x0}[prediction]

  return Denoiser(output, process, prediction)


def exact(log_snr):
  """E |eps - eps_hat|^2 = SNR s^2 / (1 + SNR s^2)."""
  snr = np.exp(np.float64(log_snr))
  return snr * S2 / (1 + snr * S2)


def fix_signs(monkeypatch):
  """Four one-pixel images +-0.5 under noise +-1: the means of all that is quadratic are exact."""
  eps = jnp.asarray(np.float32([1.0, -1.0, 1.0, -1.0]).reshape(4, 1, 1, 1))
  monkeypatch.setattr(rng, "normal", lambda k, shape: eps)
  return np.float32([0.5, 0.5, -0.5, -0.5]).reshape(4, 1, 1, 1)


def measure(spectrum, model, keys, x0, labels=None):
  run = jax.jit(lambda keys, x0, labels: spectrum(model, Examples(x0, Condition(labels)), keys))
  return jax.device_get(run(keys, x0, labels))


@pytest.mark.parametrize("process", [LINEAR, COSINE], ids=["linear", "cosine"])
@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_the_error_at_each_level_is_the_closed_form(process, prediction, monkeypatch):
  x0 = fix_signs(monkeypatch)
  found = measure(Spectrum(), best_model(process, prediction), keys(4), x0)
  mean = np.float64(found.eps_mse).mean(axis=0)
  np.testing.assert_allclose(mean, exact(found.log_snr), rtol=1e-4)


def test_half_its_integral_is_the_bound_in_continuous_time(monkeypatch):
  """(1/2) log[(1 + s^2 e^max) / (1 + s^2 e^min)] nats a dimension for Gaussian data."""
  x0 = fix_signs(monkeypatch)
  found = measure(Spectrum(200), best_model(LINEAR, "eps"), keys(4), x0)
  log_snr, mse = np.float64(found.log_snr), np.float64(found.eps_mse).mean(axis=0)
  ends = np.log1p(S2 * np.exp(log_snr[[0, -1]]))
  np.testing.assert_allclose(np.trapezoid(mse, log_snr) / 2, (ends[1] - ends[0]) / 2, rtol=1e-4)


def test_its_own_draws_agree_within_their_standard_errors():
  x0 = np.float32(0.5) * normal(3, 400, 4, 4, 1)
  found = measure(Spectrum(), best_model(LINEAR, "eps"), keys(400), x0)
  mse = np.float64(found.eps_mse)
  scores = (mse.mean(axis=0) - exact(found.log_snr)) / (mse.std(axis=0, ddof=1) / math.sqrt(400))
  assert np.abs(scores).max() < 4.5


@pytest.mark.parametrize("process", [LINEAR, COSINE], ids=["linear", "cosine"])
@pytest.mark.parametrize("num_points", [2, 24, 5000])
def test_points_are_steps_from_end_to_end(process, num_points):
  times, log_snr = Spectrum(num_points).points(process)
  steps = np.round(times * 1000)
  np.testing.assert_allclose(steps, times * 1000, atol=1e-9)
  assert steps[0] == 1000
  assert steps[-1] == 1
  assert (np.diff(steps) < 0).all()
  assert len(steps) <= min(num_points, 1000)
  np.testing.assert_allclose(log_snr, jax.jit(process.log_snr)(steps / 1000), rtol=1e-5)


@pytest.mark.parametrize("name", ["vp", "sub_vp", "cosine", "sigmoid", "ve", "edm", "flow"])
def test_points_of_continuous_time_are_evenly_spaced_and_finite(name):
  process = PROCESSES[name]()
  times, log_snr = Spectrum(12).points(process)
  assert len(times) == 12
  assert (np.diff(times) < 0).all()
  assert np.abs(log_snr).max() <= 20 + 1e-6
  np.testing.assert_allclose(np.diff(log_snr), log_snr[1] - log_snr[0], rtol=1e-6)


def test_points_are_evenly_spaced_where_the_grid_allows():
  _, log_snr = Spectrum(24).points(LINEAR)
  assert len(log_snr) == 24
  gap = np.diff(log_snr)
  np.testing.assert_allclose(gap, (log_snr[-1] - log_snr[0]) / 23, rtol=0.35)
  # Each is the nearest step: no further than half of the widest gap between steps.
  widest = np.abs(
    np.diff(np.log(LINEAR.alphas_cumprod[1:] / (1 - LINEAR.alphas_cumprod[1:])))
  ).max()
  assert np.abs(log_snr - np.linspace(log_snr[0], log_snr[-1], 24)).max() <= widest / 2 + 1e-9


def test_the_same_keys_are_the_same_noise_for_other_images():
  """A network that divides x_t by alpha errs by sigma / alpha eps, whatever the image."""
  model = Denoiser(lambda xt, *_: 0 * xt, LINEAR, "eps")
  images = normal(1, 2, 30, 4, 4, 1)
  run = jax.jit(lambda k, x: Spectrum(5)(model, Examples(x), k).eps_mse)
  first, second = (np.asarray(run(keys(30), x)) for x in images)
  other = np.asarray(run(keys(30, seed=1), images[0]))
  np.testing.assert_allclose(first, second, rtol=1e-3)
  assert (np.abs(first / other - 1) > 1e-2).mean() > 0.8


def test_each_point_draws_its_own_noise():
  """Predicting no noise errs by the mean of eps^2, uncorrelated over images between points."""
  model = Denoiser(lambda xt, *_: 0 * xt, LINEAR, "eps")
  found = measure(Spectrum(6), model, keys(500), np.zeros((500, 2, 2, 1), np.float32))
  correlation = np.corrcoef(found.eps_mse, rowvar=False)
  assert np.abs(correlation - np.eye(6)).max() < 5 / math.sqrt(500)


def test_an_example_depends_on_its_own_key_alone():
  model, x0 = best_model(LINEAR, "eps"), normal(1, 5, 2, 2, 1)
  whole = measure(Spectrum(5), model, keys(5), x0).eps_mse
  part = measure(Spectrum(5), model, keys(5)[3:], x0[3:]).eps_mse
  np.testing.assert_allclose(part, whole[3:], rtol=1e-5)


def test_labels_reach_the_network():
  model = Denoiser(lambda xt, t, given, k: 0 * xt + expand(given.label, xt), LINEAR, "x0")
  x0 = np.float32([0.0, 1.0, 2.0]).reshape(3, 1, 1, 1)
  found = measure(Spectrum(3), model, keys(3), x0, np.arange(3))
  np.testing.assert_allclose(found.eps_mse, 0, atol=1e-6)


def test_one_point_is_refused():
  with pytest.raises(ValueError, match="num_points=1 must be at least 2"):
    Spectrum(1)
