"""One scan for every sampler with linear steps.

A step is linear in the state x_t, estimates of x0 (the newest and earlier ones), a base state that
an earlier evaluation stored (the start of Heun's or a corrector's step), and fresh noise. The
coefficients are float64 on the host (JAX arrays for a learned schedule) and take the state's
precision in the scan. docs/samplers.md compares it with a plain loop.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffusion_jax.core import rng
from diffusion_jax.processes import Process, log_ratio, namespace
from diffusion_jax.samplers.base import (
  Data,
  Denoise,
  SamplerBase,
  checked_denoise,
  checked_shape,
  initial_states,
  keys_per_example,
)
from diffusion_jax.samplers.grids import Final, Grid, Spacing, make_grid
from diffusion_jax.types import Key, Keys, Samples

PerStep = Float[Array | np.ndarray, "R"]
Replace = Callable[[Data, Any], Data]


class StepWeights(NamedTuple):
  """Weights of x0 @ estimates + xt * x_t + base * base state + noise * z, per evaluation.

  Attributes:
    x0: weights [R, K] of the estimates, the newest first.
    xt, base, noise: weights [R]; None for zero.
  """

  x0: Float[Array | np.ndarray, "R K"]
  xt: PerStep
  base: PerStep | None = None
  noise: PerStep | None = None


class Tableau(NamedTuple):
  """Coefficients of a sampler: R rows with one denoiser evaluation each.

  Attributes:
    t: time of the evaluation.
    state: weights of the next state.
    base: weights of the next base state; None if no row uses one.
    start_churn: (scale, noise) of x_1 before the first row; None for no churn.
    end: time of the last state, 0 for the data.
    width: log of the largest over the smallest variance per row, if the network gives the noise
      variance; `state.noise` is then the root of the smallest, and the denoiser returns
      (x0, logits).
  """

  t: PerStep
  state: StepWeights
  base: StepWeights | None = None
  start_churn: tuple[Any, Any] | None = None
  end: Any = 0.0
  width: PerStep | None = None

  @property
  def num_rows(self) -> int:
    """Number of rows R."""
    return len(self.t)


@dataclasses.dataclass(frozen=True)
class LinearSampler(SamplerBase):
  """A fixed-step sampler given by `on_grid`, its coefficients on a time grid.

  Attributes:
    steps: number of steps, each one network evaluation per image (two under guidance).
    spacing: placement of the steps in time, see `grids.make_grid`; auto: the sampler's own.
    final: end of the path: the data (t = 0), or the process's min_time.
    rho: exponent of spacing=karras; larger values put more steps at low noise.
    clip: clip each x0 estimate to [-1, 1].
  """

  steps: int = 20
  _: dataclasses.KW_ONLY
  spacing: Spacing = "auto"
  final: Final = "data"
  rho: float = 7.0
  clip: bool = False

  keeps_estimates = True
  auto_by_step: ClassVar[Spacing] = "log_snr"
  """Meaning of spacing `auto` on a process with steps."""

  def __post_init__(self):
    if self.steps < 1:
      raise ValueError(f"steps={self.steps} must be at least 1, e.g. `sampler.steps=20`")
    if self.rho <= 0:
      raise ValueError(f"rho={self.rho} must be positive, e.g. `sampler.rho=7`")

  @abc.abstractmethod
  def on_grid(self, process: Process, grid: Grid) -> Tableau:
    """Return the coefficients on a grid."""

  def grid(self, process: Process) -> Grid:
    """Return the time grid of its fields."""
    return make_grid(process, self.steps, self.spacing, self.final, self.rho, self.auto_by_step)

  def tableau(self, process: Process, grid: Grid | None = None) -> Tableau:
    """Return the coefficients on its own grid, or on a given one."""
    return self.on_grid(process, self.grid(process) if grid is None else grid)

  def check(self, process: Process) -> None:
    """Raise a ValueError for a process or number of steps that it does not support."""
    check_finite(self.tableau(process), type(self).__name__)

  def num_evaluations(self, process: Process) -> int:
    """Return the number of steps S."""
    return self.steps

  def evaluation_times(self, process: Process) -> PerStep:
    """Return the time of each row."""
    return self.tableau(process).t

  def end_time(self, process: Process) -> Any:
    """Return the last time of the grid; None: the final states are data."""
    return None if self.final == "data" else self.grid(process).t[-1]

  def sample(
    self,
    denoise: Denoise,
    process: Process,
    key: Key | Keys,
    shape: tuple[int, ...],
    keep_estimates: bool = False,
  ) -> Samples:
    """Draw examples by one scan, see `Sampler.sample`."""
    shape = checked_shape(shape)
    keys = keys_per_example(key, shape[0])
    x = initial_states(process, keys, shape[1:])
    return integrate(self.tableau(process), denoise, x, keys, self.clip, keep_estimates)


def step_endpoints(grid: Grid) -> tuple[tuple[PerStep, PerStep], tuple[PerStep, PerStep]]:
  """Return (alpha, sigma) at the start and at the end of each step."""
  return (grid.alpha[:-1], grid.sigma[:-1]), (grid.alpha[1:], grid.sigma[1:])


def half_log_snr_growth(grid: Grid) -> PerStep:
  """Return h, the growth of log(alpha / sigma) over each step."""
  return grid.half_log_snr[1:] - grid.half_log_snr[:-1]


def added_variance(grid: Grid) -> PerStep:
  """Return sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2 per step t to s, without cancellation."""
  growth = half_log_snr_growth(grid)
  return -(grid.sigma[:-1] ** 2) * namespace(growth).expm1(-2.0 * growth)


def check_finite(tableau: Tableau, name: str) -> None:
  """Raise a ValueError if coefficients are not finite; learned schedules are not checked.

  Args:
    tableau: coefficients.
    name: name of the sampler.

  Raises:
    ValueError: the sampler does not support the process.
  """
  values = [v for v in jax.tree.leaves(tableau) if namespace(v) is np]
  if not all(np.isfinite(v).all() for v in values):
    raise ValueError(
      f"{name} has no finite coefficients on this process's grid; set `sampler.name=ddim`, which "
      "serves every process"
    )


def integrate(
  tableau: Tableau,
  denoise: Denoise,
  x: Data,
  keys: Keys | None = None,
  clip: bool = False,
  keep_estimates: bool = False,
  replace: Replace | None = None,
) -> Samples:
  """Run a tableau from a given state, in that state's precision.

  Args:
    tableau: coefficients of the sampler.
    denoise: (xt, t) -> x0 estimate; (x0 estimate, logits) for a tableau with a `width`.
    x: initial state.
    keys: one per example, for the noise; None for a deterministic tableau.
    clip: clip each x0 estimate to [-1, 1].
    keep_estimates: also return the (clipped) x0 estimate of every row, with R times the memory.
    replace: (x, number) -> x, applied to the initial state (number 0) and after each row.
  """
  shape, num_rows = x.shape[1:], tableau.num_rows
  denoise = checked_denoise(denoise, needs_variance=tableau.width is not None)

  def noise(name: rng.Stream, row_index):
    assert keys is not None, "a stochastic tableau needs keys"
    keys_of_row = rng.stream(keys, name)
    if row_index is not None:
      keys_of_row = rng.numbered(keys_of_row, row_index)
    return rng.normal(keys_of_row, shape).astype(x.dtype)

  def step(carry, row):
    (x, base, past), (row_index, row) = carry, row
    x0: Any = denoise(x, jnp.full(x.shape[0], row.t))
    z: Any = None if row.state.noise is None else noise(rng.Stream.STEPS, row_index)
    if row.width is not None:
      x0, logits = x0
      z = z * jnp.exp(0.5 * log_ratio(logits, row.width))
    x0 = jnp.clip(x0, -1.0, 1.0) if clip else x0
    known = (x, base, (x0, *past), z)
    x = _combine(row.state, *known)
    base = None if row.base is None else _combine(row.base, *known)
    x = x if replace is None else replace(x, row_index)
    return (x, base, (x0, *past)[: len(past)]), x0 if keep_estimates else None

  if tableau.start_churn is not None:
    scale, spread = (jnp.asarray(c, x.dtype) for c in tableau.start_churn)
    x = scale * x + spread * noise(rng.Stream.CHURN, None)
  x = x if replace is None else replace(x, 0)
  past = (jnp.zeros_like(x),) * (tableau.state.x0.shape[1] - 1)
  base = None if tableau.base is None else jnp.zeros_like(x)
  rows = tableau._replace(start_churn=None, end=None)
  rows = (jnp.arange(1, num_rows + 1), jax.tree.map(lambda c: jnp.asarray(c, x.dtype), rows))
  (x, _, _), estimates = jax.lax.scan(step, (x, base, past), rows)
  return Samples(x, num_rows, estimates)


def _combine(weights: StepWeights, x, base, estimates, z):
  total = weights.x0[0] * estimates[0]
  for k, estimate in enumerate(estimates[1:], 1):
    total = total + weights.x0[k] * estimate
  total = total + weights.xt * x
  total = total if weights.base is None else total + weights.base * base
  return total if weights.noise is None else total + weights.noise * z
