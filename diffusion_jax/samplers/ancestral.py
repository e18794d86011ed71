"""Ancestral sampling of DDPM, on all T steps or a respaced grid."""

import dataclasses
from typing import Literal

import numpy as np

from diffusion_jax.processes import DiscreteVP
from diffusion_jax.samplers import linear
from diffusion_jax.samplers.grids import Spacing, visited_steps
from diffusion_jax.types import Keys, Samples


@dataclasses.dataclass(frozen=True)
class Ancestral:
  """x_s ~ N(posterior mean given the x0 estimate, variance); no noise at the last step.

  With beta = 1 - alpha_bar_t / alpha_bar_s for the next grid point s:
    fixed_large: variance beta; fixed_small: beta (1 - alpha_bar_s) / (1 - alpha_bar_t).
  Source: Ho et al. 2020 (arXiv 2006.11239), algorithm 2 and section 3.2; respacing after Nichol
  and Dhariwal 2021 (arXiv 2102.09672), section 4.

  Attributes:
    steps: S, network evaluations an image (twice that under guidance).
    variance: which of the two.
    spacing: which S of the T steps, see `grids.visited_steps`.
    clip: clip each x0 estimate to [-1, 1].
  """

  steps: int = 1000
  variance: Literal["fixed_large", "fixed_small"] = "fixed_large"
  spacing: Spacing = "trailing"
  clip: bool = True

  def coefficients(self, process: DiscreteVP) -> linear.LinearSteps:
    """The update's coefficients, float64."""
    steps = visited_steps(process.num_timesteps, self.steps, self.spacing)
    now = process.alphas_cumprod[steps]
    then = process.alphas_cumprod[np.append(steps[1:], 0)]
    beta = 1.0 - now / then
    small = beta * (1.0 - then) / (1.0 - now)
    variance = np.where(then < 1.0, beta if self.variance == "fixed_large" else small, 0.0)
    return linear.LinearSteps(
      t=steps / process.num_timesteps,
      x0=np.sqrt(then) * beta / (1.0 - now),
      xt=np.sqrt(now / then) * (1.0 - then) / (1.0 - now),
      noise=np.sqrt(variance),
    )

  def __call__(
    self,
    denoise: linear.Denoise,
    process: DiscreteVP,
    keys: Keys,
    shape: tuple[int, int, int],
    keep_estimates: bool = False,
  ) -> Samples:
    """Draws one image a key; see `linear.run`."""
    steps = self.coefficients(process)
    return linear.run(steps, denoise, keys, shape, self.clip, keep_estimates)
