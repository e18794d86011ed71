"""Each denoising loss on Gaussian data: the exact denoiser is where it is least."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from diffusion_jax.auditing import oracles
from diffusion_jax.auditing.rows import Row, failure
from diffusion_jax.losses import DENOISING_LOSSES
from diffusion_jax.processes import PROCESSES, Process

NUM = 2000
STEP = 0.5


def audit_losses(registry: Mapping[str, Any] = DENOISING_LOSSES) -> Iterator[Row]:
  """Rows of every registered loss with its defaults, on each process that serves it."""
  for name, config in registry.items():
    loss = config()
    if not hasattr(loss, "needs_derivative"):
      yield failure(name, "it does not declare needs_derivative")
      continue
    for place in ("linear_vp", "vp", "edm", "flow"):
      process = PROCESSES[place]().create()
      if not (loss.needs_derivative and process.num_timesteps is not None):
        yield _row(f"{name} on {place}", loss, process)


def _row(entry: str, loss: Any, process: Process) -> Row:
  """The scale of the denoiser at which the mean loss is least.

  The loss is a parabola in the scale, a s^2 - 2 b s + c, so the best is b / a = 1 - slope / bend.
  """

  @jax.jit
  def run(scale, keys, x0):
    network = oracles.gaussian_network(process, scale)
    return loss(network, process, {}, keys, x0, None, None)

  keys, x0 = oracles.keys(NUM), oracles.gaussian_images(NUM)
  low, middle, high = (np.float64(run(1.0 + s * STEP, keys, x0)) for s in (-1, 0, 1))
  slope, error = oracles.mean_and_error((high - low) / (2 * STEP))
  bend = float(np.mean(high - 2 * middle + low) / STEP**2)
  return Row(entry, "scale of the best denoiser", 1.0, 1.0 - slope / bend, error / bend)
