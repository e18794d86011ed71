"""Held-out metrics: every example of a split counts once, with standard errors."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from diffusion_jax.core import progress
from diffusion_jax.core.progress import Phase
from diffusion_jax.data import Source, full_pass
from diffusion_jax.likelihood import independent_binary_bits, independent_pixel_bits
from diffusion_jax.parallel import sharding
from diffusion_jax.types import Aux, GenerativeModel, Params


class Figure(NamedTuple):
  """A mean over examples.

  Attributes:
    mean: mean over the split.
    standard_error: standard error of that mean; NaN for a single example.
    num: number of examples.
  """

  mean: float
  standard_error: float
  num: int


def held_out(
  eval_step: Callable[..., Mapping[str, Any]],
  params: Params,
  aux: Aux,
  source: Source,
  mesh: Mesh,
  batch_size: int,
) -> dict[str, Figure]:
  """Run an eval step over a whole split.

  Args:
    eval_step: jitted function (params, aux, batch) -> name -> values [B].
    params, aux: parameters and loss state of the model.
    source: the split.
    mesh: device mesh.
    batch_size: images per batch, at most the split's size, rounded up to a multiple of the devices;
      the last batch is padded and masked.
  """
  batch_size = sharding.round_up(min(batch_size, len(source)), mesh)
  values: dict[str, list[np.ndarray]] = {}
  with progress.phase("held-out pass", len(source), "images") as phase:
    for batch in full_pass(source, batch_size, sharding.local_rows(mesh, batch_size)):
      sent = sharding.put_batch(batch, mesh)
      real = sharding.fetch(sent.mask) > 0
      for name, value in eval_step(params, aux, sent).items():
        values.setdefault(name, []).append(sharding.fetch(value)[real].astype(np.float64))
      phase.advance(int(real.sum()))
  return {name: _figure(np.concatenate(parts)) for name, parts in values.items()}


def _figure(values: np.ndarray) -> Figure:
  spread = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
  return Figure(float(values.mean()), float(spread), len(values))


def baseline_bits(generative: GenerativeModel, train: Source, test: Source) -> float | None:
  """Return the bits/dim of independent pixels at the levels of the model's likelihoods.

  Returns None for a model without likelihoods or for data without levels.
  """
  levels = train.spec.num_levels
  if not generative.likelihoods or levels is None:
    return None
  count = independent_pixel_bits if generative.num_levels == levels else independent_binary_bits
  num = len(train) + len(test)
  with progress.phase("independent-pixel baseline", num, "images") as phase:
    return count(_images(train, phase), _images(test, phase), levels)


def _images(source: Source, phase: Phase, chunk: int = 512) -> Iterator[np.ndarray]:
  for first in range(0, len(source), chunk):
    index = np.arange(first, min(first + chunk, len(source)))
    yield source.gather(index)[0]
    phase.advance(len(index))


def summary_lines(metrics: Mapping[str, Figure], generative: GenerativeModel) -> list[str]:
  """Format lines for people: the loss, then each measured likelihood with its terms."""
  lines = [f"loss {_text(metrics['loss'])}"]
  for name in (n for n in generative.likelihoods if f"{n}/bits_per_dim" in metrics):
    terms = {
      n.removeprefix(f"{name}/"): f"{figure.mean:.4f}"
      for n, figure in metrics.items()
      if n.startswith(f"{name}/") and not n.endswith("/bits_per_dim")
    }
    listed = ", ".join(f"{n} {value}" for n, value in terms.items())
    levels = f" at {generative.num_levels} levels" if generative.num_levels else ""
    lines.append(f"{name} {_text(metrics[f'{name}/bits_per_dim'])} bits/dim{levels} ({listed})")
  return lines


def _text(figure: Figure) -> str:
  return f"{figure.mean:.4f} ± {figure.standard_error:.4f}"


def as_scalars(metrics: Mapping[str, Figure]) -> dict[str, float]:
  """Return scalars for the logs: means by name, standard errors with "_standard_error"."""
  means = {name: figure.mean for name, figure in metrics.items()}
  errors = {f"{n}_standard_error": figure.standard_error for n, figure in metrics.items()}
  return means | errors
