"""eps, x0 and v are three names of one estimate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.processes import PREDICTIONS, LinearVP, expand, precondition

PROCESS = LinearVP().create()


@pytest.fixture
def drawn():
  x0, eps = jax.random.normal(jax.random.key(0), (2, 5, 4, 4, 1))
  t = jnp.asarray([0.001, 0.1, 0.5, 0.9, 1.0])
  alpha, sigma = PROCESS.alpha_sigma(t)
  return x0, eps, t, expand(alpha) * x0 + expand(sigma) * eps


@pytest.mark.parametrize("name", PREDICTIONS)
def test_a_perfect_output_denoises_to_x0(name, drawn):
  x0, eps, t, xt = drawn
  target = precondition(lambda *_: xt, PROCESS, name).target(x0, eps, t)
  network = precondition(lambda *_: target, PROCESS, name)
  # (xt - sigma eps) / alpha amplifies float32 rounding of xt by 1 / alpha = 157 at t = 1.
  np.testing.assert_allclose(network.denoise({}, xt, t, None), x0, atol=3e-5)


def test_v_is_the_rotation_of_x0_and_eps(drawn):
  x0, eps, t, _ = drawn
  alpha, sigma = map(expand, PROCESS.alpha_sigma(t))
  v = precondition(lambda *_: x0, PROCESS, "v").target(x0, eps, t)
  np.testing.assert_allclose(v, alpha * eps - sigma * x0, atol=1e-6)
  np.testing.assert_allclose((v + sigma * x0) / alpha, eps, atol=3e-4)


def test_the_network_is_asked_at_its_own_time(drawn):
  x0, _, t, _ = drawn
  asked = []
  network = precondition(lambda p, x, time, *_: asked.append(time) or x, PROCESS, "eps")
  network.output({}, x0, t, None)
  assert asked[0].tolist() == [0.0, 99.0, 499.0, 899.0, 999.0]
