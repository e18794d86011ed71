"""Measure the denoising error by log-SNR on training and held-out images, one noise bank."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from diffusion_jax.core import progress, rng
from diffusion_jax.core.rng import Stream
from diffusion_jax.data import Source, make_batch
from diffusion_jax.parallel import sharding
from diffusion_jax.parallel.spread import jit_spread
from diffusion_jax.runs.resumable import Chunks, pieces
from diffusion_jax.types import GenerativeModel, Params


def make_spectrum(generative: GenerativeModel, mesh: Mesh) -> Callable | None:
  """Return a jitted (params, seed, batch) -> SpectrumEstimate.

  Returns None for a model without noise levels.
  """
  if "loss_by_log_snr" not in generative.capabilities:
    return None

  @functools.partial(jit_spread, mesh=mesh)
  def errors(params, seed, batch):
    key = rng.stream(jax.random.key(seed), Stream.LOSS_BY_LOG_SNR)
    return generative.loss_by_log_snr(params, rng.example_keys(key, batch.index), batch)

  return errors


def mean_errors(
  errors: Callable,
  params: Params,
  source: Source,
  num_images: int,
  mesh: Mesh,
  chunks: Chunks,
  batch_size: int,
  seed: int,
) -> tuple[list[float], dict[str, Any]]:
  """Return the mean error of a split at each log-SNR.

  Args:
    errors: function from `make_spectrum`.
    params: parameters of the model.
    source: the split. Evenly spaced images are used, the i-th with the i-th noise of the bank, so
      that two splits get the same noise.
    num_images: maximum number of images.
    mesh, chunks, batch_size, seed: as in `bits_per_dim.estimate_split`.

  Returns:
    log-SNRs, and means with standard errors over the images.
  """
  num_used = min(num_images, len(source))
  places = np.linspace(0, len(source) - 1, num_used).astype(int)
  size = sharding.round_up(min(batch_size, num_used), mesh)
  batches = []
  with progress.phase(f"loss by noise level, {source.name}", num_used, "images") as phase:
    for chunk, first, count in pieces(num_used, size):

      def compute(first=first):
        index = np.arange(first, first + size)
        batch = make_batch(source, places[np.minimum(index, num_used - 1)], index, index < num_used)
        sent = jax.tree.map(lambda x: sharding.put_rows(x, mesh), batch)
        estimate = errors(params, seed, sent)
        log_snr = np.broadcast_to(sharding.fetch(estimate.log_snr), estimate.eps_mse.shape)
        return {"eps_mse": sharding.fetch(estimate.eps_mse), "log_snr": log_snr}

      batches.append(chunks.get(chunk, count, compute))
      phase.set(first + count)
  mse = np.concatenate([row["eps_mse"] for row in batches]).astype(np.float64)
  spread = mse.std(0, ddof=1) / math.sqrt(num_used) if num_used > 1 else np.zeros(mse.shape[1])
  summary = {
    "eps_mse": mse.mean(0).tolist(),
    "standard_error": spread.tolist(),
    "num_images": num_used,
  }
  return batches[0]["log_snr"][0].astype(float).tolist(), summary
