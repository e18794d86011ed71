"""Schedules against published constants and their own identities."""

import jax
import numpy as np
import pytest

from diffusion_jax.processes import CosineVP, LinearVP

STABLE_DIFFUSION = LinearVP(1000, 0.00085, 0.012, "scaled_linear")
PROCESSES = [LinearVP(), CosineVP(), LinearVP(num_timesteps=7), STABLE_DIFFUSION]


def test_linear_schedule_has_ddpms_constants():
  """alpha_bar_T and the posterior variance at t = 2 of Ho et al. 2020, from 50-digit arithmetic."""
  ab = LinearVP().alphas_cumprod
  assert ab[1000] == pytest.approx(4.0358297654e-05, rel=1e-9)
  beta = 1 - ab[2] / ab[1]
  assert beta * (1 - ab[1]) / (1 - ab[2]) == pytest.approx(5.4531876613e-05, rel=1e-9)


def test_scaled_linear_betas_have_evenly_spaced_roots():
  """Their mean is that of squares, a b + (b - a)^2 (2 T - 1) / (6 (T - 1)), a and b the roots.

  The end, x_T = 0.068265 x + 0.997667 noise, is from Lin et al. 2023 (arXiv 2305.08891), section 3.
  """
  betas, (first, last) = STABLE_DIFFUSION.betas(), np.sqrt([0.00085, 0.012])
  np.testing.assert_allclose(np.diff(np.sqrt(betas)), (last - first) / 999, rtol=1e-9)
  mean = first * last + (last - first) ** 2 * 1999 / (6 * 999)
  assert betas.mean() == pytest.approx(mean, rel=1e-12)
  ends = STABLE_DIFFUSION.alpha_sigma(np.float64(1.0))
  np.testing.assert_allclose(ends, [0.068265, 0.997667], atol=5e-7)
  assert LinearVP(1, 0.1, 0.9, "scaled_linear").betas() == [0.9]


def test_cosine_schedule_follows_its_formula_until_the_cap():
  ab = CosineVP().alphas_cumprod
  t = np.arange(1001) / 1000
  f = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
  np.testing.assert_allclose(ab[:990], f[:990] / f[0], rtol=1e-9)
  assert 1 - ab[1000] / ab[999] == pytest.approx(0.999)


@pytest.mark.parametrize(("variance", "bits"), [("small", 1.811714), ("large", 1.232298)])
def test_bound_of_gaussian_data_under_the_cosine_schedule(variance, bits):
  """Total bits/dim of the optimal linear predictor on N(0, 0.25): closed form, T = 1000."""
  assert gaussian_bound(CosineVP().alphas_cumprod, 0.25, variance) == pytest.approx(bits, abs=1e-6)


@pytest.mark.parametrize(
  ("std", "variance", "bits"),
  [
    (0.25, "small", 0.845273),
    (0.5, "large", 1.212529),
    (1, "small", 2.881831),
    (2, "large", 3.212410),
  ],
)
def test_bound_of_gaussian_data_under_the_linear_schedule(std, variance, bits):
  ab = LinearVP().alphas_cumprod
  assert gaussian_bound(ab, std**2, variance) == pytest.approx(bits, abs=1e-6)


def gaussian_bound(alphas_cumprod, s2, variance):
  """Prior + sum of KLs + decoder in bits, for data N(0, s2) and the exact posterior mean."""
  ab, prev = alphas_cumprod[1:], alphas_cumprod[:-1]
  beta = 1 - ab / prev
  mmse = s2 * (1 - ab) / (ab * s2 + 1 - ab)
  weight = beta * np.sqrt(prev) / (1 - ab)
  post = beta * (1 - prev) / (1 - ab)
  model = beta.copy() if variance == "large" else post.copy()
  model[0] = post[1]
  kl = 0.5 * (np.log(model / np.maximum(post, 1e-300)) + (post + weight**2 * mmse) / model - 1)
  prior = 0.5 * (ab[-1] * s2 - ab[-1] - np.log(1 - ab[-1]))
  decoder = 0.5 * (np.log(2 * np.pi * model[0]) + mmse[0] / model[0])
  return (prior + kl[1:].sum() + decoder) / np.log(2)


@pytest.mark.parametrize("process", PROCESSES)
def test_variance_is_preserved_and_noise_only_grows(process):
  t = np.float32(np.arange(process.num_timesteps + 1) / process.num_timesteps)
  alpha, sigma = map(np.asarray, jax.jit(process.alpha_sigma)(t))
  np.testing.assert_allclose(alpha**2 + sigma**2, 1.0, rtol=1e-6)
  assert (np.diff(sigma) > 0).all()
  assert alpha[0] == 1
  assert sigma[0] == 0


@pytest.mark.parametrize("process", PROCESSES)
def test_log_snr_is_that_of_alpha_and_sigma(process):
  t = np.float32(np.arange(1, process.num_timesteps + 1) / process.num_timesteps)
  read = jax.jit(lambda t: (*process.alpha_sigma(t), process.log_snr(t)))
  alpha, sigma, log_snr = (np.float64(c) for c in read(t))
  np.testing.assert_allclose(log_snr, np.log(alpha**2 / sigma**2), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("process", PROCESSES)
def test_quantiles_visit_every_step_equally_often(process):
  num = process.num_timesteps
  u = np.float32((np.arange(3 * num) + 0.5) / (3 * num))
  read = jax.jit(lambda u: (process.time_at(u), process.network_time(process.time_at(u))))
  _, steps = map(np.asarray, read(u))
  assert (np.bincount(steps.astype(int), minlength=num) == 3).all()
  ends, _ = map(np.asarray, read(np.ones_like(u)))
  assert (ends == 1.0).all()


@pytest.mark.parametrize(
  ("cls", "fields"),
  [
    (LinearVP, {"num_timesteps": 0}),
    (LinearVP, {"beta_start": 0.5, "beta_end": 0.1}),
    (CosineVP, {"offset": -1.0}),
    (CosineVP, {"max_beta": 1.0}),
  ],
)
def test_impossible_schedules_are_refused(cls, fields):
  with pytest.raises(ValueError, match=next(iter(fields))):
    cls(**fields)
