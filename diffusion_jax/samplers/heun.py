"""Heun's method on the probability-flow ODE, with EDM's churn: two evaluations per step."""

import dataclasses
from typing import Literal

import jax

from diffusion_jax.processes import Process, namespace
from diffusion_jax.samplers.euler import Churned, ChurnedSampler, shift_left
from diffusion_jax.samplers.grids import Grid, Values
from diffusion_jax.samplers.linear import LinearSampler, StepWeights, Tableau, step_endpoints


@dataclasses.dataclass(frozen=True)
class _WithCoordinate(LinearSampler):
  """The field that precedes those of churn among Heun's positional arguments."""

  coordinate: Literal["auto", "noise", "flow"] = "auto"


@dataclasses.dataclass(frozen=True)
class Heun(ChurnedSampler, _WithCoordinate):
  """Euler's step, repeated with the mean of the slopes at its two endpoints; order 2.

  The path is a curve y(u) with y = x / (alpha + k sigma), u = sigma / (alpha + k sigma) and slope
  eps_hat - k x0_hat. k = 0 is EDM's coordinate, x / alpha against sigma / alpha; k = 1 is that of
  straight paths, which reaches alpha = 0. The step to the data is Euler's, since sigma = 0 there.
  Source: Karras et al. 2022 (arXiv 2206.00364), algorithm 2.

  Attributes:
    steps: number of steps S; 2 S - 1 network evaluations per image if it ends at the data, else 2
      S.
    coordinate: coordinate of the path: "noise" k = 0, "flow" k = 1, "auto": flow if alpha is 0 at
      t = 1, else noise.
  """

  steps: int = 18

  order = 2

  def on_grid(self, process: Process, grid: Grid) -> Tableau:
    """Return the update's coefficients on a grid.

    Rows alternate: one evaluates at the start of the step and stores that point as the base state,
    the next evaluates at the end of Euler's step.
    """
    at = self.churned(process, grid)
    n = grid.num_steps - grid.to_data
    predicted, kept = _predict(grid, at)
    state = _interleave(predicted, _correct(grid, at, n, self._k(grid)))
    unused = jax.tree.map(lambda w: 0 * w[:n], kept)
    base = _interleave(kept, unused)
    t = _merge(at.t, grid.t[1 : n + 1])
    if not at.active:
      return Tableau(t, state._replace(noise=None), base, end=grid.t[-1])
    return Tableau(t, state, base, (at.scale[0], at.noise[0]), grid.t[-1])

  def _k(self, grid: Grid) -> float:
    flow = (
      grid.from_noise or grid.to_noise if self.coordinate == "auto" else self.coordinate == "flow"
    )
    return 1.0 if flow else 0.0

  def num_evaluations(self, process: Process) -> int:
    """Return 2 S, or 2 S - 1 if it ends at the data."""
    return 2 * self.steps - self.grid(process).to_data

  def check(self, process: Process) -> None:
    """Raise a ValueError for a process or number of steps that it does not support."""
    if self.coordinate == "noise" and self.grid(process).from_noise:
      raise ValueError(
        "coordinate=noise divides by alpha, which is 0 at t = 1 of this process; set "
        "`sampler.coordinate=flow` or auto"
      )
    super().check(process)


def _predict(grid: Grid, at: Churned) -> tuple[StepWeights, StepWeights]:
  """Return Euler's step from each churned point, and that point itself as the base state."""
  _, (alpha, sigma) = step_endpoints(grid)
  decay, xp = sigma / at.sigma, namespace(at.sigma)
  none = xp.zeros_like(decay)
  x0 = xp.stack([alpha - decay * at.alpha, none], axis=-1)
  return StepWeights(x0, decay, none, none), StepWeights(0 * x0, none + 1.0, none, None)


def _correct(grid: Grid, at: Churned, n: int, k: float) -> StepWeights:
  """Return the first `n` steps with the mean slope, churned for the following step."""
  alpha, sigma = grid.alpha[1 : n + 1], grid.sigma[1 : n + 1]
  alpha_up, sigma_up, xp = at.alpha[:n], at.sigma[:n], namespace(at.alpha)
  y_scale, y_scale_up = alpha + k * sigma, alpha_up + k * sigma_up
  half = 0.5 * y_scale * (sigma / y_scale - sigma_up / y_scale_up)
  x0 = xp.stack([-half * (alpha / sigma + k), -half * (alpha_up / sigma_up + k)], axis=-1)
  xt, base = half / sigma, y_scale / y_scale_up + half / sigma_up
  if not at.active:
    return StepWeights(x0, xt, base, xp.zeros_like(xt))
  up, noise = shift_left(at.scale, 1.0)[:n], shift_left(at.noise, 0.0)[:n]
  return StepWeights(up[:, None] * x0, up * xt, up * base, noise)


def _interleave(first: StepWeights, second: StepWeights) -> StepWeights:
  return jax.tree.map(_merge, first, second)


def _merge(first: Values, second: Values) -> Values:
  """Interleave rows: first 0, second 0, first 1, second 1 ...; then the rest of `first`."""
  xp, n = namespace(first, second), len(second)
  pairs = xp.stack([first[:n], second], axis=1).reshape(2 * n, *first.shape[1:])
  return xp.concatenate([pairs, first[n:]])
