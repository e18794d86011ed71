"""Encoding, interpolation and inpainting on Gaussian data, whose answers are known."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_draws import normal

from diffusion_jax.core.broadcasting import expand
from diffusion_jax.processes import ContinuousLinearVP, EDMProcess, Flow, LinearVP
from diffusion_jax.samplers import (
  DDIM,
  Ancestral,
  DPMSolverPP2M,
  DPMSolverPP3M,
  Euler,
  Heun,
  UniPC,
)
from diffusion_jax.samplers.editing import decode, encode, inpaint, interpolate

PROCESSES = {
  "discrete": LinearVP(), "vp": ContinuousLinearVP(),
  "edm": EDMProcess(), "flow": Flow(),
}  # fmt: skip
STD = 0.5


def gaussian(process):
  def denoise(xt, t):
    alpha, sigma = (expand(c, xt) for c in process.alpha_sigma(t))
    return alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * xt

  return denoise


# Relative errors of 50 and of 200 steps.
BOUNDS = {
  DDIM: (0.4, 0.12),
  Heun: (0.12, 0.01),
  DPMSolverPP2M: (0.12, 0.01),
  DPMSolverPP3M: (0.12, 0.005),
  UniPC: (0.12, 0.005),
}


@pytest.mark.parametrize(("cls", "bounds"), BOUNDS.items())
@pytest.mark.parametrize("name", PROCESSES)
def test_decoding_the_code_gives_the_image_to_the_solvers_accuracy(name, cls, bounds):
  process, denoise = PROCESSES[name], gaussian(PROCESSES[name])
  x0 = np.float32(STD) * normal(0, 3, 4, 4, 1)
  errors = []
  for steps in (50, 200):
    sampler = dataclasses.replace(cls(), steps=steps, clip=False)
    there_and_back = jax.jit(
      lambda x0, s=sampler: decode(denoise, process, encode(denoise, process, x0, s), s)
    )
    errors.append(np.abs(there_and_back(x0) - x0).max() / np.abs(x0).max())
  assert errors[0] < bounds[0]
  assert errors[1] < bounds[1]


@pytest.mark.parametrize("name", PROCESSES)
def test_a_code_is_the_image_in_units_of_the_spread_at_one(name):
  """The exact map of Gaussian data: x_1 = x_0 sqrt(alpha^2 s^2 + sigma^2) / s at t = 1."""
  process = PROCESSES[name]
  alpha, sigma = process.alpha_sigma(np.asarray([1.0]))
  exact = np.sqrt((alpha[0] * STD) ** 2 + sigma[0] ** 2) / STD
  x0 = np.full((1, 1, 1, 1), 0.3, np.float32)
  code = jax.jit(lambda x0: encode(gaussian(process), process, x0, Heun(steps=200)))(x0)
  np.testing.assert_allclose(code / x0, exact, rtol=0.02)


def test_a_sampler_that_draws_noise_cannot_encode():
  process = PROCESSES["vp"]
  for use in (encode, decode):
    with pytest.raises(ValueError, match=r"draws noise.*name=ddim"):
      use(gaussian(process), process, jnp.ones((1, 1, 1, 1)), Ancestral(steps=5))


def test_interpolation_keeps_the_norm_and_the_angle():
  a, b = normal(0, 2, 3, 4, 4, 2)
  b = b / np.linalg.norm(b.reshape(3, -1), axis=1)[:, None, None, None]
  b = b * np.linalg.norm(a.reshape(3, -1), axis=1)[:, None, None, None]
  interpolated = jax.jit(lambda a, b: interpolate(a, b, np.linspace(0.0, 1.0, 5)))
  path = np.asarray(interpolated(a, b)).reshape(5, 3, -1)
  np.testing.assert_allclose(path[0], a.reshape(3, -1), atol=1e-5)
  np.testing.assert_allclose(path[-1], b.reshape(3, -1), atol=1e-5)
  norms = np.linalg.norm(path, axis=-1)
  np.testing.assert_allclose(norms, np.broadcast_to(norms[0], norms.shape), rtol=1e-5)
  between = (path[1:] * path[:-1]).sum(-1) / (norms[1:] * norms[:-1])
  np.testing.assert_allclose(between, np.broadcast_to(between[0], between.shape), rtol=1e-4)


def test_interpolation_of_parallel_noise_is_a_line():
  a = np.ones((1, 2, 2, 1), np.float32)
  path = jax.jit(lambda a, b: interpolate(a, b, np.array([0.0, 0.25, 1.0])))(a, 3 * a)
  np.testing.assert_allclose(np.asarray(path)[:, 0, 0, 0, 0], [1.0, 1.5, 3.0], rtol=1e-6)


# ---- Inpainting: pairs of pixels with correlation RHO, the left one known -----------------------

RHO = 0.8
COVARIANCE = STD**2 * np.array([[1.0, RHO], [RHO, 1.0]])


def paired(process):
  """E[x0 | x_t] for images of one row and two pixels."""

  def denoise(xt, t):
    alpha, sigma = process.alpha_sigma(t)
    noisy = alpha[:, None, None] ** 2 * COVARIANCE + sigma[:, None, None] ** 2 * np.eye(2)
    gain = alpha[:, None, None] * jnp.matmul(COVARIANCE, jnp.linalg.inv(noisy))
    return jnp.einsum("nij,nhjc->nhic", gain, xt)

  return denoise


def mean_of_the_unknown(process, tableau, known):
  """By the recursion on means in float64: the known pixel's mean is alpha_t times its value."""
  unknown = 0.0
  alpha, sigma = process.alpha_sigma(tableau.t)
  for row in range(tableau.num_rows):
    noisy = alpha[row] ** 2 * COVARIANCE + sigma[row] ** 2 * np.eye(2)
    state = np.array([alpha[row] * known, unknown])
    x0 = alpha[row] * COVARIANCE @ np.linalg.inv(noisy) @ state
    unknown = (tableau.state.x0[row, 0] * x0 + tableau.state.xt[row] * state)[1]
  return unknown


