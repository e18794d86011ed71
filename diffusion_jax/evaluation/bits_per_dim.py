"""Bits/dim over a whole split, with errors that separate the images from the draws."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from diffusion_jax.core import rng
from diffusion_jax.data import Source, full_pass
from diffusion_jax.parallel import sharding
from diffusion_jax.runs.resumable import Chunks
from diffusion_jax.types import GenerativeModel, Params

STREAM = 2**31 + 2
"""Folded into the seed's key, so that an estimate shares no draw with training or samples."""


def make_estimate(generative: GenerativeModel, name: str) -> Callable:
  """A jitted (params, seed, repeat, batch) -> {"bits_per_dim", terms...}, each [B ...]."""
  likelihood = generative.likelihoods[name]

  @jax.jit
  def estimate(params, seed, repeat, batch):
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), STREAM), repeat)
    found = likelihood(params, rng.example_keys(key, batch.index), batch)
    return {"bits_per_dim": found.bits_per_dim, **found.terms}

  return estimate


def run(
  estimate: Callable,
  params: Params,
  source: Source,
  mesh: Mesh,
  chunks: Chunks,
  batch_size: int,
  repeats: int,
  seed: int,
  report: Callable[[int, int], None],
) -> dict[str, Float[np.ndarray, "R N ..."]]:
  """Values of every image under every repeat, [repeats, images, ...], float64.

  Args:
    estimate: from `make_estimate`.
    params: of the model.
    source: the split; each image counts once.
    mesh: the devices.
    chunks: where finished batches are kept.
    batch_size: images of a batch.
    repeats: independent draws an image.
    seed: of the draws.
    report: called with (images done, images in all).
  """
  batch_size = sharding.round_up(min(batch_size, len(source)), mesh)
  per_pass = math.ceil(len(source) / batch_size)
  rows: list[dict[str, np.ndarray]] = []
  for repeat in range(repeats):
    passed = full_pass(source, batch_size, sharding.local_rows(mesh, batch_size))
    for number, batch in enumerate(passed):
      num = min(batch_size, len(source) - number * batch_size)

      def compute(batch=batch, repeat=repeat):
        found = estimate(params, seed, repeat, sharding.put_batch(batch, mesh))
        return {name: sharding.fetch(value) for name, value in found.items()}

      rows.append(chunks.get(repeat * per_pass + number, num, compute))
      report(repeat * len(source) + min((number + 1) * batch_size, len(source)),
             repeats * len(source))  # fmt: skip
  return {name: _stack([r[name] for r in rows], repeats) for name in rows[0]}


def _stack(parts: list[np.ndarray], repeats: int) -> np.ndarray:
  values = np.concatenate(parts).astype(np.float64)
  return values.reshape(repeats, -1, *values.shape[1:])


def summarize(values: Mapping[str, Float[np.ndarray, "R N ..."]]) -> dict[str, Any]:
  """Means and standard errors of `run`'s values, as metrics.json has them.

  The spread of the images' means over repeats holds two parts: that of the images and, over R, that
  of the draws. The latter is measured by the spread between the repeats of an image; what remains
  is the images'. With one repeat the two cannot be told apart, and only their sum is given.
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
  """Standard error of the mean, and the part of it that more repeats would remove."""
  repeats, num = values.shape
  total = None if num < 2 else float(values.mean(0).std(ddof=1) / math.sqrt(num))
  if repeats < 2:
    return total, None
  return total, float(math.sqrt(values.var(0, ddof=1).mean() / (repeats * num)))


def _curve(values: Float[np.ndarray, "R N T"]) -> dict[str, list[float]]:
  num = values.shape[-1]
  return {"t": [(i + 1) / num for i in range(num)], "bits_per_dim": values.mean((0, 1)).tolist()}
