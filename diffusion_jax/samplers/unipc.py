"""UniPC: a multistep predictor, corrected by the estimate at its result."""

import dataclasses
from typing import Literal

import numpy as np

from diffusion_jax.processes import Process, namespace
from diffusion_jax.samplers import multistep
from diffusion_jax.samplers.grids import Grid, Values
from diffusion_jax.samplers.linear import LinearSampler, StepWeights, Tableau, half_log_snr_growth


@dataclasses.dataclass(frozen=True)
class UniPC(LinearSampler):
  """UniPC-p: a predictor of order p and a corrector without further evaluations.

  A step from l to l + h, l = log(alpha / sigma), is

    x' = sigma' / sigma x - alpha' (e^(-h) - 1) D_0 - alpha' B sum_m rho_m (D_m - D_0) / r_m

  with D_m the estimate at l + r_m h. The predictor uses the p - 1 estimates before D_0 (r_m < 0).
  The corrector repeats the step with the estimate at its end too (r = 1), which the next step
  evaluates anyway. B is -h (bh1) or e^(-h) - 1 (bh2). rho solves equation 12 of Zhao et al. 2023
  (arXiv 2302.04867); for two unknowns or fewer the paper's shortcut 1/2 holds (section 3.5:
  predictor of order 2, corrector of order 1).

  Attributes:
    solver_order: order p of the predictor, 1 to 3.
    variant: function B of the paper: bh1 is -h, bh2 is e^(-h) - 1.
    corrector: repeat each step with the estimate at its end; false: only the predictor (UniP).
    final: end of the path: the data (t = 0), or the process's min_time; the last state is never
      corrected.
  """

  solver_order: int = 2
  variant: Literal["bh1", "bh2"] = "bh2"
  corrector: bool = True

  stochastic = False

  def __post_init__(self):
    super().__post_init__()
    if self.solver_order not in (1, 2, 3):
      raise ValueError(
        f"solver_order={self.solver_order} must be 1, 2 or 3; e.g. `sampler.solver_order=2`"
      )

  @property
  def order(self) -> int:
    """Order p, or p + 1 with the corrector."""
    return self.solver_order + self.corrector

  def on_grid(self, process: Process, grid: Grid) -> Tableau:
    """Return the update's coefficients on a grid.

    Row i evaluates at the prediction of point i. The base state is the corrected point i - 1.
    """
    decay = grid.sigma[1:] / grid.sigma[:-1]
    columns = self.solver_order + 1
    predict = self._weights(grid, columns, corrected=False)
    if not self.corrector:
      state = StepWeights(predict[:, :-1], decay)
      return Tableau(grid.t[:-1], state, end=grid.t[-1])
    x0, xt, base = _corrected(self._weights(grid, columns, corrected=True), decay, grid)
    state = StepWeights(predict + decay[:, None] * x0, decay * xt, decay * base)
    return Tableau(grid.t[:-1], state, StepWeights(x0, xt, base), end=grid.t[-1])

  def _weights(self, grid: Grid, columns: int, corrected: bool) -> Values:
    def weights(order, steps):
      return _step_weights(grid, steps, order, self.variant, corrected)

    return multistep.table(multistep.orders(grid, self.solver_order), columns, weights)

  def check(self, process: Process) -> None:
    """Raise a ValueError for a process or number of steps that it does not support."""
    multistep.check_order("unipc", self.solver_order, self.steps)
    super().check(process)


def _corrected(weights: Values, decay: Values, grid: Grid) -> tuple[Values, Values, Values]:
  """Return the weights x0, xt and base of each row's corrected point.

  The first row has no point to correct, nor has a row whose step began at alpha = 0.

  Args:
    weights: weights [S, K] of the step that each row begins.
    decay: sigma' / sigma of that step.
    grid: grid of both.
  """
  xp, plain = namespace(weights), 1 + grid.from_noise
  x0 = xp.concatenate([xp.zeros_like(weights[:plain]), weights[plain - 1 : -1]])
  base = xp.concatenate([xp.zeros_like(decay[:plain]), decay[plain - 1 : -1]])
  keep = np.arange(len(decay)) < plain
  return x0[: len(decay)], xp.asarray(keep, decay.dtype), base[: len(decay)]


def _step_weights(grid: Grid, steps: slice, order: int, variant: str, corrected: bool) -> Values:
  """Return weights [steps, order (+ 1)]: of the end's estimate if corrected, D_0 and earlier."""
  xp, spans = namespace(grid.alpha), half_log_snr_growth(grid)
  h, alpha = spans[steps], grid.alpha[1:][steps]
  flat = xp.expm1(-h)
  nodes, before = [], 0.0
  for back in range(1, order):
    before = before - multistep.earlier(spans, steps, back)
    nodes.append(before / h)
  if corrected:
    nodes = [*nodes, xp.ones_like(h)]
  if not nodes:
    return multistep.first_order(grid, steps)[:, None]
  differences = [rho / r for rho, r in zip(_rhos(h, nodes, variant, corrected), nodes, strict=True)]
  scale = -alpha * (-h if variant == "bh1" else flat)
  first = -alpha * flat - scale * sum(differences)
  others = [scale * part for part in differences]
  end = [others.pop()] if corrected else []
  return xp.stack([*end, first, *others], axis=-1)


def _rhos(h: Values, nodes: list[Values], variant: str, corrected: bool) -> list[Values]:
  """Solve sum_m rho_m r_m^(k - 1) = k! phi_(k + 1)(-h) (-h) / B for k = 1, 2, ...

  phi_(k + 1)(z) = (phi_k(z) - 1 / k!) / z, phi_1(z) = (e^z - 1) / z.
  """
  xp, order = namespace(h), len(nodes)
  if order == 1:
    return [xp.full_like(h, 0.5)]
  base = -h if variant == "bh1" else xp.expm1(-h)
  phi, factorial, right = xp.expm1(-h) / -h - 1.0, 1.0, []
  for k in range(1, order + 1):
    right.append(phi * factorial / base)
    factorial *= k + 1
    phi = phi / -h - 1.0 / factorial
  matrix = xp.stack([xp.stack([r**k for r in nodes], axis=-1) for k in range(order)], axis=-2)
  solved = xp.linalg.solve(matrix, xp.stack(right, axis=-1)[..., None])[..., 0]
  return [solved[..., m] for m in range(order)]