@functools.cache
def keys(num):
  return jax.jit(jax.vmap(jax.random.fold_in, (None, 0)))(jax.random.key(0), np.arange(num))


@pytest.mark.parametrize("name", ["discrete", "edm", "flow"])
def test_inpainting_keeps_the_known_and_follows_it_with_the_unknown(name):
  process, sampler = PROCESSES[name], Ancestral(steps=60, clip=False)
  is_known = np.arange(2).reshape(1, 1, 2, 1) == np.zeros((3000, 1, 1, 1))
  known = np.where(is_known, np.float32(0.7), np.float32(0))
  run = jax.jit(lambda *args: inpaint(paired(process), process, *args, sampler).images)
  images = np.asarray(run(keys(3000), known, is_known))
  np.testing.assert_allclose(images[:, 0, 0, 0], 0.7, rtol=1e-6)
  right = images[:, 0, 1, 0]
  expected = mean_of_the_unknown(process, sampler.tableau(process), 0.7)
  assert abs(right.mean() - expected) < 5 * right.std() / np.sqrt(len(right))
  assert 0.5 * RHO * 0.7 < expected < 1.05 * RHO * 0.7  # it leans to the conditional mean


def test_inpainting_nothing_is_sampling_and_everything_is_the_image():
  process = PROCESSES["edm"]
  for sampler in (Euler(steps=5, s_churn=2.0), Heun(steps=5), UniPC(steps=5)):
    known = np.full((4, 1, 2, 1), 0.25, np.float32)
    none, everything = (np.full(known.shape, value) for value in (False, True))
    sample = jax.jit(
      lambda keys, s=sampler: s.sample(paired(process), process, keys, (4, 1, 2, 1)).images
    )
    run = jax.jit(lambda *args, s=sampler: inpaint(paired(process), process, *args, s).images)
    free = run(keys(4), known, none)
    np.testing.assert_allclose(free, sample(keys(4)), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(run(keys(4), known, everything), known)
