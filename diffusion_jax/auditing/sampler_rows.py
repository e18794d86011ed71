"""Check each sampler: its declared order, its noise and its count of network evaluations.

Deterministic samplers solve the probability-flow ODE of a mixture of three Gaussians in one
dimension. This ODE keeps the order of points, so its exact solution maps quantiles to quantiles.
All samplers must reproduce the spread of Gaussian data.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import ndtr, ndtri

from diffusion_jax.auditing.rows import Row, failure
from diffusion_jax.core.broadcasting import expand
from diffusion_jax.processes import PROCESSES, Process
from diffusion_jax.samplers import SAMPLERS, linear

WEIGHTS, MEANS = np.array([0.3, 0.5, 0.2]), np.array([-0.8, 0.1, 0.9])
STDS = np.array([0.30, 0.35, 0.25])
QUANTILES = (np.arange(64) + 0.5) / 64
SIZES = (64, 256)
ORDER_TOLERANCE = 0.25
DECLARED = ("order", "stochastic", "check", "num_evaluations")
STD = 0.5


def audit_samplers(registry: Mapping[str, Any] = SAMPLERS) -> Iterator[Row]:
  """Yield rows of every registered sampler on EDM's process and, if supported, DDPM's."""
  with jax.enable_x64(True):
    for name, config in registry.items():
      missing = [d for d in DECLARED if not hasattr(config(), d)]
      if missing:
        yield failure(name, f"it does not declare {', '.join(missing)}")
        continue
      yield from _rows(name, config)


def _rows(name: str, config: Any) -> Iterator[Row]:
  process, discrete = PROCESSES["edm"](), PROCESSES["linear_vp"]()
  sampler = config()
  if not hasattr(sampler, "scheme"):
    yield _adaptive(name, sampler, process)
    return
  if not sampler.stochastic:
    yield _order(name, config, process)
  for place, where in (("edm", process), ("linear_vp", discrete)):
    yield _evaluations(f"{name} on {place}", sampler, where)
    yield _spread(f"{name} on {place}", config, where)


def _mixture(process: Process):
  """Return the denoiser E[x0 | x_t] of the mixture, applied to each pixel separately."""

  def denoise(xt, t):
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

  goal, low, high = cdf(starts, first), np.full(64, -40.0), np.full(64, 40.0)
  for _ in range(100):
    middle = 0.5 * (low + high)
    below = cdf(middle, last) < goal
    low, high = np.where(below, middle, low), np.where(below, high, middle)
  return 0.5 * (low + high)


def _error(config: Any, process: Process, steps: int) -> float:
  """Return the RMS error at min_time, starting from the process's first noise level."""
  sampler = config(steps=steps, final="min_time", clip=False)
  grid = sampler.grid(process)
  ratio = [float(grid.sigma[i] / grid.alpha[i]) for i in (0, -1)]
  starts = ratio[0] * ndtri(QUANTILES)
  x = jnp.asarray(float(grid.alpha[0]) * starts)[:, None, None, None]
  found = linear.integrate(sampler.scheme(process, grid), _mixture(process), x).images
  away = np.asarray(found)[:, 0, 0, 0] / float(grid.alpha[-1]) - _exact(starts, *ratio)
  return float(np.sqrt(np.mean(away**2)))


def _order(name: str, config: Any, process: Process) -> Row:
  coarse, fine = (_error(config, process, steps) for steps in SIZES)
  order = np.log(coarse / fine) / np.log(SIZES[1] / SIZES[0])
  entry = f"{name} on edm, {SIZES[0]} to {SIZES[1]} steps"
  return Row(entry, "order of the error", config().order, float(order), tolerance=ORDER_TOLERANCE)


def _gaussian(process: Process):
  def denoise(xt, t):
    alpha, sigma = (expand(c, xt) for c in process.alpha_sigma(t))
    return alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * xt

  return denoise


def _evaluations(entry: str, sampler: Any, process: Process) -> Row:
  """Compare the declared number of network evaluations with the counted one."""
  asked = []

  def denoise(xt, t):
    jax.debug.callback(lambda: asked.append(1))
    return 0.0 * xt

  keys = jax.random.split(jax.random.key(0), 1)
  jax.block_until_ready(sampler(denoise, process, keys, (1, 1, 1)).images)
  jax.effects_barrier()
  return Row(entry, "network evaluations", sampler.num_evaluations(process), len(asked))


def _spread(entry: str, config: Any, process: Process) -> Row:
  """Check the standard deviation of samples of N(0, 1/4) data, 200 steps and 4,096 pixels."""
  sampler = config(steps=200, clip=False)
  keys = jax.random.split(jax.random.key(1), 4096)
  images = np.asarray(jax.jit(
    lambda keys: sampler(_gaussian(process), process, keys, (1, 1, 1)).images)(keys))  # fmt: skip
  error = STD / np.sqrt(2 * len(images))
  # With 200 steps a first-order sampler is off by a few thousandths; this is not a fault.
  return Row(entry, "standard deviation of Gaussian data", STD, float(images.std()), error, 0.01)


def _adaptive(name: str, sampler: Any, process: Process) -> Row:
  """Compare an adaptive solver with the quantile map."""
  solver = type(sampler)(rtol=1e-7, atol=1e-7, final="min_time", clip=False)
  ratio = [float(process.alpha_sigma(np.asarray([t]))[1][0]) for t in (1.0, process.min_time)]
  starts = ratio[0] * ndtri(QUANTILES)
  found = solver.solve(_mixture(process), process, jnp.asarray(starts)[:, None, None, None])
  away = np.asarray(found.images)[:, 0, 0, 0] - _exact(starts, *ratio)
  worst = float(np.abs(away).max())
  return Row(f"{name} on edm, tolerance 1e-7", "largest error", 0.0, worst, None, 1e-4)
