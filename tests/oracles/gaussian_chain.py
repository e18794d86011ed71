"""What the tests of the variational bound share: the best predictor of Gaussian data, and exact
expectations over data and noise."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.core import rng
from diffusion_jax.core.broadcasting import expand
from diffusion_jax.likelihood import VariationalBound
from diffusion_jax.processes import CosineVP, Denoiser, DiscreteVP, LinearVP
from diffusion_jax.types import Examples

LINEAR, COSINE = LinearVP(), CosineVP()
LOG_2 = math.log(2)


def linear_model(process: DiscreteVP, s2, prediction="eps", logits=None):
  """The best predictor for data N(0, s2): E[x0 | x_t] and what eps and v follow from it.

  Its variance logits, if it has some, are given for each step [T].
  """

  def output(xt, time, condition, key):
    alpha, sigma = (expand(c, xt) for c in process.alpha_sigma((time + 1) / process.num_timesteps))
    variance = alpha**2 * s2 + sigma**2
    x0, eps = alpha * s2 / variance * xt, sigma / variance * xt
    found = {"x0": x0, "eps": eps, "v": alpha * eps - sigma * x0}[prediction]
    if logits is None:
      return found
    own = expand(logits[jnp.round(time).astype(jnp.int32)], xt)
    return jnp.concatenate([found, own + 0 * xt], axis=-1)

  return Denoiser(output, process, prediction, learned_variance=logits is not None)


@functools.cache
def keys(num, seed=0):
  return rng.example_keys(jax.random.key(seed), np.arange(num, dtype=np.uint32))


@functools.cache
def program(bound, process, num_levels=None, prediction="eps"):
  """The compiled bound of the best predictor: (keys, images, s2, noise or None) -> estimate."""

  def run(keys, x0, s2, eps):
    with pytest.MonkeyPatch.context() as patch:
      if eps is not None:
        fix_noise(patch, eps)
      model = linear_model(process, s2, prediction)
      return bound.estimate(model, Examples(x0, num_levels=num_levels), keys)

  return jax.jit(run)


def measure(bound, process, x0, num_levels=None, s2=0.25, prediction="eps", eps=None):
  """The estimate in float64.

  Args:
    bound, process, prediction, num_levels: of a compiled program.
    x0, s2: the images, and the variance of the data for which the predictor is the best.
    eps: one number an image, which all its noise is; None: it is drawn.
  """
  eps = None if eps is None else np.float32(eps)
  run = program(bound, process, num_levels, prediction)
  return jax.tree.map(np.float64, run(keys(len(x0)), np.float32(x0), np.float32(s2), eps))


def fix_noise(patch, eps):
  """Every draw of image i becomes the number eps[i], in all its pixels and at every step."""
  values = eps[:, None, None, None]
  patch.setattr(rng, "normal", lambda k, shape: jnp.broadcast_to(values, (len(k), *shape)))


def expectation(bound, process, s, prediction="eps"):
  """Means over x0 ~ N(0, s^2) and the noise, in nats, by the points +-s and +-1."""
  x0 = s * np.asarray([1, 1, -1, -1]).reshape(4, 1, 1, 1)
  estimate = measure(bound, process, x0, None, s**2, prediction, [1, -1, 1, -1])
  return jax.tree.map(lambda v: v.mean(axis=0) * LOG_2, estimate)


class Optimal(VariationalBound):
  """The best variance for N(0, s2): the posterior's plus what the x0 estimate leaves open."""

  s2 = 0.25

  def variances(self, process):
    now, before = process.alphas_cumprod[1:], process.alphas_cumprod[:-1]
    beta = 1 - now / before
    mmse = self.s2 * (1 - now) / (now * self.s2 + 1 - now)
    return beta * (1 - before) / (1 - now) + (beta * np.sqrt(before) / (1 - now)) ** 2 * mmse
