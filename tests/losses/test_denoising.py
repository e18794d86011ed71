"""The denoising loss against the closed form of Gaussian data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_draws import normal

from diffusion_jax.core import rng
from diffusion_jax.core.broadcasting import expand
from diffusion_jax.losses import Simple
from diffusion_jax.processes import Denoiser, LinearVP
from diffusion_jax.types import Condition, Examples

PROCESS = LinearVP(num_timesteps=50, beta_start=0.001, beta_end=0.2)
S2 = 0.25
NUM = 4000


def keys(num=NUM):
  return rng.example_keys(jax.random.key(0), jnp.arange(num))


def posterior_mean(xt, t):
  alpha, sigma = (expand(c, xt) for c in PROCESS.alpha_sigma(t))
  return alpha * S2 / (alpha**2 * S2 + sigma**2) * xt


def exact_output(name):
  """The minimiser of the loss: E[target | xt]."""

  def output(xt, time, condition, key):
    t = (time + 1) / 50
    alpha, sigma = (expand(c, xt) for c in PROCESS.alpha_sigma(t))
    x0 = posterior_mean(xt, t)
    eps = (xt - alpha * x0) / sigma
    return {"eps": eps, "x0": x0, "v": alpha * eps - sigma * x0}[name]

  return output


def minimum(name):
  """Mean over t of Var(target | xt), float64."""
  ab = PROCESS.alphas_cumprod[1:]
  mmse = S2 * (1 - ab) / (ab * S2 + 1 - ab)
  return np.mean({"x0": mmse, "eps": ab / (1 - ab) * mmse, "v": mmse / (1 - ab)}[name])


@pytest.mark.parametrize("name", ["eps", "x0", "v"])
def test_the_exact_predictor_reaches_the_closed_form_minimum(name):
  model = Denoiser(exact_output(name), PROCESS, name)
  run = jax.jit(lambda x0: Simple()(model, Examples(x0), keys()).values)
  losses = np.float64(run(np.float32(0.5) * normal(5, NUM, 4, 4, 1)))
  error = losses.std() / np.sqrt(NUM)
  assert abs(losses.mean() - minimum(name)) < 4 * error
  assert error < 0.03 * minimum(name)


@jax.jit
def times_and_noise(x0):
  noised = Simple().noised(Denoiser(lambda x, *_: x, PROCESS), x0, keys())
  return noised.t, noised.eps


def test_noise_is_standard_and_times_cover_the_grid():
  t, eps = map(np.asarray, times_and_noise(jnp.zeros((NUM, 8, 8, 1))))
  steps = np.round(t * 50)
  counts = np.bincount(steps.astype(int), minlength=51)
  assert counts[0] == 0
  # 80 a step with a standard deviation of about 9.
  assert np.abs(counts[1:] - NUM / 50).max() < 5 * np.sqrt(NUM / 50)
  assert abs(np.var(eps) - 1) < 5 * np.sqrt(2 / eps.size)


def test_noise_is_independent_of_time():
  t, eps = map(np.asarray, times_and_noise(jnp.zeros((NUM, 4, 4, 1))))
  correlation = np.corrcoef(t, eps.mean(axis=(1, 2, 3)))[0, 1]
  assert abs(correlation) < 5 / np.sqrt(NUM)


def test_the_condition_reaches_the_network_as_it_is():
  seen = []
  model = Denoiser(lambda x, t, condition, k: seen.append(condition) or x, PROCESS)

  @jax.jit
  def run(condition):
    Simple()(model, Examples(jnp.zeros((3, 2, 2, 1)), condition), keys(3))
    return seen[0]

  wanted = Condition(np.asarray([2, 0, 1]), fields={"text": np.ones((3, 4, 5), np.float32)})
  found = run(wanted)
  assert found.label.tolist() == [2, 0, 1]
  np.testing.assert_array_equal(found.fields["text"], wanted.fields["text"])
