"""One scan for every sampler whose step is linear in x_t, the x0 estimate and fresh noise."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffusion_jax import randomness
from diffusion_jax.types import Keys, Samples

Denoise = Callable[[Float[Array, "N H W C"], Float[Array, "N"]], Float[Array, "N H W C"]]


class LinearSteps(NamedTuple):
  """x_next = x0 * x0_hat + xt * x_t + noise * z, one row a step, float64 on the host.

  Attributes:
    t: time at which the denoiser is asked, from 1 downwards.
    x0, xt, noise: the three coefficients.
  """

  t: Float[np.ndarray, "S"]
  x0: Float[np.ndarray, "S"]
  xt: Float[np.ndarray, "S"]
  noise: Float[np.ndarray, "S"]


def run(
  steps: LinearSteps,
  denoise: Denoise,
  keys: Keys,
  shape: tuple[int, int, int],
  clip: bool,
  keep_estimates: bool = False,
) -> Samples:
  """Runs the steps from x_1 ~ N(0, I).

  Args:
    steps: coefficients of the sampler.
    denoise: (xt, t) -> x0 estimate.
    keys: one an image; its start and every later noise derive from it alone.
    shape: (H, W, C).
    clip: clip each x0 estimate to [-1, 1].
    keep_estimates: return the (clipped) x0 estimate of every step too: S times the memory.
  """

  def step(x, row):
    number, t, c_x0, c_xt, c_noise = row
    x0 = denoise(x, jnp.full(x.shape[0], t))
    x0 = jnp.clip(x0, -1.0, 1.0) if clip else x0
    z = randomness.normal(randomness.fold_in(keys, number), shape)
    return c_x0 * x0 + c_xt * x + c_noise * z, x0 if keep_estimates else None

  num = len(steps.t)
  rows = (jnp.arange(1, num + 1), *(jnp.asarray(c, jnp.float32) for c in steps))
  x, estimates = jax.lax.scan(step, randomness.normal(randomness.fold_in(keys, 0), shape), rows)
  return Samples(x, num, estimates)
