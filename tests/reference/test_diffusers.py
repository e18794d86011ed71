"""Schedules and samplers against the independent implementation in diffusers (PyTorch)."""

import jax.numpy as jnp
import numpy as np
import pytest
from one_step import coefficients

from diffusion_jax.processes import CosineVP, LinearVP
from diffusion_jax.samplers import DDIM, Ancestral

pytestmark = pytest.mark.reference
torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")


def scheduler(cls, process, **options):
  """One of diffusers' schedulers with its float32 tables replaced by float64 ones."""
  betas = 1 - process.alphas_cumprod[1:] / process.alphas_cumprod[:-1]
  theirs = cls(num_train_timesteps=len(betas), trained_betas=betas, **options)
  theirs.betas, theirs.alphas = torch.from_numpy(betas), torch.from_numpy(1 - betas)
  theirs.alphas_cumprod = torch.from_numpy(process.alphas_cumprod[1:])
  theirs.one = theirs.final_alpha_cumprod = torch.ones((), dtype=torch.float64)
  return theirs


PROCESSES = {"linear": LinearVP(), "cosine": CosineVP()}


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_every_ancestral_step_is_that_of_ddpm_scheduler(process, variance):
  theirs = scheduler(
    diffusers.DDPMScheduler, process, variance_type=variance, clip_sample=True,
    prediction_type="sample",
  )  # fmt: skip
  steps = coefficients(Ancestral(steps=1000, variance=variance), process)
  rng = np.random.default_rng(0)
  for row in range(0, 1000, 37):
    x, x0 = rng.normal(size=(2, 1, 3, 4, 4))
    n = round(steps.t[row] * 1000)
    noise = torch.randn(
      (1, 3, 4, 4), generator=torch.Generator().manual_seed(row), dtype=torch.float64
    )
    expected = theirs.step(
      torch.from_numpy(x0), n - 1, torch.from_numpy(x),
      generator=torch.Generator().manual_seed(row),
    ).prev_sample  # fmt: skip
    found = (
      steps.x0[row] * np.clip(x0, -1, 1) + steps.xt[row] * x + steps.noise[row] * noise.numpy()
    )
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_every_ddim_step_is_that_of_ddim_scheduler(process, spacing, eta):
  theirs = scheduler(
    diffusers.DDIMScheduler, process, clip_sample=True, prediction_type="sample",
    timestep_spacing=spacing, set_alpha_to_one=True,
  )  # fmt: skip
  theirs.set_timesteps(50)
  steps = coefficients(DDIM(steps=50, eta=eta, spacing=spacing), process)
  np.testing.assert_array_equal(np.round(steps.t * 1000) - 1, theirs.timesteps.numpy())
  rng = np.random.default_rng(0)
  for row, time in enumerate(theirs.timesteps):
    x, x0, noise = rng.normal(size=(3, 1, 3, 4, 4))
    expected = theirs.step(
      torch.from_numpy(x0), int(time), torch.from_numpy(x), eta=eta,
      use_clipped_model_output=True, variance_noise=torch.from_numpy(noise),
    ).prev_sample  # fmt: skip
    found = steps.x0[row] * np.clip(x0, -1, 1) + steps.xt[row] * x + steps.noise[row] * noise
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-9, atol=1e-9)


def test_the_noised_image_is_add_noise_of_diffusers():
  process = LinearVP()
  theirs = scheduler(diffusers.DDPMScheduler, process)
  x0, eps = np.random.default_rng(0).normal(size=(2, 5, 3, 4, 4)).astype(np.float32)
  n = np.array([1, 2, 300, 999, 1000])
  alpha, sigma = process.alpha_sigma(jnp.asarray(n / 1000, jnp.float32))
  found = alpha[:, None, None, None] * x0 + sigma[:, None, None, None] * eps
  args = (torch.from_numpy(a) for a in (x0.astype(np.float64), eps.astype(np.float64), n - 1))
  np.testing.assert_allclose(found, theirs.add_noise(*args).numpy(), rtol=1e-6, atol=1e-6)
