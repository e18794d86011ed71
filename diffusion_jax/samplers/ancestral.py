"""Ancestral sampling of DDPM, on all T steps or a respaced grid, and on any other process."""

import dataclasses
from typing import ClassVar, Literal

import numpy as np

from diffusion_jax.processes import Process, namespace
from diffusion_jax.samplers import linear
from diffusion_jax.samplers.grids import Final, Grid, Spacing, own_grid


@dataclasses.dataclass(frozen=True)
class Ancestral:
  """x_s ~ N(posterior mean given the x0 estimate, variance); no noise at the step to the data.

  With v = sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2, the noise added from the next grid point s
  to t: fixed_large: variance v; fixed_small: v sigma_s^2 / sigma_t^2, the posterior's own; learned:
  between the two in the logarithm, as the network says of each dimension, on a respaced grid too.
  Source: Ho et al. 2020 (arXiv 2006.11239), algorithm 2 and section 3.2; respacing after Nichol
  and Dhariwal 2021 (arXiv 2102.09672), section 4; in alpha and sigma: Kingma et al. 2021 (arXiv
  2107.00630), appendix A.

  Attributes:
    steps: number of steps, each one network evaluation per image (two under guidance).
    variance: variance of the noise that is added; auto: learned where the network gives variances,
      else fixed_large.
    spacing: placement of the steps in time, see `grids.make_grid`. auto is trailing on a process
      with steps, as for DDIM, whose eta 1 it is; the respacing of Improved DDPM is linspace.
    clip: clip each x0 estimate to [-1, 1].
    final: end of the path: the data (t = 0), or the process's min_time.
    rho: exponent of spacing=karras; larger puts more steps at little noise.
  """

  steps: int = 1000
  variance: Literal["auto", "fixed_large", "fixed_small", "learned"] = "auto"
  spacing: Spacing = "auto"
  clip: bool = True
  final: Final = "data"
  rho: float = 7.0

  auto_by_step: ClassVar[Spacing] = "trailing"
  order: ClassVar[int] = 1
  stochastic: ClassVar[bool] = True

  grid = own_grid

  @property
  def needs_variance(self) -> bool:
    """Whether its denoiser must answer (x0 estimate, variance logits)."""
    return self.variance == "learned"

  def fit(self, gives_variance: bool) -> "Ancestral":
    """What `auto` means for a network that gives variances, or none."""
    if self.variance != "auto":
      return self
    return dataclasses.replace(self, variance="learned" if gives_variance else "fixed_large")

  def coefficients(self, process: Process, grid: Grid | None = None) -> linear.LinearSteps:
    """The update's coefficients, float64; of learned variances the noise is the smallest."""
    grid = self.grid(process) if grid is None else grid
    (alpha, sigma), (then, sigma_then) = linear.ends(grid)
    xp, added = namespace(alpha), linear.added_variance(grid)
    small = added * sigma_then**2 / sigma**2
    large = xp.where(sigma_then > 0, added, 0.0)
    return linear.LinearSteps(
      t=grid.t[:-1],
      x0=then * added / sigma**2,
      xt=alpha / then * sigma_then**2 / sigma**2,
      noise=xp.sqrt(large if self.variance in ("auto", "fixed_large") else small),
    )

  def scheme(self, process: Process, grid: Grid | None = None) -> linear.Scheme:
    """The coefficients for the scan, on another grid if one is given."""
    grid = self.grid(process) if grid is None else grid
    scheme = self.coefficients(process, grid).scheme(self.stochastic, grid.t[-1])
    return scheme._replace(width=_width(grid)) if self.needs_variance else scheme

  def num_evaluations(self, process: Process) -> int:
    return self.steps

  def check(self, process: Process) -> None:
    """Raises ValueError for steps that the process does not have."""
    linear.check_finite(self.scheme(process), "ancestral")

  __call__ = linear.draw


def _width(grid: Grid) -> linear.Row:
  """log(largest / smallest variance) of each step: log(sigma_t^2 / sigma_s^2).

  0 for the step to the data, which adds no noise.
  """
  xp = namespace(grid.sigma)
  with np.errstate(divide="ignore"):
    width = 2.0 * (xp.log(grid.sigma[:-1]) - xp.log(grid.sigma[1:]))
  return xp.where(grid.sigma[1:] > 0, width, 0.0)
