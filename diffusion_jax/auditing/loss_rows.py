"""Check on Gaussian data that the exact denoiser minimises each denoising loss."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.auditing import oracles
from diffusion_jax.auditing.estimator_rows import learned_bound_bits
from diffusion_jax.auditing.rows import Row, audit_entries
from diffusion_jax.losses import DENOISING_LOSSES, VDM, FullBound, Loss
from diffusion_jax.processes import PROCESSES, LinearLogSNR, LinearVP, Process
from diffusion_jax.types import Examples

NUM = 2000
STEP = 0.5


def audit_losses(registry: Mapping[str, Any] = DENOISING_LOSSES) -> Iterator[Row]:
  """Yield the rows of every registered loss with its defaults, on each process it supports."""
  yield from audit_entries(registry, Loss, "a loss", _rows)


def _rows(name: str, config: Any) -> Iterator[Row]:
  loss = config()
  for process_name in ("linear_vp", "vp", "edm", "flow"):
    process = PROCESSES[process_name]()
    has_steps = process.num_timesteps is not None
    if not (loss.needs_derivative if has_steps else loss.needs_variance):
      yield _row(f"{name} on {process_name}", loss, process)
  if config is VDM:
    yield _continuous(loss)
  if config is FullBound:
    yield from (_unbiased(FullBound(sampling)) for sampling in ("uniform", "importance"))


def _row(entry: str, loss: Loss, process: Process) -> Row:
  """Check that the mean loss is least when the denoiser is scaled by 1.

  The best scale is found by one secant step from 1, which is exact if the loss is quadratic in the
  scale. For a loss with another minimum, check only that values and slopes are finite.
  """
  loss_params = loss.init(jax.random.key(0))
  average = oracles.gaussian_denoiser(process) if loss.needs_average else None

  @jax.jit
  def run(scale, keys, x0):
    def values(scale):
      model = oracles.gaussian_denoiser(process, scale)
      state = loss.initial_state(process)
      examples = Examples(x0)
      return loss(
        model, examples, keys, average=average, state=state, loss_params=loss_params
      ).values

    return jax.jvp(values, (scale,), (jnp.ones_like(scale),))

  keys, x0 = oracles.keys(NUM), oracles.gaussian_images(NUM)
  values_and_slopes = [run(jnp.float32(1.0 + s * STEP), keys, x0) for s in (-1, 0, 1)]
  if not loss.minimised_by_mean:
    finite_fraction = float(np.mean([np.isfinite(v) for pair in values_and_slopes for v in pair]))
    return Row(entry, "share of values and slopes that are finite", 1.0, finite_fraction)
  low, middle, high = (np.float64(slope) for _, slope in values_and_slopes)
  slope, error = oracles.mean_and_error(middle)
  bend = float(np.mean(high - low)) / (2 * STEP)
  return Row(entry, "scale of the best denoiser", 1.0, 1.0 - slope / bend, error / bend)


def _continuous(loss: VDM) -> Row:
  """Compare the continuous-time bound, with one time per example, with its closed form.

  The variation between the data is subtracted.
  """
  process, n = LinearLogSNR(), 200_000
  model = oracles.gaussian_denoiser(process)
  x0 = oracles.gaussian_images(n)
  values = jax.jit(lambda keys, x0: loss(model, Examples(x0), keys).values)(oracles.keys(n), x0)
  above, error = oracles.mean_and_error(np.float64(values) - oracles.exact_bits(x0))
  expected = oracles.bound_bits(process.log_snr_max, process.log_snr_min)
  measured = oracles.entropy_bits() + above
  return Row("vdm on linear_log_snr", "bits/dim of the bound", expected, measured, error)


def _unbiased(loss: FullBound) -> Row:
  """Compare the bound from one t per example with its closed form, once its history is full."""
  process = LinearVP(100, 1e-3, 0.2)
  model, n = oracles.gaussian_denoiser(process), 20_000

  @jax.jit
  def run(state, key, keys, x0, dropout_key):
    examples = Examples(x0, step_key=key)
    return loss(model, examples, keys, state=state, dropout_key=dropout_key)

  def on(state, seed, dropout_key):
    draws = oracles.keys(n, seed), oracles.gaussian_images(n, seed)
    return run(state, jax.random.key(seed), *draws, dropout_key)

  state = on(loss.initial_state(process), 3, jax.random.key(0)).state
  measured, error = oracles.mean_and_error(on(state, 4, None).values)
  entry = f"vlb, {loss.sampling} t, on linear_vp of 100 steps"
  return Row(entry, "bits/dim of the bound", learned_bound_bits(process), measured, error)
