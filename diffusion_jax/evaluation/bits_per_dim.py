"""Measure bits/dim over a whole split, with the errors due to images and to draws."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from diffusion_jax.core import rng
from diffusion_jax.core.rng import Stream
from diffusion_jax.data import Source, full_pass
from diffusion_jax.parallel import sharding
from diffusion_jax.runs.resumable import Chunks
from diffusion_jax.types import GenerativeModel, Params


def make_estimate(generative: GenerativeModel, name: str) -> Callable:
  """Return a jitted (params, seed, repeat, batch) -> {"bits_per_dim", terms...} of [B ...]."""
  likelihood = generative.likelihoods[name]

  @jax.jit
  def estimate(params, seed, repeat, batch):
    key = rng.numbered(rng.stream(jax.random.key(seed), Stream.LIKELIHOOD), repeat)
    estimated = likelihood(params, rng.example_keys(key, batch.index), batch)
    return {"bits_per_dim": estimated.bits_per_dim, **estimated.terms}

  return estimate


def estimate_split(
  estimate: Callable,
  params: Params,
  source: Source,
  mesh: Mesh,
  chunks: Chunks,
  batch_size: int,
  repeats: int,
  seed: int,
  report: Callable[[int], None],
) -> dict[str, Float[np.ndarray, "R N ..."]]:
  """Return the values of every image in every repeat, [repeats, images, ...], float64.

  Args:
    estimate: function from `make_estimate`.
    params: parameters of the model.
    source: the split; each image counts once.
    mesh: device mesh.
    chunks: storage of the finished batches.
    batch_size: images per batch.
    repeats: independent draws per image.
    seed: seed of the draws.
    report: function of the number of finished estimates, called during the work.
  """
  batch_size = sharding.round_up(min(batch_size, len(source)), mesh)
  per_pass = math.ceil(len(source) / batch_size)
  batches: list[dict[str, np.ndarray]] = []
  for repeat in range(repeats):
    passed = full_pass(source, batch_size, sharding.local_rows(mesh, batch_size))
    for i, batch in enumerate(passed):
      num_images = min(batch_size, len(source) - i * batch_size)

      def compute(batch=batch, repeat=repeat):
        estimates = estimate(params, seed, repeat, sharding.put_batch(batch, mesh))
        return {name: sharding.fetch(value) for name, value in estimates.items()}

      batches.append(chunks.get(repeat * per_pass + i, num_images, compute))
      report(repeat * len(source) + min((i + 1) * batch_size, len(source)))
  return {name: _stack([r[name] for r in batches], repeats) for name in batches[0]}


def _stack(batches: list[np.ndarray], repeats: int) -> np.ndarray:
  values = np.concatenate(batches).astype(np.float64)
  return values.reshape(repeats, -1, *values.shape[1:])


def summarize_estimates(values: Mapping[str, Float[np.ndarray, "R N ..."]]) -> dict[str, Any]:
  """Compute means and standard errors of `estimate_split`'s values, as in metrics.json.

  The variance of the images' means over R repeats has two parts: the variance between images, and
  the variance of the draws over R. The latter is measured between the repeats of an image; the rest
  is due to the images. With one repeat the two cannot be separated, and only their sum is given.
  """
  bits = values["bits_per_dim"]
  total, draws = standard_errors(bits)
  summary: dict[str, Any] = {
    "bits_per_dim": float(bits.mean()),
    "standard_error": total,
    "standard_error_monte_carlo": draws,
    "standard_error_images": None
    if total is None or draws is None
    else math.sqrt(max(total**2 - draws**2, 0.0)),
    "repeats": len(bits),
    "num_images": bits.shape[1],
    "terms": {},
    "curves": {},
  }
  for name, value in values.items():
    if name == "bits_per_dim":
      continue
    if value.ndim == 2:
      error = standard_errors(value)[0]
      summary["terms"][name] = {"mean": float(value.mean()), "standard_error": error}
    else:
      summary["curves"][name] = _curve(value)
  return summary


def standard_errors(values: Float[np.ndarray, "R N"]) -> tuple[float | None, float | None]:
  """Return the standard error of the mean, and the part that more repeats would remove."""
  repeats, num_images = values.shape
  total = None if num_images < 2 else float(values.mean(0).std(ddof=1) / math.sqrt(num_images))
  if repeats < 2:
    return total, None
  return total, float(math.sqrt(values.var(0, ddof=1).mean() / (repeats * num_images)))


def _curve(values: Float[np.ndarray, "R N T"]) -> dict[str, list[float]]:
  num_steps = values.shape[-1]
  return {
    "t": [(i + 1) / num_steps for i in range(num_steps)],
    "bits_per_dim": values.mean((0, 1)).tolist(),
  }
