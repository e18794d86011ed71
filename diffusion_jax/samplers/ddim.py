"""DDIM: deterministic at eta 0, as noisy as the ancestral sampler at eta 1."""

import dataclasses

import numpy as np

from diffusion_jax.processes import DiscreteVP
from diffusion_jax.samplers import linear
from diffusion_jax.samplers.grids import Spacing, visited_steps
from diffusion_jax.types import Keys, Samples


@dataclasses.dataclass(frozen=True)
class DDIM:
  """x_s = sqrt(a_s) x0_hat + sqrt(1 - a_s - std^2) eps_hat + std z, with a = alpha_bar.

  std = eta sqrt((1 - a_s) / (1 - a_t)) sqrt(1 - a_t / a_s), and eps_hat is what x_t and the
  (clipped) x0_hat leave. Source: Song et al. 2021 (arXiv 2010.02502), equations 12 and 16.

  Attributes:
    steps: S, network evaluations an image (twice that under guidance).
    eta: 0 deterministic, 1 ancestral with the small variance.
    spacing: which S of the T steps, see `grids.visited_steps`.
    clip: clip each x0 estimate to [-1, 1].
  """

  steps: int = 50
  eta: float = 0.0
  spacing: Spacing = "trailing"
  clip: bool = True

  def __post_init__(self):
    if not 0 <= self.eta <= 1:
      raise ValueError(f"eta={self.eta} must lie between 0 (deterministic) and 1")

  def coefficients(self, process: DiscreteVP) -> linear.LinearSteps:
    """The update's coefficients, float64."""
    steps = visited_steps(process.num_timesteps, self.steps, self.spacing)
    now = process.alphas_cumprod[steps]
    then = process.alphas_cumprod[np.append(steps[1:], 0)]
    std = self.eta * np.sqrt((1.0 - then) / (1.0 - now) * (1.0 - now / then))
    eps = np.sqrt(np.maximum(1.0 - then - std**2, 0.0) / (1.0 - now))
    return linear.LinearSteps(
      t=steps / process.num_timesteps, x0=np.sqrt(then) - eps * np.sqrt(now), xt=eps, noise=std
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
