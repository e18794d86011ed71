"""The probability-flow ODE by an adaptive solver with a given error tolerance."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap

from diffusion_jax.processes import Process
from diffusion_jax.samplers.base import (
  Data,
  Denoise,
  SamplerBase,
  checked_denoise,
  checked_shape,
  initial_states,
  keys_per_example,
)
from diffusion_jax.samplers.grids import Final, last_time
from diffusion_jax.types import Key, Keys, Samples

NUM_ESTIMATES = 16
"""Number of x0 estimates that `keep_estimates` returns."""

FIRST_STEP = 0.01
"""First step as a fraction of the whole path; the solver chooses the later ones."""


class _Path(NamedTuple):
  """The path (alpha + sigma) y(u) for u = sigma / (alpha + sigma), finite on every process."""

  process: Process
  denoise: Denoise
  low: float

  def place(self, t) -> Any:
    """Return u for a time, on the host."""
    alpha, sigma = self.process.alpha_sigma(np.asarray([t]))
    return (sigma / (alpha + sigma))[0]

  def at(self, u):
    """Return (t, alpha, sigma) at u."""
    t = self.process.time_of(-2.0 * (jnp.log(u) - jnp.log1p(-u)))
    t = jnp.clip(t, self.low, 1.0)
    return (t, *self.process.alpha_sigma(t))

  def estimate(self, u, y):
    """Return (x_t, x0 estimate) of one image."""
    t, alpha, sigma = self.at(u)
    x = (alpha + sigma) * y
    return x, self.denoise(x, t)

  def slope(self, u, y, args):
    """Return dy/du = eps_hat - x0_hat."""
    _, alpha, sigma = self.at(u)
    x, x0 = self.estimate(u, y)
    return ((x - alpha * x0) / sigma - x0).astype(y.dtype)


@dataclasses.dataclass(frozen=True)
class ProbabilityFlow(SamplerBase):
  """Adaptive Runge-Kutta solver of order 5 for the probability-flow ODE from t = 1.

  Each image has its own steps, so that it depends only on its own key. The network evaluates all
  images together until the last one is done; Samples.num_evaluations is the mean over the images.
  An image that needs more than `max_steps` steps is NaN. The solver integrates over
  u = sigma / (alpha + sigma), which is finite on every process. Sources: Song et al. 2021 (arXiv
  2011.13456), section 4.3; Tsitouras 2011 (doi 10.1016/j.camwa.2011.06.002), by diffrax.

  Attributes:
    rtol: relative tolerance of the adaptive solver's error per step and image.
    atol: absolute tolerance of the adaptive solver's error per step and image.
    final: "data": one more evaluation at min_time gives the image; "min_time": end there.
    clip: clip each x0 estimate to [-1, 1].
    max_steps: maximum number of steps per image.
  """

  rtol: float = 1e-5
  atol: float = 1e-5
  final: Final = "data"
  clip: bool = False
  max_steps: int = 10_000

  order = 5
  stochastic = False
  keeps_estimates = True

  def __post_init__(self):
    if self.rtol <= 0 or self.atol <= 0 or self.max_steps < 1:
      raise ValueError(
        f"rtol={self.rtol}, atol={self.atol}, max_steps={self.max_steps}: all must be positive; "
        "e.g. `sampler.rtol=1e-5`"
      )

  def num_evaluations(self, process: Process) -> None:
    """Return None: the number is only known after sampling, see Samples.num_evaluations."""

  def end_time(self, process: Process) -> Any:
    """Return min_time, or the first time with noise; None: the path ends at the data."""
    return None if self.final == "data" else last_time(process)

  def check(self, process: Process) -> None:
    """Raise a ValueError for a process that exists only at discrete steps."""
    if process.num_timesteps is not None:
      raise ValueError(
        "probability_flow needs a process in continuous time, not one of "
        f"{process.num_timesteps} steps; set `sampler.name=heun`, or train with `process.name=vp`"
      )

  def solve(
    self, denoise: Denoise, process: Process, x: Data, keep_estimates: bool = False
  ) -> Samples:
    """Integrate from states at t = 1, in their precision; may return NUM_ESTIMATES estimates."""
    low = last_time(process)
    path = _Path(process, _of_one_image(checked_denoise(denoise), self.clip, x), low)
    first, last = (jnp.asarray(path.place(t), x.dtype) for t in (1.0, low))
    times = jnp.linspace(first, last, NUM_ESTIMATES if keep_estimates else 2)[1:]
    one = lambda x: self._one_image(path, first, times, x)  # noqa: E731
    x, x0, evaluations, estimates = jax.vmap(one)(x)
    images = x0 if self.final == "data" else x
    kept = jnp.moveaxis(estimates, 1, 0) if keep_estimates else None
    return Samples(images, evaluations.mean() + (self.final == "data"), kept)

  def _one_image(self, path: _Path, first, times, x):
    import diffrax  # imported here: it takes half a second that other samplers do not need

    _, alpha, sigma = path.at(first)
    solution = diffrax.diffeqsolve(
      diffrax.ODETerm(path.slope), diffrax.Tsit5(), first, times[-1],
      FIRST_STEP * (times[-1] - first), x / (alpha + sigma), saveat=diffrax.SaveAt(ts=times),
      stepsize_controller=diffrax.PIDController(rtol=self.rtol, atol=self.atol),
      adjoint=diffrax.ForwardMode(), max_steps=self.max_steps, throw=False,
    )  # fmt: skip
    done = solution.result == diffrax.RESULTS.successful
    ys = jnp.where(done, jnp.asarray(solution.ys), jnp.nan)
    states, estimates = jax.lax.map(lambda pair: path.estimate(*pair), (times, ys))
    # one evaluation for the first slope, six for each step, accepted or rejected
    evaluations = 1.0 + 6.0 * solution.stats["num_steps"]
    return states[-1], estimates[-1], evaluations, estimates

  def sample(
    self,
    denoise: Denoise,
    process: Process,
    key: Key | Keys,
    shape: tuple[int, ...],
    keep_estimates: bool = False,
  ) -> Samples:
    """Draw examples, see `Sampler.sample`."""
    shape = checked_shape(shape)
    x = initial_states(process, keys_per_example(key, shape[0]), shape[1:])
    return self.solve(denoise, process, x, keep_estimates)


def _of_one_image(denoise: Denoise, clip: bool, like: Data):
  """Return (x [...], t []) -> x0 estimate; under vmap one call evaluates all examples.

  The denoiser holds the labels of the whole batch, so it cannot evaluate a single image. Other
  values that it holds, such as parameters of a jitted caller, become arguments, since the rule of a
  custom vmap must not close over traced values.
  """
  import equinox  # imported here, as diffrax: half a second that only this sampler needs

  times = jnp.zeros(len(like), like.dtype)
  converted = equinox.filter_closure_convert(denoise, like, times)
  held, rest = equinox.partition(converted, equinox.is_array)

  @custom_vmap
  def one(x, t, held):
    del held
    return jnp.zeros_like(x) + 0 * t  # only its shape is used

  @one.def_vmap
  def all_of_them(axis_size, in_batched, x, t, held):
    x = x if in_batched[0] else jnp.broadcast_to(x, (axis_size, *x.shape))
    t = t if in_batched[1] else jnp.broadcast_to(t, (axis_size,))
    x0 = equinox.combine(held, rest)(x, t)
    return (jnp.clip(x0, -1.0, 1.0) if clip else x0), True

  return lambda x, t: one(x.astype(like.dtype), jnp.asarray(t, like.dtype), held)
