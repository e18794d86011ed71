"""One output, read as any prediction under any process, is one path from noise to images."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_draws import normal

from diffusion_jax.core.broadcasting import expand
from diffusion_jax.processes import PREDICTIONS, PROCESSES, Denoiser, Process
from diffusion_jax.samplers import DDIM, DPMSolverPP2M, DPMSolverPP3M, Euler, Heun, UniPC, linear
from diffusion_jax.samplers.grids import points

LOG_SNR = np.linspace(-6.0, 6.0, 13)
PLACES = ("vp", "sub_vp", "cosine", "ve", "edm", "flow")
SAMPLERS = (DDIM, Euler, Heun, DPMSolverPP2M, DPMSolverPP3M, UniPC)


def denoiser(y, ratio):
  """D(x_t / alpha, sigma / alpha): any function that bends."""
  return jnp.tanh(y / (1.0 + ratio)) + 0.3 * jnp.sin(y) / (1.0 + jnp.square(ratio))


def seen_at_t(process: Process):
  """The process whose network sees t itself."""
  seen = type("Seen", (type(process),), {"network_time": lambda self, t: t})
  return seen(**{f.name: getattr(process, f.name) for f in dataclasses.fields(process)})


def network_of(process: Process, name: str):
  """The outputs of one and the same denoiser, as a network that predicts `name` gives them."""
  prediction = PREDICTIONS[name]
  process = seen_at_t(process)

  def network(shown, t, condition, dropout_key):
    alpha, sigma = (expand(c, shown) for c in process.alpha_sigma(t))
    xt = shown / prediction.input(jnp.ones_like(shown), alpha, sigma)
    x0 = denoiser(xt / alpha, sigma / alpha)
    return prediction.target(x0, (xt - alpha * x0) / sigma, alpha, sigma)

  return Denoiser(network, process, name)


START = np.float32(20.0) * normal(4, 2, 3, 3, 1)


def compiled(process: Process, name: str):
  """The estimate x0 of (x_t, t) as one program, which runs as such where JAX does not compile."""
  estimate = jax.jit(network_of(process, name).denoise)

  def denoise(xt, t):
    with jax.disable_jit(False):
      return estimate(xt, t)

  return denoise


@functools.cache
def problem(place: str, name: str):
  process = PROCESSES[place]()
  return process, compiled(process, name)


def path(process: Process, denoise, sampler) -> np.ndarray:
  """The estimate at every level, and the last state over alpha."""
  grid = points(process, process.time_of(LOG_SNR), to_data=False)
  sampler = dataclasses.replace(sampler, steps=grid.num_steps)
  start = jnp.asarray(np.float32(grid.alpha[0]) * START)
  with jax.disable_jit():  # compiling a scan for each takes longer
    found = linear.integrate(sampler.tableau(process, grid), denoise, start, keep_estimates=True)
  return np.concatenate([found.estimates, np.asarray(found.images)[None] / grid.alpha[-1]])


@pytest.mark.parametrize("cls", SAMPLERS)
def test_every_prediction_under_every_process_takes_the_same_path(cls):
  sampler = cls(clip=False)
  paths = {(p, n): path(*problem(p, n), sampler) for p in PLACES for n in PREDICTIONS}
  first = paths["edm", "x0"]
  assert np.abs(np.diff(first, axis=0)).max() > 0.1  # it is a path
  for place, found in paths.items():
    # float32 rounds x_t, and x0 = (x_t - sigma eps) / alpha amplifies it by sigma / alpha <= 20
    np.testing.assert_allclose(found, first, atol=1e-3, rtol=1e-4, err_msg=str(place))


def test_another_denoiser_takes_another_path(monkeypatch):
  process, denoise = problem("vp", "eps")
  before = path(process, denoise, DDIM(clip=False))
  monkeypatch.setitem(globals(), "denoiser", lambda y, ratio: 0.9 * jnp.tanh(y))
  after = path(process, compiled(process, "eps"), DDIM(clip=False))
  assert np.abs(after - before).max() > 0.1
