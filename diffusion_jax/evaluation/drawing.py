"""Draw the samples of a checkpoint and extract their features, resumably."""

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import UInt8

from diffusion_jax.core import progress
from diffusion_jax.core.pixels import QUANTISATION, to_uint8
from diffusion_jax.evaluation import sample_metrics
from diffusion_jax.evaluation.context import EvaluationContext, SamplerSetting, sampled_fields
from diffusion_jax.extractors import Features
from diffusion_jax.inference import restore as restoring
from diffusion_jax.inference.restore import Average
from diffusion_jax.metrics import FeatureSet
from diffusion_jax.runs.resumable import Chunks, digest, pieces
from diffusion_jax.samplers.grids import AUTO
from diffusion_jax.types import Params

Summary = dict[str, Any]


class CheckpointUnderTest(NamedTuple):
  """A checkpoint to be measured.

  Attributes:
    params: its averaged weights.
    average: name of the average; `made`: its origin if it was combined from stored averages.
    step: step at which it was saved.
    weights: short hash of these weights.
    data: the checkpoint's facts on its training data. They are read once, because a running program
      may delete the checkpoint during the measurement.
    folder: folder of its outcome, eval/step; averages other than the run's first have another one.
    seconds: seconds per part, filled as the parts end.
    stores: stores of finished work, by folder.
  """

  params: Params
  average: Average
  made: Mapping[str, Any] | None
  step: int
  weights: str
  data: Mapping[str, Any]
  folder: Path
  seconds: dict[str, float]
  stores: dict[Path, Chunks]

  @property
  def work(self) -> Path:
    """Return the folder of finished chunks of unfinished work."""
    return self.folder / "work"

  def store(self, folder: Path, facts: Mapping[str, Any]) -> Chunks:
    """Return the store of a folder: always the same, so that it knows what was computed here."""
    if folder not in self.stores:
      self.stores[folder] = Chunks(folder, facts)
    return self.stores[folder]


def restore_average(
  context: EvaluationContext, step: int | None, average: Average
) -> CheckpointUnderTest:
  """Read an average of a checkpoint; None: the newest good one."""
  restored = restoring.restore_weights(
    context.workdir, step, context.mesh, context.generative, average
  )
  folder = context.folder / f"{restored.step}{average.suffix}"
  return CheckpointUnderTest(
    restored.params, average, restored.made, restored.step, digest(dict(restored.facts)),
    restored.meta["data"], folder, {}, {},
  )  # fmt: skip


def say(text: str) -> None:
  """Print a line, on one process only."""
  if jax.process_index() == 0:
    print(text, flush=True)


def seeds(context: EvaluationContext) -> list[int]:
  """Return the seed of each set of samples."""
  return list(range(context.seed, context.seed + context.experiment.eval.num_seeds))


def labels_of(context: EvaluationContext, first: int, num: int) -> np.ndarray | None:
  """Return labels in turn, by the image's number; None for an unconditional model."""
  classes = np.asarray(context.classes, np.int32)
  return classes[(first + np.arange(num)) % len(classes)] if len(classes) else None


def named_labels(context: EvaluationContext) -> str | None:
  """Describe `labels_of` in words."""
  if leaves_classes_out(context):
    return f"classes {','.join(map(str, context.classes))} in turn"
  return "classes in turn" if context.generative.num_classes else None


def sample_facts(
  context: EvaluationContext, checkpoint: CheckpointUnderTest, setting: SamplerSetting, seed: int
) -> Summary:
  """Return everything that a set of samples depends on."""
  return {
    "weights": checkpoint.weights,
    "seed": seed,
    "settings": setting.facts,
    "labels": named_labels(context),
    "quantisation": QUANTISATION,
    "auto_spacing": auto_spacing(setting),
  }


def auto_spacing(setting: SamplerSetting) -> str | None:
  """Return the spacing that spacing=auto selects in this version; None for other settings."""
  return AUTO if setting.facts.get("sampler", {}).get("spacing") == "auto" else None


