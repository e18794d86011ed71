"""DPM-Solver++: multistep solvers in the log-SNR for the x0 estimate, as ODE and as SDE.

With l = log(alpha / sigma) and h its growth over a step from (alpha, sigma) to (alpha', sigma'),
the ODE's exact solution is
  x' = sigma' / sigma x + alpha' times the integral of e^(tau - h) D(l + tau) over tau in [0, h],
and the SDE's (Lu et al. 2022, equations 13 and 16)
  x' = sigma' / sigma e^(-h) x + 2 alpha' times that of e^(2 (tau - h)) D
    + sigma' sqrt(1 - e^(-2h)) z.
A solver replaces D by the polynomial through the last x0 estimates. The step to the data has order
1: there D itself is the solution. Source: Lu et al. 2022 (arXiv 2211.01095).
"""

import dataclasses

from diffusion_jax.processes import Process, namespace
from diffusion_jax.samplers import multistep
from diffusion_jax.samplers.grids import Grid, Values
from diffusion_jax.samplers.linear import LinearSampler, StepWeights, Tableau, half_log_snr_growth


def _columns(*values: Values) -> Values:
  return namespace(*values).stack(values, axis=-1)


def _midpoint(grid: Grid, steps: slice, total: Values) -> Values:
  """Return weights of order 2: the line through two estimates, at the middle of the step."""
  h = half_log_snr_growth(grid)
  half = 0.5 * h[steps] / multistep.earlier(h, steps, 1)
  return _columns(total * (1.0 + half), -total * half)


def _parabola(grid: Grid, steps: slice, curvature: float) -> Values:
  """Return weights of order 3: exact integrals of the parabola through three estimates.

  With h the step, a and b the two before it, the parabola is D0 + slope tau + bend tau^2.
  """
  xp, spans, alpha = namespace(grid.alpha), half_log_snr_growth(grid), grid.alpha[1:][steps]
  h, a, b = (multistep.earlier(spans, steps, back) for back in range(3))
  of_line = h + xp.expm1(-h)
  of_square = curvature * (h**2 - 2.0 * of_line)
  bend = [1 / a, -1 / a - 1 / b, 1 / b]
  bend = [value / (a + b) for value in bend]
  slope = [1 / a + a * bend[0], -1 / a + a * bend[1], a * bend[2]]
  weights = [alpha * (of_line * s + of_square * c) for s, c in zip(slope, bend, strict=True)]
  return _columns(multistep.first_order(grid, steps) + weights[0], *weights[1:])


@dataclasses.dataclass(frozen=True)
class DPMSolverPP2M(LinearSampler):
  """DPM-Solver++(2M): two estimates, order 2, one evaluation per step; algorithm 2, midpoint."""

  order = 2
  stochastic = False

  def on_grid(self, process: Process, grid: Grid) -> Tableau:
    """Return the update's coefficients on a grid."""

    def weights(order, steps):
      one = multistep.first_order(grid, steps)
      return _columns(one) if order == 1 else _midpoint(grid, steps, one)

    x0 = multistep.table(multistep.orders(grid, 2), 2, weights)
    state = StepWeights(x0, grid.sigma[1:] / grid.sigma[:-1])
    return Tableau(grid.t[:-1], state, end=grid.t[-1])

  def check(self, process: Process) -> None:
    """Raise a ValueError for a process or number of steps that it does not support."""
    multistep.check_order("dpm_solver_pp_2m", self.order, self.steps)
    super().check(process)


@dataclasses.dataclass(frozen=True)
class DPMSolverPP3M(LinearSampler):
  """DPM-Solver++(3M): three estimates, order 3, one evaluation per step.

  Attributes:
    published_weights: use the weights of the authors' code, whose quadratic term has half the
      weight of the exact integral and whose order is therefore 2.
  """

  published_weights: bool = False

  stochastic = False

  @property
  def order(self) -> int:
    """Order 3, or 2 with the published weights."""
    return 2 if self.published_weights else 3

  def on_grid(self, process: Process, grid: Grid) -> Tableau:
    """Return the update's coefficients on a grid."""
    curvature = 0.5 if self.published_weights else 1.0

    def weights(order, steps):
      if order == 3:
        return _parabola(grid, steps, curvature)
      one = multistep.first_order(grid, steps)
      return _columns(one) if order == 1 else _midpoint(grid, steps, one)

    x0 = multistep.table(multistep.orders(grid, 3), 3, weights)
    state = StepWeights(x0, grid.sigma[1:] / grid.sigma[:-1])
    return Tableau(grid.t[:-1], state, end=grid.t[-1])

  def check(self, process: Process) -> None:
    """Raise a ValueError for a process or number of steps that it does not support."""
    multistep.check_order("dpm_solver_pp_3m", 3, self.steps)
    super().check(process)


@dataclasses.dataclass(frozen=True)
class DPMSolverPP2MSDE(LinearSampler):
  """SDE-DPM-Solver++(2M): two estimates, with the noise of the ancestral sampler."""

  order = 2
  stochastic = True

  def on_grid(self, process: Process, grid: Grid) -> Tableau:
    """Return the update's coefficients on a grid."""
    xp, h, sigma = namespace(grid.alpha), half_log_snr_growth(grid), grid.sigma[1:]
    fresh = -xp.expm1(-2.0 * h)

    def weights(order, steps):
      total = (grid.alpha[1:] * fresh)[steps]
      return _columns(total) if order == 1 else _midpoint(grid, steps, total)

    x0 = multistep.table(multistep.orders(grid, 2), 2, weights)
    xt = sigma / grid.sigma[:-1] * xp.exp(-h)
    state = StepWeights(x0, xt, None, sigma * xp.sqrt(fresh))
    return Tableau(grid.t[:-1], state, end=grid.t[-1])

  def check(self, process: Process) -> None:
    """Raise a ValueError for a process or number of steps that it does not support."""
    multistep.check_order("dpm_solver_pp_2m_sde", self.order, self.steps)
    super().check(process)
