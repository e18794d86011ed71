"""Default steps on processes with T steps: how far samples end from a mixture whose law is known.

The noise of x_1 is the quantiles of N(0, 1), so that the Kolmogorov distance of a deterministic
sampler has no chance in it.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import ndtr, ndtri

from diffusion_jax.core.broadcasting import expand
from diffusion_jax.processes import CosineVP, LinearVP
from diffusion_jax.samplers import SAMPLERS, linear

WEIGHTS, MEANS, STDS = np.array([0.35, 0.65]), np.array([-0.6, 0.5]), np.array([0.08, 0.15])
NUM = 4000
QUANTILES = ndtri((np.arange(NUM) + 0.5) / NUM)
PROCESSES = {"linear_vp": LinearVP(), "cosine_vp": CosineVP()}


def mixture(process):
  """E[x0 | x_t] of the two Gaussians."""

  def denoise(xt, t):
    alpha, sigma = (expand(c, xt[..., None]) for c in process.alpha_sigma(t))
    variance = jnp.square(alpha * STDS) + jnp.square(sigma)
    residual = xt[..., None] - alpha * MEANS
    logits = jnp.log(WEIGHTS) - 0.5 * jnp.log(variance) - 0.5 * jnp.square(residual) / variance
    means = MEANS + alpha * jnp.square(STDS) / variance * residual
    return (jax.nn.softmax(logits) * means).sum(-1)

  return denoise


@functools.partial(jax.jit, static_argnums=0)
def solved(process, tableau, x):
  return linear.integrate(tableau, mixture(process), x).images


def distance(name, process, **fields):
  """Kolmogorov distance of the sampler's images to the mixture's law."""
  sampler = SAMPLERS[name](**fields)
  starts = np.float32(QUANTILES)[:, None, None, None]
  x = np.sort(np.float64(solved(process, sampler.tableau(process), starts)).ravel())
  law = (WEIGHTS * ndtr((x[:, None] - MEANS) / STDS)).sum(-1)
  rank = np.arange(NUM + 1) / NUM
  return max(np.abs(law - rank[:-1]).max(), np.abs(law - rank[1:]).max())


@pytest.mark.parametrize("place", PROCESSES)
@pytest.mark.parametrize(
  ("name", "steps", "bound"),
  [
    ("dpm_solver_pp_2m", 20, 0.02),
    ("dpm_solver_pp_3m", 20, 0.02),
    ("unipc", 20, 0.01),
    ("heun", 20, 0.02),
    ("euler", 20, 0.05),
  ],
)
def test_twenty_default_steps_of_the_solvers_end_at_the_data(name, steps, bound, place):
  assert distance(name, PROCESSES[place], steps=steps) < bound


def test_twenty_trailing_steps_of_the_same_solvers_end_far_from_it():
  for name in ("dpm_solver_pp_2m", "dpm_solver_pp_3m", "unipc", "heun", "euler"):
    assert distance(name, PROCESSES["linear_vp"], steps=20, spacing="trailing") > 0.06


def test_ddim_and_the_ancestral_sampler_keep_their_published_steps():
  process = PROCESSES["linear_vp"]
  for name in ("ddim", "ancestral"):
    asked = np.round(1000 * SAMPLERS[name](steps=50).grid(process).t)
    np.testing.assert_array_equal(asked, np.arange(1000, -1, -20))
  assert distance("ddim", process, steps=50, clip=False) < 0.04
