"""DDIM: deterministic for eta 0, as noisy as the ancestral sampler for eta 1."""

import dataclasses
from typing import ClassVar

from diffusion_jax.processes import Process, namespace
from diffusion_jax.samplers.grids import Grid, Spacing
from diffusion_jax.samplers.linear import (
  LinearSampler,
  StepWeights,
  Tableau,
  added_variance,
  step_endpoints,
)


@dataclasses.dataclass(frozen=True)
class DDIM(LinearSampler):
  """x_s = alpha_s x0_hat + sqrt(sigma_s^2 - std^2) eps_hat + std z.

  std = eta sigma_s / sigma_t sqrt(sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2), and eps_hat follows
  from x_t and the (clipped) x0_hat. Source: Song et al. 2021 (arXiv 2010.02502), equations 12 and
  16, there for alpha^2 + sigma^2 = 1.

  Attributes:
    eta: amount of noise: 0 is deterministic, 1 ancestral sampling with the small variance.
    spacing: placement of the steps in time, see `grids.make_grid`. auto is trailing on a process
      with steps: floor(c i) with the last at T, appendix D.2. The authors' code starts lower, at
      T - T / S (leading), where few steps leave the start short of noise.
  """

  steps: int = 50
  eta: float = 0.0
  clip: bool = dataclasses.field(default=True, kw_only=True)

  auto_by_step: ClassVar[Spacing] = "trailing"
  order = 1

  def __post_init__(self):
    super().__post_init__()
    if not 0 <= self.eta <= 1:
      raise ValueError(f"eta={self.eta} must be between 0 (deterministic) and 1")

  @property
  def stochastic(self) -> bool:
    """True for eta > 0."""
    return self.eta > 0

  def on_grid(self, process: Process, grid: Grid) -> Tableau:
    """Return the update's coefficients on a grid."""
    (alpha, sigma), (then, sigma_then) = step_endpoints(grid)
    xp = namespace(alpha)
    if self.eta == 0:
      std, eps = None, sigma_then / sigma
    else:
      std = self.eta * sigma_then / sigma * xp.sqrt(added_variance(grid))
      eps = xp.sqrt(xp.maximum(sigma_then**2 - std**2, 0.0)) / sigma
    state = StepWeights((then - eps * alpha)[:, None], eps, None, std)
    return Tableau(grid.t[:-1], state, end=grid.t[-1])
