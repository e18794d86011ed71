"""Samplers as someone outside would write them: a loop of their own, and as little as possible."""

import dataclasses
import itertools

import jax.numpy as jnp
import numpy as np

from diffusion_jax.core.broadcasting import expand
from diffusion_jax.samplers import SamplerBase, initial_states, keys_per_example
from diffusion_jax.types import Samples


@dataclasses.dataclass(frozen=True)
class Midpoint(SamplerBase):
  """DPM-Solver-2: a step by the slope at its middle in the log-SNR (arXiv 2206.00927, algorithm 1).

  It is not linear in what it knows: its second evaluation is at a state that its first one gives.
  """

  steps: int = 20

  order = 2
  stochastic = False

  def num_evaluations(self, process):
    return 2 * self.steps + 1

  def sample(self, denoise, process, key, shape, keep_estimates=False):
    x = initial_states(process, keys_per_example(key, shape[0]), shape[1:])
    half = 0.5 * process.log_snr(np.asarray([1.0, process.min_time]))
    grid = np.linspace(half[0], half[1], self.steps + 1)

    def at(half_log_snr):
      t = process.time_of(np.asarray(2.0 * half_log_snr))
      alpha, sigma = process.alpha_sigma(t)
      return jnp.full(shape[0], t), float(alpha), float(sigma)

    def ddim(x, x0, start, end):
      (_, alpha, sigma), (_, alpha_end, sigma_end) = start, end
      return alpha_end * x0 + sigma_end * (x - alpha * x0) / sigma

    for low, high in itertools.pairwise(grid):
      start, middle, end = at(low), at(0.5 * (low + high)), at(high)
      between = ddim(x, denoise(x, start[0]), start, middle)
      x = ddim(x, denoise(between, middle[0]), start, end)
    return Samples(denoise(x, at(grid[-1])[0]), self.num_evaluations(process))


@dataclasses.dataclass(frozen=True)
class Restart(SamplerBase):
  """Estimate x0 at t = 1 again and again: without steps, and with a field of its own."""

  rounds: int = 3

  order = 1
  stochastic = True

  def num_evaluations(self, process):
    return self.rounds

  def sample(self, denoise, process, key, shape, keep_estimates=False):
    x = initial_states(process, keys_per_example(key, shape[0]), shape[1:])
    alpha, _ = process.alpha_sigma(np.ones(shape[0]))
    for _ in range(self.rounds):
      x0 = denoise(x, jnp.ones(shape[0]))
      x = expand(jnp.asarray(alpha, x.dtype), x) * x0
    return Samples(x0, self.rounds)
