"""The plain loop of docs/samplers.md is the engine."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.core.broadcasting import expand
from diffusion_jax.processes import PROCESSES
from diffusion_jax.samplers import Heun, initial_states, keys_per_example


@pytest.mark.parametrize("place", ["edm", "vp"])
def test_the_plain_loop_of_heun_gives_the_numbers_of_the_engine(root, place):
  text = (root / "docs" / "samplers.md").read_text()
  (block,) = re.findall(r"```python loop\n(.*?)```", text, re.S)
  assert len(block.splitlines()) <= 20
  names = {"jnp": jnp}
  exec(block, names)
  process, sampler = PROCESSES[place](), Heun(steps=6)

  def denoise(xt, t):
    alpha, sigma = (expand(c, xt) for c in process.alpha_sigma(t))
    return jnp.tanh(xt / (alpha + sigma)) * alpha + 0.1 * jnp.sin(xt)

  def both(key):
    x = initial_states(process, keys_per_example(key, 5), (2,))
    engine = sampler.sample(denoise, process, key, (5, 2)).images
    return names["heun"](denoise, sampler.grid(process), x), engine

  loop, engine = jax.jit(both)(jax.random.key(0))
  np.testing.assert_allclose(loop, engine, rtol=2e-4, atol=2e-5)
