"""A sampler in a plug-in: DPM-Solver-2, with two network evaluations per step.

The engine of diffusion_jax runs samplers that are linear in x0 estimates and states. This sampler
has its own loop, one `lax.scan`.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.samplers import SamplerBase, initial_states, keys_per_example
from diffusion_jax.types import Samples


@dataclasses.dataclass(frozen=True)
class DPMSolver2(SamplerBase):
  """DPM-Solver-2: each step uses the slope at its middle in the log-SNR.

  Source: Lu et al. 2022 (arXiv 2206.00927), algorithm 1 with r = 1/2.

  Attributes:
    steps: number of steps S; 2 S + 1 network evaluations per image.
  """

  steps: int = 20

  order = 2
  stochastic = False

  def __post_init__(self):
    if self.steps < 1:
      raise ValueError(f"steps={self.steps} must be at least 1; try `sampler.steps=20`")

  def check(self, process):
    """Raise a ValueError for a process with steps or with an infinite log-SNR at an end."""
    ends = np.asarray([1.0, process.min_time])
    if process.num_timesteps is not None or not np.isfinite(process.log_snr(ends)).all():
      raise ValueError(
        "DPMSolver2 needs a process in continuous time with a finite log-SNR at both ends; try "
        "`process.name=cosine` or `process.name=vp`"
      )

  def num_evaluations(self, process):
    """Return 2 S + 1."""
    del process
    return 2 * self.steps + 1

  def sample(self, denoise, process, key, shape, keep_estimates=False):
    """Draw examples; see `samplers.base.Sampler.sample`."""
    del keep_estimates
    high, low = process.log_snr(np.asarray([1.0, process.min_time]))
    points = np.linspace(high, low, 2 * self.steps + 1)  # alternating ends and middles
    times = process.time_of(points)
    alpha, sigma = process.alpha_sigma(times)

    def estimate(x, at):
      return denoise(x, jnp.full(shape[0], at[0]))

    def ddim(x, x0, at, to):
      """Move x from one noise level to another along the line to x0."""
      return to[1] * x0 + to[2] * (x - at[1] * x0) / at[2]

    def step(x, row):
      start, middle, end = row
      between = ddim(x, estimate(x, start), start, middle)
      return ddim(x, estimate(between, middle), start, end), None

    x = initial_states(process, keys_per_example(key, shape[0]), shape[1:])
    rows = jnp.asarray(np.stack([times, alpha, sigma], 1), x.dtype)
    x, _ = jax.lax.scan(step, x, (rows[:-1:2], rows[1::2], rows[2::2]))
    return Samples(estimate(x, rows[-1]), self.num_evaluations(process))
