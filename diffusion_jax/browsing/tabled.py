"""One compiled program for every fixed-step sampler, number of steps and guidance weight.

The coefficients of a sampler are arguments of the program rather than constants in it, filled up to
a fixed number of rows. Rows that are filled up skip the network. So a new sampler, another number
of steps or another weight needs no compilation.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.generative.diffusion_model import decoded
from diffusion_jax.processes import Process
from diffusion_jax.samplers import Guidance, LinearSampler, StepWeights, Tableau, keys_per_example
from diffusion_jax.samplers.base import Denoise
from diffusion_jax.samplers.editing import known_again
from diffusion_jax.samplers.grids import Grid
from diffusion_jax.samplers.linear import integrate
from diffusion_jax.types import Key, Keys, Samples

ROWS = 128
"""Smallest number of rows of a filled-up tableau; more are a power of two times this."""

ESTIMATES = 3
"""Number of estimates that a filled-up row weighs; the most that a shipped sampler uses."""

NUM_FRAMES = 12
"""Number of x0 estimates along the path that are kept."""


class Setting(NamedTuple):
  """Arguments of the compiled program that say how to sample; all may be traced.

  Attributes:
    table: filled-up coefficients.
    frames: rows whose x0 estimates are kept, [NUM_FRAMES].
    weight: guidance weight.
    bound: largest absolute value of an x0 estimate; infinity: no clipping.
  """

  table: Tableau
  frames: Any
  weight: Any
  bound: Any


def make_setting(sampler: LinearSampler, process: Process, weight: float) -> Setting:
  """Return the arguments that run a sampler on a process with a guidance weight."""
  tableau = sampler.tableau(process)
  frames = np.linspace(0, tableau.num_rows - 1, NUM_FRAMES).round().astype(np.int32)
  bound = np.float32(1.0 if sampler.clip else np.inf)
  return Setting(filled_up(tableau), frames, np.float32(weight), bound)


def filled_up(tableau: Tableau) -> Tableau:
  """Return a tableau of the same path whose shape and structure depend on no sampler.

  Rows that are filled up keep the state, use no estimate, and have a time before the end.
  """
  num_rows, size = tableau.num_rows, ROWS
  while size < num_rows:
    size *= 2
  estimates = max(ESTIMATES, tableau.state.x0.shape[1])

  def column(values: Any, fill: float = 0.0) -> np.ndarray:
    found = np.zeros(num_rows) if values is None else np.asarray(values)
    return np.pad(found, (0, size - num_rows), constant_values=fill).astype(np.float32)

  def weights(given: StepWeights | None, keep: float) -> StepWeights:
    given = StepWeights(np.zeros((num_rows, 1)), np.zeros(num_rows)) if given is None else given
    x0 = np.asarray(given.x0)
    x0 = np.pad(x0, [(0, size - num_rows), (0, estimates - x0.shape[1])]).astype(np.float32)
    return StepWeights(x0, column(given.xt, keep), column(given.base), column(given.noise))

  end = np.float32(np.asarray(tableau.end))
  churn = (1.0, 0.0) if tableau.start_churn is None else tableau.start_churn
  return Tableau(
    t=column(tableau.t, float(end) - 1.0),
    state=weights(tableau.state, 1.0),
    base=weights(tableau.base, 0.0),
    start_churn=tuple(np.float32(np.asarray(c)) for c in churn),  # pyright: ignore[reportArgumentType]
    end=end,
    width=None if tableau.width is None else column(tableau.width),
  )


@dataclasses.dataclass(frozen=True, eq=False)
class Tabled(LinearSampler):
  """A sampler whose coefficients, noise at t = 1 and known parts are given.

  All may be traced.

  Attributes:
    setting: the coefficients and the rows whose estimates are kept.
    start: states at t = 1 [N ...].
    known: examples in [-1, 1] whose known dimensions are kept [N ...].
    is_known: True for known dimensions [N ...].
    gives_variance: True if the coefficients are for a network that gives the variances.
  """

  setting: Any = dataclasses.field(default=None, kw_only=True)
  start: Any = dataclasses.field(default=None, kw_only=True)
  known: Any = dataclasses.field(default=None, kw_only=True)
  is_known: Any = dataclasses.field(default=None, kw_only=True)
  gives_variance: bool = dataclasses.field(default=False, kw_only=True)

  order = 1
  stochastic = True

  @property
  def needs_variance(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
    """True if its denoiser must return (x0 estimate, variance logits)."""
    return self.gives_variance

  def on_grid(self, process: Process, grid: Grid) -> Tableau:
    """Return the given coefficients."""
    del process, grid
    return self.setting.table

  def evaluation_times(self, process: Process) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
    """Return None: the rows in use are known only when the program runs."""
    del process

  def sample(
    self,
    denoise: Denoise,
    process: Process,
    key: Key | Keys,
    shape: tuple[int, ...],
    keep_estimates: bool = False,
  ) -> Samples:
    """Draw examples; the estimates are those of the chosen rows, and the examples themselves."""
    keys, table = keys_per_example(key, shape[0]), self.setting.table
    in_range = table._replace(t=jnp.maximum(table.t, table.end))
    to_data = self.grid(process).to_data
    replace = known_again(process, in_range, keys, self.known, self.is_known, to_data)
    samples = integrate(table, denoise, self.start, keys, False, keep_estimates, replace)
    if samples.estimates is None:
      return samples
    last = decoded(self, process, samples.images)[None]
    kept = jnp.concatenate([samples.estimates[self.setting.frames], last])
    return samples._replace(estimates=kept)


@dataclasses.dataclass(frozen=True, eq=False)
class Steered(Guidance):
  """Guidance with a traced weight, which skips the network at times before the end.

  Attributes:
    weight: guidance weight.
    end: last time of the path; the estimate before it is zero, without an evaluation.
    bound: largest absolute value of an estimate.
  """

  weight: Any = 1.0
  end: Any = -1.0
  bound: Any = np.inf

  @property
  def is_off(self) -> bool:
    """False: the weight is known only when the program runs."""
    return False

  def bind(self, *args: Any, **options: Any) -> Denoise:
    """Return the denoiser of `Guidance.bind`, with skipped rows and clipped estimates."""
    denoise = super().bind(*args, **options)

    def estimate(xt: Any, t: Any, **given: Any) -> Any:
      def evaluate() -> Any:
        return denoise(xt, t, **given)

      def skip() -> Any:
        return jax.tree.map(lambda v: jnp.zeros(v.shape, v.dtype), jax.eval_shape(evaluate))

      found = jax.lax.cond(t[0] >= self.end, evaluate, skip)
      first, *others = found if isinstance(found, tuple) else (found,)
      first = jnp.clip(first, -self.bound, self.bound)
      return (first, *others) if others else first

    return estimate
