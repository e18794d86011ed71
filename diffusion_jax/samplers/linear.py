"""One scan for every sampler whose step is linear in what it knows.

It knows the state x_t, estimates of x0 (the newest and earlier ones), a state that an earlier step
put aside (the anchor: where Heun's step began, where a corrector's step began), and fresh noise.
The coefficients are float64 on the host (JAX arrays for a learned schedule) and take the state's
precision in the scan.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffusion_jax.core import rng
from diffusion_jax.processes import Process, log_ratio, namespace
from diffusion_jax.samplers.grids import Grid
from diffusion_jax.types import Keys, Samples

Denoise = Callable[[Float[Array, "N H W C"], Float[Array, "N"]], Float[Array, "N H W C"]]
Row = Float[Array | np.ndarray, "R"]
Replace = Callable[[Float[Array, "N H W C"], Any], Float[Array, "N H W C"]]


class Weights(NamedTuple):
  """x0 @ estimates + xt * x_t + anchor * anchor + noise * z, one row an evaluation.

  Attributes:
    x0: [R, K] of the estimates, the newest first.
    xt, anchor, noise: [R]; None for none at all.
  """

  x0: Float[Array | np.ndarray, "R K"]
  xt: Row
  anchor: Row | None = None
  noise: Row | None = None


class Scheme(NamedTuple):
  """A sampler as R rows; each asks the denoiser once.

  Attributes:
    t: time at which the denoiser is asked.
    state: the next x.
    anchor: the next anchor; None where no row uses one.
    lift: (scale, noise) of the start before the first row, None for none.
    end: time of the last state, 0 for the data.
    width: of noise whose variance the network gives: log of the largest over the smallest variance
      of each row, `state.noise` being the smallest's root. The denoiser then answers (x0, logits).
  """

  t: Row
  state: Weights
  anchor: Weights | None = None
  lift: tuple[Any, Any] | None = None
  end: Any = 0.0
  width: Row | None = None

  @property
  def num_rows(self) -> int:
    """R."""
    return len(self.t)


class LinearSteps(NamedTuple):
  """x_next = x0 * x0_hat + xt * x_t + noise * z, one row a step, float64 on the host.

  Attributes:
    t: time at which the denoiser is asked, from 1 downwards.
    x0, xt, noise: the three coefficients.
  """

  t: Row
  x0: Row
  xt: Row
  noise: Row

  def scheme(self, stochastic: bool, end: Any = 0.0) -> Scheme:
    """The same as a Scheme; without noise unless stochastic."""
    weights = Weights(self.x0[:, None], self.xt, None, self.noise if stochastic else None)
    return Scheme(self.t, weights, end=end)


def ends(grid: Grid) -> tuple[tuple[Row, Row], tuple[Row, Row]]:
  """(alpha, sigma) where each step begins, and where it ends."""
  return (grid.alpha[:-1], grid.sigma[:-1]), (grid.alpha[1:], grid.sigma[1:])


def added_variance(grid: Grid) -> Row:
  """sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2 of each step from t to s, without cancellation."""
  growth = grid.half_log_snr[1:] - grid.half_log_snr[:-1]
  return -(grid.sigma[:-1] ** 2) * namespace(growth).expm1(-2.0 * growth)


def check_finite(scheme: Scheme, name: str) -> None:
  """Refuses coefficients that are not numbers; those of a learned schedule are not looked at.

  Raises:
    ValueError: a process that the sampler cannot serve.
  """
  values = [v for v in jax.tree.leaves(scheme) if namespace(v) is np]
  if not all(np.isfinite(v).all() for v in values):
    raise ValueError(
      f"sampler.name={name} has no finite coefficients on this process's grid; set "
      "--config.sampler.name=ddim, which serves every process"
    )


def integrate(
  scheme: Scheme,
  denoise: Denoise,
  x: Float[Array, "N H W C"],
  keys: Keys | None = None,
  clip: bool = False,
  keep_estimates: bool = False,
  replace: Replace | None = None,
) -> Samples:
  """Runs a scheme from a state, in that state's precision.

  Args:
    scheme: coefficients of the sampler.
    denoise: (xt, t) -> x0 estimate; (x0 estimate, logits) for a scheme with a `width`.
    x: the state that it starts from.
    keys: one an image, for the noise; None for a deterministic scheme.
    clip: clip each x0 estimate to [-1, 1].
    keep_estimates: return the (clipped) x0 estimate of every row too: R times the memory.
    replace: (x, number) -> x, applied to the start (number 0) and to the state after each row.
  """
  shape, num = x.shape[1:], scheme.num_rows

  def noise(number, wanted):
    if wanted is None:
      return None
    assert keys is not None, "a stochastic scheme needs keys"
    return rng.normal(rng.fold_in(keys, number), shape).astype(x.dtype)

  def step(carry, row):
    (x, anchor, past), (number, row) = carry, row
    x0: Any = denoise(x, jnp.full(x.shape[0], row.t))
    z: Any = noise(number, row.state.noise)
    if row.width is not None:
      x0, logits = x0
      z = z * jnp.exp(0.5 * log_ratio(logits, row.width))
    x0 = jnp.clip(x0, -1.0, 1.0) if clip else x0
    known = (x, anchor, (x0, *past), z)
    x = _combine(row.state, *known)
    anchor = None if row.anchor is None else _combine(row.anchor, *known)
    x = x if replace is None else replace(x, number)
    return (x, anchor, (x0, *past)[: len(past)]), x0 if keep_estimates else None

  if scheme.lift is not None:
    scale, spread = (jnp.asarray(c, x.dtype) for c in scheme.lift)
    x = scale * x + spread * jnp.asarray(noise(num + 1, spread))
  x = x if replace is None else replace(x, 0)
  past = (jnp.zeros_like(x),) * (scheme.state.x0.shape[1] - 1)
  anchor = None if scheme.anchor is None else jnp.zeros_like(x)
  rows = scheme._replace(lift=None, end=None)
  rows = (jnp.arange(1, num + 1), jax.tree.map(lambda c: jnp.asarray(c, x.dtype), rows))
  (x, _, _), estimates = jax.lax.scan(step, (x, anchor, past), rows)
  return Samples(x, num, estimates)


def start(process: Process, keys: Keys, shape: tuple[int, ...]) -> Float[Array, "N H W C"]:
  """x_1 ~ N(0, prior_std^2), each image's from its own key."""
  return process.prior_std * rng.normal(rng.fold_in(keys, 0), shape)


