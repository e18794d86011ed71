"""DDIM: deterministic at eta 0, as noisy as the ancestral sampler at eta 1."""

import dataclasses
from typing import ClassVar

from diffusion_jax.processes import Process, namespace
from diffusion_jax.samplers import linear
from diffusion_jax.samplers.grids import Final, Grid, Spacing, own_grid


@dataclasses.dataclass(frozen=True)
class DDIM:
  """x_s = alpha_s x0_hat + sqrt(sigma_s^2 - std^2) eps_hat + std z.

  std = eta sigma_s / sigma_t sqrt(sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2), and eps_hat is what
  x_t and the (clipped) x0_hat leave. Source: Song et al. 2021 (arXiv 2010.02502), equations 12 and
  16, there for alpha^2 + sigma^2 = 1.

  Attributes:
    steps: number of steps, each one network evaluation per image (two under guidance).
    eta: amount of noise: 0 is deterministic, 1 ancestral sampling with the small variance.
    spacing: placement of the steps in time, see `grids.make_grid`. auto is trailing on a process
      with steps: floor(c i) with the last at T, appendix D.2. The authors' program begins lower, at
      T - T / S, where few steps leave the start short of noise: leading.
    clip: clip each x0 estimate to [-1, 1].
    final: end of the path: the data (t = 0), or the process's min_time.
    rho: exponent of spacing=karras; larger puts more steps at little noise.
  """

  steps: int = 50
  eta: float = 0.0
  spacing: Spacing = "auto"
  clip: bool = True
  final: Final = "data"
  rho: float = 7.0

  auto_by_step: ClassVar[Spacing] = "trailing"
  order: ClassVar[int] = 1

  def __post_init__(self):
    if not 0 <= self.eta <= 1:
      raise ValueError(f"eta={self.eta} must lie between 0 (deterministic) and 1")

  @property
  def stochastic(self) -> bool:
    """Whether it draws noise after the start."""
    return self.eta > 0

  grid = own_grid

  def coefficients(self, process: Process, grid: Grid | None = None) -> linear.LinearSteps:
    """The update's coefficients, float64."""
    grid = self.grid(process) if grid is None else grid
    (alpha, sigma), (then, sigma_then) = linear.ends(grid)
    xp = namespace(alpha)
    if self.eta == 0:
      std, eps = xp.zeros_like(sigma), sigma_then / sigma
    else:
      std = self.eta * sigma_then / sigma * xp.sqrt(linear.added_variance(grid))
      eps = xp.sqrt(xp.maximum(sigma_then**2 - std**2, 0.0)) / sigma
    return linear.LinearSteps(t=grid.t[:-1], x0=then - eps * alpha, xt=eps, noise=std)

  def scheme(self, process: Process, grid: Grid | None = None) -> linear.Scheme:
    """The coefficients for the scan, on another grid if one is given."""
    grid = self.grid(process) if grid is None else grid
    return self.coefficients(process, grid).scheme(self.stochastic, grid.t[-1])

  def num_evaluations(self, process: Process) -> int:
    return self.steps

  def check(self, process: Process) -> None:
    """Raises ValueError for steps that the process does not have."""
    linear.check_finite(self.scheme(process), "ddim")

  __call__ = linear.draw
