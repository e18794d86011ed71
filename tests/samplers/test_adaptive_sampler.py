"""The adaptive solver: its count of evaluations, its independence of the batch, its failures.

Its accuracy is measured in test_orders.py.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.core.broadcasting import expand
from diffusion_jax.processes import EDMProcess, Flow, LinearVP
from diffusion_jax.samplers import ProbabilityFlow
from diffusion_jax.samplers.grids import last_time

EDM, FLOW = EDMProcess(), Flow()


def gaussian(process, std):
  """E[x0 | x_t] for data N(0, std^2), std one number an image."""

  def denoise(xt, t):
    alpha, sigma = (expand(c, xt) for c in process.alpha_sigma(t))
    variance = expand(jnp.asarray(std) ** 2, xt)
    return alpha * variance / (alpha**2 * variance + sigma**2) * xt

  return denoise


def keys(num):
  return jax.jit(jax.vmap(jax.random.fold_in, (None, 0)))(jax.random.key(0), np.arange(num))


@pytest.mark.parametrize("process", [EDM, FLOW], ids=["edm", "flow"])
def test_the_solution_on_gaussian_data(process):
  """x_t keeps its place in units of its own standard deviation."""
  std = np.array([0.2, 0.5, 1.0, 2.0], np.float32)
  x = process.prior_std * np.asarray([1.0, -2.0, 0.5, 1.5], np.float32)[:, None, None, None]
  alpha, sigma = process.alpha_sigma(np.asarray([1.0, last_time(process)]))
  spread = np.sqrt((alpha[:, None] * std) ** 2 + sigma[:, None] ** 2)
  solver = ProbabilityFlow(rtol=1e-4, atol=1e-4, final="min_time")
  solve = jax.jit(lambda x, std: solver.solve(gaussian(process, std), process, x).images)
  found = np.asarray(solve(x, std))
  np.testing.assert_allclose(found[:, 0, 0, 0], x[:, 0, 0, 0] * spread[1] / spread[0], rtol=2e-3)


def test_the_reported_evaluations_are_those_that_were_made():
  calls = []

  def watch(xt, t):
    def note(x):
      calls.append(1)
      return np.asarray(x)

    xt = jax.pure_callback(note, jax.ShapeDtypeStruct(xt.shape, xt.dtype), xt)
    return gaussian(EDM, np.ones(1, np.float32))(xt, t)

  sampler = ProbabilityFlow(rtol=1e-3, atol=1e-3)
  out = jax.jit(lambda x: sampler.solve(watch, EDM, x))(np.full((1, 1, 1, 1), 37, np.float32))
  assert float(out.num_evaluations) == len(calls)
  assert len(calls) > 10


def test_an_image_and_its_label_do_not_depend_on_the_batch():
  """The denoiser holds one number an image, as it does labels; steps are each image's own."""
  std = np.linspace(0.2, 2.0, 5).astype(np.float32)
  sampler = ProbabilityFlow(rtol=1e-3, atol=1e-3)

  @functools.partial(jax.jit, static_argnums=2)
  def draw(keys, std, keep):
    return sampler.sample(gaussian(EDM, std), EDM, keys, (len(keys), 2, 2, 1), keep)

  whole = jax.tree.map(np.asarray, draw(keys(5), std, True))
  part = draw(keys(5)[3:], std[3:], False)
  np.testing.assert_allclose(whole.images[3:], part.images, rtol=1e-4, atol=1e-5)
  assert whole.estimates.shape[1:] == whole.images.shape
  np.testing.assert_array_equal(whole.estimates[-1], whole.images)


def test_an_image_that_needs_too_many_steps_is_nan():
  sampler = ProbabilityFlow(max_steps=2)
  draw = jax.jit(
    lambda keys: sampler.sample(gaussian(EDM, np.ones(2)), EDM, keys, (len(keys), 1, 1, 1)).images
  )
  assert np.isnan(np.asarray(draw(keys(2)))).all()


def test_a_discrete_process_and_meaningless_tolerances_are_refused():
  with pytest.raises(ValueError, match=r"needs a process in continuous time, not one of 1000"):
    ProbabilityFlow().check(LinearVP())
  ProbabilityFlow().check(EDM)
  with pytest.raises(ValueError, match="rtol=0"):
    ProbabilityFlow(rtol=0.0)