@runtime_checkable
class FixedStep(Protocol):
  """A sampler that is one scan."""

  @property
  def stochastic(self) -> bool: ...

  @property
  def clip(self) -> bool: ...

  def grid(self, process: Process) -> Grid: ...

  def scheme(self, process: Process, grid: Grid | None = None) -> Scheme: ...


def draw(
  sampler: FixedStep,
  denoise: Denoise,
  process: Process,
  keys: Keys,
  shape: tuple[int, int, int],
  keep_estimates: bool = False,
) -> Samples:
  """Draws one image a key: the `__call__` of every sampler of fixed steps."""
  return run(sampler.scheme(process), denoise, process, keys, shape, sampler.clip, keep_estimates)


def run(
  scheme: Scheme,
  denoise: Denoise,
  process: Process,
  keys: Keys,
  shape: tuple[int, int, int],
  clip: bool,
  keep_estimates: bool = False,
) -> Samples:
  """Runs a scheme from x_1; `keys`, one an image, give its start and all its noise."""
  x = start(process, keys, shape)
  return integrate(scheme, denoise, x, keys, clip, keep_estimates)


def _combine(weights: Weights, x, anchor, estimates, z):
  total = weights.x0[0] * estimates[0]
  for k, estimate in enumerate(estimates[1:], 1):
    total = total + weights.x0[k] * estimate
  total = total + weights.xt * x
  total = total if weights.anchor is None else total + weights.anchor * anchor
  return total if weights.noise is None else total + weights.noise * z
