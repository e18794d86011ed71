"""Check each sampler: its declared order, its noise and its count of network evaluations.

Deterministic samplers solve the probability-flow ODE of a mixture of three Gaussians in one
dimension. This ODE keeps the order of points, so its exact solution maps quantiles to quantiles.
All samplers must reproduce the spread of Gaussian data. Linear samplers and samplers with their own
loop are checked by their order, adaptive solvers by their tolerance.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import ndtr

from diffusion_jax.auditing.rows import Row, audit_entries, failure
from diffusion_jax.core.broadcasting import expand
from diffusion_jax.processes import PROCESSES, EDMProcess, Process
from diffusion_jax.samplers import SAMPLERS, Sampler

WEIGHTS, MEANS = np.array([0.3, 0.5, 0.2]), np.array([-0.8, 0.1, 0.9])
STDS = np.array([0.30, 0.35, 0.25])
NUM = 64
SIZES = (64, 256)
ORDER_TOLERANCE = 0.25
STD = 0.5
PLACES = ("edm", "linear_vp", "flow")
"""Processes of the rows on Gaussian data; a sampler may support only some of them."""


@dataclasses.dataclass(frozen=True)
class _Doubles(EDMProcess):
  """EDM's process whose x_1 is float64, as the fine differences of high orders need it."""

  @property
  def prior_std(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
    return np.float64(self.sigma_max)


def audit_samplers(registry: Mapping[str, Any] = SAMPLERS) -> Iterator[Row]:
  """Yield rows of every registered sampler on EDM's process and, if supported, DDPM's."""
  with jax.enable_x64(True):
    yield from audit_entries(registry, Sampler, "a sampler", _rows)


def _rows(name: str, config: Any) -> Iterator[Row]:
  sampler, fields = config(), {f.name for f in dataclasses.fields(config)}
  served = {process_name: PROCESSES[process_name]() for process_name in PLACES}
  served = {process_name: p for process_name, p in served.items() if _serves(sampler, p)}
  if not served:
    yield failure(name, f"it serves none of {', '.join(PLACES)}")
  if not sampler.stochastic and "edm" in served:
    if sampler.num_evaluations(served["edm"]) is None:
      yield _accuracy(name, config, fields)
    elif "steps" in fields:
      yield _order(name, config, fields)
  for process_name, process in [*served.items()][:2]:
    if sampler.num_evaluations(process) is not None:
      yield _evaluations(f"{name} on {process_name}", sampler, process)
    yield _spread(
      f"{name} on {process_name}", _with(config, fields, steps=200, clip=False), process
    )


def _serves(sampler: Sampler, process: Process) -> bool:
  try:
    sampler.check(process)
  except ValueError:
    return False
  return True


def _with(config: Any, fields: set[str], **values: Any) -> Any:
  """Return the sampler with the given values, except those without a field."""
  return config(**{name: value for name, value in values.items() if name in fields})


def _mixture(process: Process):
  """E[x0 | x_t], each pixel for itself; a sampler's second time does not matter."""

  def denoise(xt, t, end_time=None):
    alpha, sigma = (expand(c, xt[..., None]) for c in process.alpha_sigma(t))
    x, variance = xt[..., None], jnp.square(alpha * STDS) + jnp.square(sigma)
    residual = x - alpha * MEANS
    logits = jnp.log(WEIGHTS) - 0.5 * jnp.log(variance) - 0.5 * jnp.square(residual) / variance
    means = MEANS + alpha * jnp.square(STDS) / variance * residual
    return (jax.nn.softmax(logits) * means).sum(-1)

  return denoise


def _exact(starts: np.ndarray, first: float, last: float) -> np.ndarray:
  """Map x / alpha at noise `first` to the same quantile at `last`, by bisection."""

  def cdf(x: np.ndarray, ratio: float) -> np.ndarray:
    return (WEIGHTS * ndtr((x[:, None] - MEANS) / np.sqrt(STDS**2 + ratio**2))).sum(-1)

  goal, low, high = cdf(starts, first), np.full(NUM, -40.0), np.full(NUM, 40.0)
  for _ in range(100):
    middle = 0.5 * (low + high)
    below = cdf(middle, last) < goal
    low, high = np.where(below, middle, low), np.where(below, high, middle)
  return 0.5 * (low + high)


def _errors(sampler: Any) -> np.ndarray:
  """Return the error of each example at the sampler's end, given its first state."""
  # a sampler that ends at the data takes an Euler step last, which must be short
  ends_at_data = sampler.end_time(_Doubles()) is None
  process = _Doubles(sigma_min=1e-4) if ends_at_data else _Doubles()
  mixture, calls = _mixture(process), []

  def denoise(xt, t, end_time=None):
    jax.debug.callback(lambda x, t: calls.append((np.asarray(x), np.asarray(t))), xt, t)
    return mixture(xt, t)

  # not under jit, so that a loop in Python is not compiled as one large program
  samples = sampler.sample(denoise, process, jax.random.key(0), (NUM, 1))
  x_end = np.asarray(jax.block_until_ready(samples.images))[:, 0]
  jax.effects_barrier()
  x, t = max(calls, key=lambda call: call[1][0])
  end = sampler.end_time(process)
  last = 0.0 if end is None else float(process.alpha_sigma(np.asarray(end))[1])
  return x_end - _exact(x[:, 0], float(process.alpha_sigma(t)[1][0]), last)


def _order(name: str, config: Any, fields: set[str]) -> Row:
  coarse, fine = (
    np.sqrt(np.mean(_errors(_with(config, fields, steps=n, final="min_time", clip=False)) ** 2))
    for n in SIZES
  )
  order = np.log(coarse / fine) / np.log(SIZES[1] / SIZES[0])
  entry = f"{name} on edm, {SIZES[0]} to {SIZES[1]} steps"
  return Row(entry, "order of the error", config().order, float(order), tolerance=ORDER_TOLERANCE)


def _accuracy(name: str, config: Any, fields: set[str]) -> Row:
  """Compare an adaptive solver with the quantile map."""
  sampler = _with(config, fields, rtol=1e-7, atol=1e-7, final="min_time", clip=False)
  worst = float(np.abs(_errors(sampler)).max())
  return Row(f"{name} on edm, tolerance 1e-7", "largest error", 0.0, worst, None, 1e-4)


def _gaussian(process: Process):
  def denoise(xt, t, end_time=None):
    alpha, sigma = (expand(c, xt) for c in process.alpha_sigma(t))
    return alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * xt

  return denoise


def _evaluations(entry: str, sampler: Sampler, process: Process) -> Row:
  """Compare the declared number of network evaluations with the counted one."""
  calls = []

  def denoise(xt, t, end_time=None):
    jax.debug.callback(lambda: calls.append(1))
    return 0.0 * xt

  jax.block_until_ready(sampler.sample(denoise, process, jax.random.key(0), (1, 1)).images)
  jax.effects_barrier()
  expected = sampler.num_evaluations(process)
  assert expected is not None
  return Row(entry, "network evaluations", expected, len(calls))


def _spread(entry: str, sampler: Sampler, process: Process) -> Row:
  """Check the standard deviation of samples of N(0, 1/4) data, 200 steps and 4,096 values."""
  samples = sampler.sample(_gaussian(process), process, jax.random.key(1), (4096, 1))
  values = np.asarray(samples.images)
  error = STD / np.sqrt(2 * len(values))
  # With 200 steps a first-order sampler is off by a few thousandths; this is not a fault.
  quantity = "standard deviation of Gaussian data"
  return Row(entry, quantity, STD, float(values.std()), error, 0.01)
