"""The time that an evaluation will take, from two batches of each part of it.

The first batch of a part also compiles its program, and the second shows what every other one
costs. Both are kept on disk as finished work, so nothing is computed twice.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from diffusion_jax.core import progress
from diffusion_jax.core.wording import duration
from diffusion_jax.evaluation import anchors, bits_per_dim, drawing, measure
from diffusion_jax.evaluation.context import EvaluationContext, SamplerSetting
from diffusion_jax.evaluation.drawing import CheckpointUnderTest
from diffusion_jax.runs.resumable import Chunks, pieces


class Work(NamedTuple):
  """One kind of batches that an evaluation needs.

  Attributes:
    part: name in the printed line; several kinds may share one.
    missing: numbers of the batches that are not on disk.
    run: function that computes the batch of a number and keeps it.
    more: number of further batches of the same cost that are not kept.
  """

  part: str
  missing: Sequence[int]
  run: Callable[[int], Any]
  more: int = 0


def tell_expected_time(
  context: EvaluationContext,
  checkpoint: CheckpointUnderTest,
  now: Callable[[], float] = time.perf_counter,
) -> None:
  """Print the expected time of a checkpoint's evaluation and of its parts, in one line."""
  seconds = expected_seconds(works_of(context, checkpoint), now)
  if not seconds:
    return
  listed = ", ".join(f"{part} {duration(sec)}" for part, sec in seconds.items())
  total = duration(sum(seconds.values()))
  drawing.say(f"step {checkpoint.step:,}: expected time about {total} ({listed})")


def expected_seconds(works: Sequence[Work], now: Callable[[], float]) -> Mapping[str, float]:
  """Return the seconds of each part: the first batch, and the second times all others.

  Args:
    works: the batches; the first two that are missing of each are computed here.
    now: clock, in seconds.
  """
  seconds: dict[str, float] = {}
  for work in works:
    first = work.missing[:2]
    if not first:
      continue
    name = f"{work.part}, first batches"
    with progress.phase(name, len(first), "batches", last_line=False) as phase:
      for i, number in enumerate(first):
        begun = now()
        work.run(number)
        times = 1 if i == 0 else len(work.missing) - 1 + work.more
        seconds[work.part] = seconds.get(work.part, 0.0) + times * (now() - begun)
        phase.advance()
  return seconds


def works_of(context: EvaluationContext, checkpoint: CheckpointUnderTest) -> list[Work]:
  """Return the batches of the samples, their features and the likelihoods, and of a sweep."""
  works = []
  if context.feature_spaces:
    settings = [(context.setting, seed, "") for seed in drawing.seeds(context)]
    settings += [(setting, context.seed, " of the sweep") for setting in context.sweep]
    for setting, seed, suffix in settings:
      works += _sampling(context, checkpoint, setting, seed, suffix)
    size = min(context.experiment.eval.batch_size, context.num_samples)
    works[1] = works[1]._replace(more=math.ceil(anchors.num_to_extract(context) / size))
  for name, estimate in context.estimates.items():
    split = measure.likelihood_split(context, checkpoint, name)
    every = range(bits_per_dim.num_batches(split))
    run = lambda i, estimate=estimate, split=split: bits_per_dim.estimate_batch(estimate, split, i)  # noqa: E731
    works.append(Work("likelihoods", split.chunks.missing(every), run))
  return works


def _sampling(
  context: EvaluationContext,
  checkpoint: CheckpointUnderTest,
  setting: SamplerSetting,
  seed: int,
  suffix: str,
) -> list[Work]:
  """Return the batches of one set of samples and of their features in each feature space."""
  size = min(context.experiment.eval.batch_size, context.num_samples)
  every = [number for number, *_ in pieces(context.num_samples, size)]
  facts = drawing.sample_facts(context, checkpoint, setting, seed)

  def draw(number: int) -> Any:
    num = context.num_samples
    return list(drawing.draw_samples(context, checkpoint, setting, seed, num, [number]))

  def extract(number: int) -> Any:
    return drawing.sample_features(context, checkpoint, setting, seed, [number])

  stores: list[Chunks] = drawing.feature_stores(context, checkpoint, facts)
  extracted = sorted({number for store in stores for number in store.missing(every)})
  samples = drawing.sample_store(checkpoint, facts)
  return [
    Work(f"samples{suffix}", samples.missing(every), draw),
    Work(f"features{suffix}", extracted, extract),
  ]
