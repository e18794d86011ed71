"""Each denoising loss on Gaussian data: the exact denoiser is where it is least."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.auditing import oracles
from diffusion_jax.auditing.estimator_rows import learned_bound_bits
from diffusion_jax.auditing.rows import Row, failure
from diffusion_jax.losses import DENOISING_LOSSES, VDM, FullBound, Place
from diffusion_jax.processes import PROCESSES, LinearLogSNR, LinearVP, Process

NUM = 2000
STEP = 0.5
DECLARED = ("needs_derivative", "needs_variance", "objective")


def audit_losses(registry: Mapping[str, Any] = DENOISING_LOSSES) -> Iterator[Row]:
  """Rows of every registered loss with its defaults, on each process that serves it."""
  for name, config in registry.items():
    loss = config()
    missing = [d for d in DECLARED if not hasattr(loss, d)]
    if missing:
      yield failure(name, f"it does not declare {', '.join(missing)}")
      continue
    for place in ("linear_vp", "vp", "edm", "flow"):
      process = PROCESSES[place]()
      has_steps = process.num_timesteps is not None
      if not (loss.needs_derivative if has_steps else loss.needs_variance):
        yield _row(f"{name} on {place}", loss, process)
    if config is VDM:
      yield _continuous(loss)
    if config is FullBound:
      yield from (_unbiased(FullBound(sampling)) for sampling in ("uniform", "importance"))


def _row(entry: str, loss: Any, process: Process) -> Row:
  """The scale of the denoiser at which the mean loss is least.

  The loss is a parabola in the scale, a s^2 - 2 b s + c, so the best is b / a = 1 - slope / bend.
  """

  objective = loss.objective(process, None)
  own = objective.init(jax.random.key(0))
  place = Place(jax.random.key(0), jnp.arange(NUM))

  @jax.jit
  def run(scale, keys, x0):
    network = oracles.gaussian_network(process, scale)
    args = (network, process, {}, own, objective.memory, place, keys, x0, None, None)
    return objective.loss(*args)[0]

  keys, x0 = oracles.keys(NUM), oracles.gaussian_images(NUM)
  low, middle, high = (np.float64(run(1.0 + s * STEP, keys, x0)) for s in (-1, 0, 1))
  slope, error = oracles.mean_and_error((high - low) / (2 * STEP))
  bend = float(np.mean(high - 2 * middle + low) / STEP**2)
  return Row(entry, "scale of the best denoiser", 1.0, 1.0 - slope / bend, error / bend)


def _continuous(loss: VDM) -> Row:
  """The bound in continuous time from one t an image; what the images vary by is taken out."""
  process, num = LinearLogSNR(), 200_000
  network, objective = oracles.gaussian_network(process), loss.objective(process, None)
  place = Place(jax.random.key(0), jnp.arange(num))

  @jax.jit
  def run(keys, x0):
    return objective.loss(network, process, {}, {}, {}, place, keys, x0, None, None)[0]

  x0 = oracles.gaussian_images(num)
  values = np.float64(run(oracles.keys(num), x0)) - oracles.exact_bits(x0)
  above, error = oracles.mean_and_error(values)
  expected = oracles.bound_bits(process.log_snr_max, process.log_snr_min)
  measured = oracles.entropy_bits() + above
  return Row("vdm on linear_log_snr", "bits/dim of the bound", expected, measured, error)


def _unbiased(loss: FullBound) -> Row:
  """The bound from one t an image, its history filled before by as many draws as that takes."""
  process = LinearVP(100, 1e-3, 0.2)
  objective, network = loss.objective(process, None), oracles.gaussian_network(process)
  num = 20_000

  @jax.jit
  def run(memory, key, keys, x0, dropout_key):
    place = Place(key, jnp.arange(num))
    args = (network, process, {}, {}, memory, place, keys, x0, None, dropout_key)
    return objective.loss(*args)

  def on(memory, seed, dropout_key):
    draws = oracles.keys(num, seed), oracles.gaussian_images(num, seed)
    return run(memory, jax.random.key(seed), *draws, dropout_key)

  _, _, memory = on(objective.memory, 3, jax.random.key(0))
  measured, error = oracles.mean_and_error(on(memory, 4, None)[0])
  entry = f"vlb, {loss.sampling} t, on linear_vp of 100 steps"
  return Row(entry, "bits/dim of the bound", learned_bound_bits(process), measured, error)
