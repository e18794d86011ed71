"""Measure bits/dim over a whole split, with the errors due to images and to draws."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int, Int32, Num

from diffusion_jax.core import rng
from diffusion_jax.core.rng import Stream
from diffusion_jax.data import Source, SourceBase, full_pass
from diffusion_jax.parallel import sharding
from diffusion_jax.parallel.spread import jit_spread
from diffusion_jax.runs.resumable import Chunks
from diffusion_jax.types import GenerativeModel, Params


def make_estimate(generative: GenerativeModel, name: str, mesh: Mesh) -> Callable:
  """Return a jitted (params, seed, repeat, batch) -> {"bits_per_dim", terms...} of [B ...]."""
  likelihood = generative.likelihoods[name]

  @functools.partial(jit_spread, mesh=mesh)
  def estimate(params, seed, repeat, batch):
    key = rng.numbered(rng.stream(jax.random.key(seed), Stream.LIKELIHOOD), repeat)
    estimated = likelihood(params, rng.example_keys(key, batch.index), batch)
    return {"bits_per_dim": estimated.bits_per_dim, **estimated.terms}

  return estimate


class SplitEstimate(NamedTuple):
  """The estimates of a split: every image once in each repeat.

  Attributes:
    params: parameters of the model.
    source: the split, or a part of it.
    mesh: device mesh.
    chunks: storage of the finished batches.
    batch_size: images per batch, at most the split's size; rounded up to a multiple of the devices.
    repeats: independent draws per image.
    seed: seed of the draws.
  """

  params: Params
  source: Source
  mesh: Mesh
  chunks: Chunks
  batch_size: int
  repeats: int
  seed: int

  @property
  def size(self) -> int:
    """Return the number of images per batch."""
    return sharding.round_up(min(self.batch_size, len(self.source)), self.mesh)


def num_batches(split: SplitEstimate) -> int:
  """Return the number of batches of all repeats."""
  return split.repeats * math.ceil(len(split.source) / split.size)


def estimate_batch(estimate: Callable, split: SplitEstimate, number: int) -> dict[str, np.ndarray]:
  """Return the values of one batch, from the disk or computed.

  Args:
    estimate: function from `make_estimate`.
    split: the images.
    number: number of the batch, counted over the repeats.
  """
  size, mesh = split.size, split.mesh
  repeat, place = divmod(number, math.ceil(len(split.source) / size))
  first = place * size

  def compute():
    batch = next(full_pass(split.source, size, sharding.local_rows(mesh, size), first))
    estimates = estimate(split.params, split.seed, repeat, sharding.put_batch(batch, mesh))
    return {name: sharding.fetch(value) for name, value in estimates.items()}

  return split.chunks.get(number, min(size, len(split.source) - first), compute)


def estimate_split(
  estimate: Callable, split: SplitEstimate, report: Callable[[int, bool], None]
) -> dict[str, Float[np.ndarray, "R N ..."]]:
  """Return the values of every image in every repeat, [repeats, images, ...], float64.

  Args:
    estimate: function from `make_estimate`.
    split: the images.
    report: called after each batch with its number of estimates, and whether they are new.
  """
  batches: list[dict[str, np.ndarray]] = []
  missing = set(split.chunks.missing(range(num_batches(split))))
  for number in range(num_batches(split)):
    batches.append(estimate_batch(estimate, split, number))
    report(len(batches[-1]["bits_per_dim"]), number in missing)
  return {name: _stack([r[name] for r in batches], split.repeats) for name in batches[0]}


class EvenlySpaced(SourceBase):
  """Evenly spaced images of a split.

  Args:
    source: the split.
    num: number of images, at most those of the split.
  """

  def __init__(self, source: Source, num: int):
    self.name, self.spec, self.about = source.name, source.spec, source.about
    self._source = source
    self._places = np.linspace(0, len(source) - 1, min(num, len(source))).astype(int)

  def __len__(self) -> int:
    return len(self._places)

  def gather(
    self, index: Int[np.ndarray, "B"]
  ) -> tuple[Num[np.ndarray, "B ..."], Int32[np.ndarray, "B"]]:
    return self._source.gather(self._places[index])

  def gather_fields(self, index: Int[np.ndarray, "B"]) -> Mapping[str, Num[np.ndarray, "B ..."]]:
    return self._source.gather_fields(self._places[index])


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