def sample_store(checkpoint: CheckpointUnderTest, facts: Summary) -> Chunks:
  """Return the store of a set of samples."""
  return checkpoint.store(checkpoint.folder / "samples" / digest(facts), facts)


def draw_samples(
  context: EvaluationContext,
  checkpoint: CheckpointUnderTest,
  setting: SamplerSetting,
  seed: int,
  num: int,
  only: Sequence[int] | None = None,
) -> Iterator[tuple[int, UInt8[np.ndarray, "N H W C"]]]:
  """Yield (number of the chunk, images), drawn or read; image i depends on (seed, i) only.

  Args:
    context, checkpoint, setting, seed: see `sample_facts`.
    num: number of images.
    only: numbers of the chunks to yield, without a line on them; None: all.
  """
  chunks = sample_store(checkpoint, sample_facts(context, checkpoint, setting, seed))
  size, begun, num_new = min(context.experiment.eval.batch_size, num), time.perf_counter(), 0
  chosen = [piece for piece in pieces(num, size) if only is None or piece[0] in only]
  name = f"{_words(setting)}seed {seed}"
  with progress.phase(f"sampling, {name}", num, "images", last_line=False) as phase:
    for chunk, first, count in chosen:

      def compute(first=first, size=size):
        nonlocal num_new
        labels = labels_of(context, first, size)
        fields = sampled_fields(context, first, size)
        images = to_uint8(setting.draw(checkpoint.params, labels, size, seed, first, fields))
        num_new += min(size, num - first)
        return {"images": images, "labels": np.full(size, -1) if labels is None else labels}

      num_before = num_new
      yield chunk, chunks.get(chunk, count, compute)["images"]
      phase.advance(count, num_new > num_before)
  if only is not None:
    return
  num_old = sum(count for chunk, _, count in chosen if chunk not in chunks.made)
  rate = f", {num_new / (time.perf_counter() - begun):,.1f} per second"
  say(f"  {name}: {num:,} of {num:,} samples{_old(num_old)}{rate if num_new else ''}")


def _old(num: int) -> str:
  return f", {num:,} drawn before" if num else ""


def leaves_classes_out(context: EvaluationContext) -> bool:
  return len(context.classes) < context.generative.num_classes


def _words(setting: SamplerSetting) -> str:
  return "".join(f"{name}={value} " for name, value in setting.overrides.items())


def sample_features(
  context: EvaluationContext,
  checkpoint: CheckpointUnderTest,
  setting: SamplerSetting,
  seed: int,
  only: Sequence[int] | None = None,
) -> list[FeatureSet]:
  """Return the features of a seed's samples in each feature space, kept until the end.

  Args:
    context, checkpoint, setting, seed, only: as in `draw_samples`.
  """
  batches: list[list[Features]] = [[] for _ in context.feature_spaces]
  facts, num = sample_facts(context, checkpoint, setting, seed), context.num_samples
  stores = feature_stores(context, checkpoint, facts)
  for chunk, images in draw_samples(context, checkpoint, setting, seed, num, only):
    for store, space, features in zip(stores, context.feature_spaces, batches, strict=True):

      def compute(images=images, space=space):
        arrays = space.extract(images)._asdict()
        return {name: array for name, array in arrays.items() if array is not None}

      features.append(Features(**store.get(chunk, len(images), compute)))
  return [sample_metrics.gather(features) for features in batches]


def feature_stores(
  context: EvaluationContext, checkpoint: CheckpointUnderTest, facts: Summary
) -> list[Chunks]:
  """Return the store of a set of samples' features in each feature space."""
  stores = []
  for space in context.feature_spaces:
    about = {"samples": facts, "extractor": dict(space.extractor.stamp)}
    stores.append(checkpoint.store(checkpoint.work / f"features-{digest(about)}", about))
  return stores
