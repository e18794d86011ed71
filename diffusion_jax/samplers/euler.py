"""Euler's method on the probability-flow ODE of EDM, with its churn."""

import dataclasses
import math
from typing import NamedTuple

from diffusion_jax.processes import Process, namespace
from diffusion_jax.samplers.grids import Grid, Values
from diffusion_jax.samplers.linear import LinearSampler, StepWeights, Tableau, step_endpoints


class Churned(NamedTuple):
  """The start of each step after churn has added noise, EDM's t_hat and x_hat.

  Attributes:
    t, alpha, sigma: time and coefficients of the churned points, [S].
    scale, noise: x_hat = scale * x + noise * z, [S].
    active: True if any point may have moved.
  """

  t: Values
  alpha: Values
  sigma: Values
  scale: Values
  noise: Values
  active: bool


def churned(
  process: Process, grid: Grid, churn: float, s_min: float, s_max: float | None, s_noise: float
) -> Churned:
  """Return the steps' start points, moved from s = sigma / alpha to s_hat = (1 + gamma) s.

  gamma = min(churn / S, sqrt(2) - 1) if s is in [s_min, s_max] (None: no upper end), and 0 else or
  at alpha = 0. s_hat is the noise level at a time of the process: on a process with steps the
  nearest, since EDM's code also rounds to such levels. At the start it may be beyond t = 1.
  Source: Karras et al. 2022 (arXiv 2206.00364), algorithm 2, lines 4 to 6.
  """
  (alpha, sigma), _ = step_endpoints(grid)
  xp = namespace(alpha)
  if churn == 0:
    return Churned(grid.t[:-1], alpha, sigma, xp.ones_like(alpha), xp.zeros_like(alpha), False)
  noisy = alpha > 0
  ratio = xp.where(noisy, sigma / xp.where(noisy, alpha, 1.0), 0.0)
  gamma = min(churn / grid.num_steps, math.sqrt(2.0) - 1.0)
  highest = math.inf if s_max is None else s_max
  inside = noisy & (ratio >= s_min) & (ratio <= highest)
  safe = xp.where(inside, ratio, 1.0)
  t = xp.where(inside, process.time_of(-2.0 * xp.log((1.0 + gamma) * safe)), grid.t[:-1])
  alpha_up, sigma_up = process.alpha_sigma(t)
  alpha_up, sigma_up = xp.where(inside, alpha_up, alpha), xp.where(inside, sigma_up, sigma)
  variance = xp.where(inside, (sigma_up / xp.where(inside, alpha_up, 1.0)) ** 2 - ratio**2, 0.0)
  noise = s_noise * alpha_up * xp.sqrt(xp.maximum(variance, 0.0))
  scale = xp.where(noisy, alpha_up / xp.where(noisy, alpha, 1.0), 1.0)
  return Churned(t, alpha_up, sigma_up, scale, noise, True)


def check_churn(s_churn: float, s_min: float, s_max: float | None, s_noise: float) -> None:
  """Raise a ValueError for invalid churn settings."""
  if s_churn < 0 or s_noise <= 0 or not 0 <= s_min <= (s_min if s_max is None else s_max):
    raise ValueError(
      f"s_churn={s_churn}, s_min={s_min}, s_max={s_max}, s_noise={s_noise}: s_churn must be at "
      "least 0, s_noise positive and s_min between 0 and s_max; s_churn=0 is off"
    )


def shift_left(values: Values, last: float) -> Values:
  """Shift the per-step values left by one, padding with `last`: the next step's churn."""
  return namespace(values).append(values[1:], last)


@dataclasses.dataclass(frozen=True)
class ChurnedSampler(LinearSampler):
  """A sampler of the probability-flow ODE whose steps begin at points that churn has moved.

  Attributes:
    s_churn: added noise, EDM's S_churn: each step's level increases by s_churn / steps of itself,
      at most 41%; 0 is deterministic.
    s_min: noise level sigma / alpha below which no noise is added.
    s_max: noise level sigma / alpha above which no noise is added; none: no upper end.
    s_noise: factor of the standard deviation of the added noise.
  """

  s_churn: float = 0.0
  s_min: float = 0.0
  s_max: float | None = None
  s_noise: float = 1.0

  def __post_init__(self):
    super().__post_init__()
    check_churn(self.s_churn, self.s_min, self.s_max, self.s_noise)

  @property
  def stochastic(self) -> bool:
    """True with churn."""
    return self.s_churn > 0

  def churned(self, process: Process, grid: Grid) -> Churned:
    """Return the steps' start points on a grid."""
    return churned(process, grid, self.s_churn, self.s_min, self.s_max, self.s_noise)


@dataclasses.dataclass(frozen=True)
class Euler(ChurnedSampler):
  """x' = alpha' x0_hat + sigma' eps_hat, from a churned point; without churn it is DDIM.

  It is Euler's step in any coordinate of the form x / (alpha + k sigma), so on straight paths it is
  also that of flow matching. Source: Karras et al. 2022 (arXiv 2206.00364), algorithm 2 without its
  correction.
  """

  steps: int = 50

  order = 1

  def on_grid(self, process: Process, grid: Grid) -> Tableau:
    """Return the update's coefficients on a grid."""
    at = self.churned(process, grid)
    _, (alpha, sigma) = step_endpoints(grid)
    decay = sigma / at.sigma
    x0 = alpha - decay * at.alpha
    if not at.active:
      return Tableau(at.t, StepWeights(x0[:, None], decay), end=grid.t[-1])
    scale, noise = shift_left(at.scale, 1.0), shift_left(at.noise, 0.0)
    state = StepWeights((scale * x0)[:, None], scale * decay, None, noise)
    return Tableau(at.t, state, None, (at.scale[0], at.noise[0]), grid.t[-1])
