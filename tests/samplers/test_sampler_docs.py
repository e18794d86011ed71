"""The plain loop of docs/samplers.md is the engine."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.core.broadcasting import expand
from diffusion_jax.processes import PROCESSES
from diffusion_jax.samplers import Euler, Heun, initial_states, keys_per_example


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


def test_churn_has_its_places_among_the_positional_arguments():
  churn = {"s_churn": 9.0, "s_min": 0.1, "s_max": 3.0, "s_noise": 1.01}
  assert Euler(7, *churn.values()) == Euler(steps=7, **churn)
  assert Heun(7, "flow", *churn.values()) == Heun(steps=7, coordinate="flow", **churn)
  assert (Euler().steps, Heun().steps) == (50, 18)
  for sampler in (Euler, Heun):
    with pytest.raises(ValueError, match="steps=0 must be at least 1"):
      sampler(0)
    with pytest.raises(ValueError, match="s_churn must be at least 0"):
      sampler(s_churn=-1.0)
