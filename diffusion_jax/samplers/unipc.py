"""UniPC: a multistep predictor whose result is corrected by the estimate that it leads to."""

import dataclasses
from typing import ClassVar, Literal

import numpy as np

from diffusion_jax.processes import Process, namespace
from diffusion_jax.samplers import linear, multistep
from diffusion_jax.samplers.grids import Final, Grid, Spacing, Values, own_grid


@dataclasses.dataclass(frozen=True)
class UniPC:
  """UniPC-p: a predictor of order p and a corrector that costs no evaluation.

    x' = sigma' / sigma x - alpha' (e^(-h) - 1) D_0 - alpha' B sum_m rho_m (D_m - D_0) / r_m

  with D_m the estimate at l + r_m h. The predictor takes the p - 1 estimates before D_0 (r_m < 0);
  the corrector repeats the step with the one at its end too (r = 1), which the next step's
  evaluation gives, so that it costs none. B is -h (bh1) or e^(-h) - 1 (bh2). rho solves equation 12
  of Zhao et al. 2023 (arXiv 2302.04867); for two unknowns or fewer the paper's shortcut 1/2 holds
  (section 3.5: predictor of order 2, corrector of order 1).

  Attributes:
    steps: number of steps, each one network evaluation per image (two under guidance).
    solver_order: p, order of the predictor, 1 to 3.
    variant: function B of the paper: bh1 is -h, bh2 is e^(-h) - 1.
    corrector: repeat each step with the estimate at its end; false: the predictor alone (UniP).
    spacing: placement of the steps in time, see `grids.make_grid`; auto: the sampler's own.
    final: end of the path: the data (t = 0), or the process's min_time; the last state is never
      corrected.
    rho: exponent of spacing=karras; larger puts more steps at little noise.
    clip: clip each x0 estimate to [-1, 1].
  """

  steps: int = 20
  solver_order: int = 2
  variant: Literal["bh1", "bh2"] = "bh2"
  corrector: bool = True
  spacing: Spacing = "auto"
  final: Final = "data"
  rho: float = 7.0
  clip: bool = False

  auto_by_step: ClassVar[Spacing] = "log_snr"
  stochastic: ClassVar[bool] = False

  def __post_init__(self):
    if self.solver_order not in (1, 2, 3):
      raise ValueError(
        f"solver_order={self.solver_order} must be 1, 2 or 3; e.g. --config.sampler.solver_order=2"
      )

  @property
  def order(self) -> int:
    """p, and one more with the corrector."""
    return self.solver_order + self.corrector

  grid = own_grid

  def scheme(self, process: Process, grid: Grid | None = None) -> linear.Scheme:
    """The update's coefficients, on another grid if one is given.

    Row i is asked at the prediction of point i. The anchor is the corrected point i - 1.
    """
    grid = self.grid(process) if grid is None else grid
    decay = grid.sigma[1:] / grid.sigma[:-1]
    columns = self.solver_order + 1
    predict = self._weights(grid, columns, corrected=False)
    if not self.corrector:
      state = linear.Weights(predict[:, :-1], decay)
      return linear.Scheme(grid.t[:-1], state, end=grid.t[-1])
    x0, xt, anchor = _corrected(self._weights(grid, columns, corrected=True), decay, grid)
    state = linear.Weights(predict + decay[:, None] * x0, decay * xt, decay * anchor)
    return linear.Scheme(grid.t[:-1], state, linear.Weights(x0, xt, anchor), end=grid.t[-1])

  def _weights(self, grid: Grid, columns: int, corrected: bool) -> Values:
    def weights(order, steps):
      return _step_weights(grid, steps, order, self.variant, corrected)

    return multistep.table(multistep.orders(grid, self.solver_order), columns, weights)

  def num_evaluations(self, process: Process) -> int:
    return self.steps

  def check(self, process: Process) -> None:
    """Raises ValueError for steps or a process that it cannot serve."""
    multistep.check_order("unipc", self.solver_order, self.steps)
    linear.check_finite(self.scheme(process), "unipc")

  __call__ = linear.draw


def _corrected(weights: Values, decay: Values, grid: Grid) -> tuple[Values, Values, Values]:
  """The corrected point of each row: its weights x0, xt and anchor.

  The first row has none to correct, nor has one whose step began at alpha = 0.

  Args:
    weights: [S, K], of the step that each row begins.
    decay: sigma' / sigma of that step.
    grid: of both.
  """
  xp, plain = namespace(weights), 1 + grid.from_noise
  x0 = xp.concatenate([xp.zeros_like(weights[:plain]), weights[plain - 1 : -1]])
  anchor = xp.concatenate([xp.zeros_like(decay[:plain]), decay[plain - 1 : -1]])
  keep = np.arange(len(decay)) < plain
  return x0[: len(decay)], xp.asarray(keep, decay.dtype), anchor[: len(decay)]


def _step_weights(grid: Grid, steps: slice, order: int, variant: str, corrected: bool) -> Values:
  """[steps, order (+ 1)]: of the estimate at the step's end if corrected, D_0 and those before."""
  xp, spans = namespace(grid.alpha), grid.half_log_snr[1:] - grid.half_log_snr[:-1]
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
  parts = [rho / r for rho, r in zip(_rhos(h, nodes, variant, corrected), nodes, strict=True)]
  scale = -alpha * (-h if variant == "bh1" else flat)
  first = -alpha * flat - scale * sum(parts)
  others = [scale * part for part in parts]
  end = [others.pop()] if corrected else []
  return xp.stack([*end, first, *others], axis=-1)


def _rhos(h: Values, nodes: list[Values], variant: str, corrected: bool) -> list[Values]:
  """The solution of sum_m rho_m r_m^(k - 1) = k! phi_(k + 1)(-h) (-h) / B, k = 1 to their number.

  phi_(k + 1)(z) = (phi_k(z) - 1 / k!) / z, phi_1(z) = (e^z - 1) / z.
  """
  xp, num = namespace(h), len(nodes)
  if num == 1:
    return [xp.full_like(h, 0.5)]
  base = -h if variant == "bh1" else xp.expm1(-h)
  phi, factorial, right = xp.expm1(-h) / -h - 1.0, 1.0, []
  for k in range(1, num + 1):
    right.append(phi * factorial / base)
    factorial *= k + 1
    phi = phi / -h - 1.0 / factorial
  matrix = xp.stack([xp.stack([r**k for r in nodes], axis=-1) for k in range(num)], axis=-2)
  solved = xp.linalg.solve(matrix, xp.stack(right, axis=-1)[..., None])[..., 0]
  return [solved[..., m] for m in range(num)]
