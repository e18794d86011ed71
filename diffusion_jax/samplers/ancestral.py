"""Ancestral sampling of DDPM, on all T steps or a respaced grid, and on any other process."""

import dataclasses
from typing import ClassVar, Literal

import numpy as np

from diffusion_jax.processes import Process, namespace
from diffusion_jax.samplers.grids import Grid, Spacing
from diffusion_jax.samplers.linear import (
  LinearSampler,
  PerStep,
  StepWeights,
  Tableau,
  added_variance,
  step_endpoints,
)


@dataclasses.dataclass(frozen=True)
class Ancestral(LinearSampler):
  """x_s ~ N(posterior mean given the x0 estimate, variance); no noise in a step to the data.

  With v = sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2, the variance
  added from the next grid point s to t: fixed_large is v; fixed_small is the posterior's
  v sigma_s^2 / sigma_t^2; learned interpolates between their logarithms by the network's output,
  per dimension, also on a respaced grid.
  Source: Ho et al. 2020 (arXiv 2006.11239), algorithm 2 and section 3.2; respacing after Nichol
  and Dhariwal 2021 (arXiv 2102.09672), section 4; in alpha and sigma: Kingma et al. 2021 (arXiv
  2107.00630), appendix A.

  Attributes:
    variance: variance of the added noise; auto: learned if the network gives variances, else
      fixed_large.
    spacing: placement of the steps in time, see `grids.make_grid`. auto is trailing on a process
      with steps, as for DDIM; Improved DDPM's respacing is linspace.
  """

  steps: int = 1000
  variance: Literal["auto", "fixed_large", "fixed_small", "learned"] = "auto"
  clip: bool = dataclasses.field(default=True, kw_only=True)

  auto_by_step: ClassVar[Spacing] = "trailing"
  order = 1
  stochastic = True

  @property
  def needs_variance(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
    """True if its denoiser must return (x0 estimate, variance logits)."""
    return self.variance == "learned"

  def fit(self, gives_variance: bool) -> "Ancestral":
    """Return the sampler with `auto` resolved for a network with or without variances."""
    if self.variance != "auto":
      return self
    return dataclasses.replace(self, variance="learned" if gives_variance else "fixed_large")

  def on_grid(self, process: Process, grid: Grid) -> Tableau:
    """Return the coefficients on a grid; with learned variances the noise is the smallest."""
    (alpha, sigma), (then, sigma_then) = step_endpoints(grid)
    xp, added = namespace(alpha), added_variance(grid)
    small = added * sigma_then**2 / sigma**2
    large = xp.where(sigma_then > 0, added, 0.0)
    noise = xp.sqrt(large if self.variance in ("auto", "fixed_large") else small)
    x0, xt = then * added / sigma**2, alpha / then * sigma_then**2 / sigma**2
    width = _width(grid) if self.needs_variance else None
    state = StepWeights(x0[:, None], xt, None, noise)
    return Tableau(grid.t[:-1], state, end=grid.t[-1], width=width)


def _width(grid: Grid) -> PerStep:
  """Return log(largest / smallest variance) per step, log(sigma_t^2 / sigma_s^2).

  It is 0 for the step to the data, which adds no noise.
  """
  xp = namespace(grid.sigma)
  with np.errstate(divide="ignore"):
    width = 2.0 * (xp.log(grid.sigma[:-1]) - xp.log(grid.sigma[1:]))
  return xp.where(grid.sigma[1:] > 0, width, 0.0)
