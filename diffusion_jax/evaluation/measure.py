"""Measure one checkpoint, resumably: samples, figures, likelihoods, spectrum, sweep."""

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import UInt8

from diffusion_jax import metrics
from diffusion_jax.core import progress
from diffusion_jax.core.pixels import QUANTISATION, to_uint8
from diffusion_jax.evaluation import anchors, bits_per_dim, noise_levels, sample_metrics
from diffusion_jax.evaluation.context import (
  PROBES,
  EvaluationContext,
  FeatureSpace,
  SamplerSetting,
  num_evaluations,
  sampled_fields,
  split_of,
)
from diffusion_jax.evaluation.held_out_pass import baseline_bits
from diffusion_jax.evaluation.reference import Reference
from diffusion_jax.evaluation.timing import clock
from diffusion_jax.extractors import Features
from diffusion_jax.inference import restore as restoring
from diffusion_jax.inference.restore import Average
from diffusion_jax.likelihood import DescribedBase
from diffusion_jax.metrics import FeatureSet, Metric
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
  """

  params: Params
  average: Average
  made: Mapping[str, Any] | None
  step: int
  weights: str
  data: Mapping[str, Any]
  folder: Path
  seconds: dict[str, float]

  @property
  def work(self) -> Path:
    """Return the folder of finished chunks of unfinished work."""
    return self.folder / "work"


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
    restored.meta["data"], folder, {},
  )  # fmt: skip


def identity(context: EvaluationContext, checkpoint: CheckpointUnderTest) -> Summary:
  """Return everything that the figures depend on: work of one identity is done once."""
  config = context.experiment.to_dict()
  return {
    "weights": checkpoint.weights,
    "config": {n: s for n, s in config.items() if n not in ("logging", "checkpoint", "mesh")},
    "seed": context.seed,
    "auto_spacing": _auto_spacing(context.setting),
    "sweep": [setting.overrides for setting in context.sweep],
    "references": [i.reference.stamp for i in context.feature_spaces],
    **({"classes": list(context.classes)} if _leaves_classes_out(context) else {}),
  }


def _leaves_classes_out(context: EvaluationContext) -> bool:
  return len(context.classes) < context.generative.num_classes


def evaluate_checkpoint(context: EvaluationContext, checkpoint: CheckpointUnderTest) -> Summary:
  """Return the measured parts of metrics.json: figures, likelihoods, spectrum, sweep, ..."""
  results: Summary = {"missing": list(context.missing)}
  if context.feature_spaces:
    with clock(checkpoint.seconds, "samples"):
      sets = [_features(context, checkpoint, context.setting, seed) for seed in seeds(context)]
    with clock(checkpoint.seconds, "sample metrics"):
      results |= _sample_figures(context, sets, context.metrics, results["missing"])
      results |= _memorization(context, sets)
    with clock(checkpoint.seconds, "anchors"):
      results["anchors"], lines = anchors.measure_anchors(context, results["figures"])
      results["missing"] += lines
  with clock(checkpoint.seconds, "likelihoods"):
    results |= _likelihoods(context, checkpoint)
  with clock(checkpoint.seconds, "spectrum"):
    results |= _spectrum(context, checkpoint)
  with clock(checkpoint.seconds, "sweep"):
    results |= _sweep(context, checkpoint)
  return results


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
  if _leaves_classes_out(context):
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
    "auto_spacing": _auto_spacing(setting),
  }


def _auto_spacing(setting: SamplerSetting) -> str | None:
  """Return the spacing that spacing=auto selects in this version; None for other settings."""
  return AUTO if setting.facts.get("sampler", {}).get("spacing") == "auto" else None


def draw_samples(
  context: EvaluationContext,
  checkpoint: CheckpointUnderTest,
  setting: SamplerSetting,
  seed: int,
  num: int,
) -> Iterator[tuple[int, UInt8[np.ndarray, "N H W C"]]]:
  """Yield (number of the chunk, images), drawn or read; image i depends on (seed, i) only."""
  facts = sample_facts(context, checkpoint, setting, seed)
  chunks = Chunks(checkpoint.folder / "samples" / digest(facts), facts)
  size, begun, num_new = min(context.experiment.eval.batch_size, num), time.perf_counter(), 0
  name = f"{_words(setting)}seed {seed}"
  with progress.phase(f"sampling, {name}", num, "images", last_line=False) as phase:
    for chunk, first, count in pieces(num, size):

      def compute(first=first, size=size):
        nonlocal num_new
        labels = labels_of(context, first, size)
        fields = sampled_fields(context, first, size)
        images = to_uint8(setting.draw(checkpoint.params, labels, size, seed, first, fields))
        num_new += min(size, num - first)
        return {"images": images, "labels": np.full(size, -1) if labels is None else labels}

      yield chunk, chunks.get(chunk, count, compute)["images"]
      phase.set(first + count)
  rate = f", {num_new / (time.perf_counter() - begun):,.1f} per second"
  say(f"  {name}: {num:,} of {num:,} samples{_old(num - num_new)}{rate if num_new else ''}")


def _old(num: int) -> str:
  return f", {num:,} drawn before" if num else ""


def _tell_restored(name: str, chunks: Chunks) -> None:
  if chunks.num_restored:
    say(f"  {name}: {chunks.num_restored:,} of its batches were measured before")


def _words(setting: SamplerSetting) -> str:
  return "".join(f"{name}={value} " for name, value in setting.overrides.items())


def _features(
  context: EvaluationContext, checkpoint: CheckpointUnderTest, setting: SamplerSetting, seed: int
) -> list[FeatureSet]:
  """Return the features of a seed's samples in each feature space, kept until the end."""
  batches: list[list[Features]] = [[] for _ in context.feature_spaces]
  facts = sample_facts(context, checkpoint, setting, seed)
  stores = [_feature_store(checkpoint, facts, space) for space in context.feature_spaces]
  for chunk, images in draw_samples(context, checkpoint, setting, seed, context.num_samples):
    for store, space, features in zip(stores, context.feature_spaces, batches, strict=True):

      def compute(images=images, space=space):
        arrays = space.extract(images)._asdict()
        return {name: array for name, array in arrays.items() if array is not None}

      features.append(Features(**store.get(chunk, len(images), compute)))
  return [sample_metrics.gather(features) for features in batches]


def _feature_store(
  checkpoint: CheckpointUnderTest, facts: Summary, feature_space: FeatureSpace
) -> Chunks:
  facts = {"samples": facts, "extractor": dict(feature_space.extractor.stamp)}
  return Chunks(checkpoint.work / f"features-{digest(facts)}", facts)


def _sample_figures(
  context: EvaluationContext,
  sets: list[list[FeatureSet]],
  chosen: Sequence[Metric],
  missing: list[str],
) -> Summary:
  figures: Summary = {}
  are_named = context.experiment.eval.metrics != "all"
  for i, space in enumerate(context.feature_spaces):
    features = [of_seed[i] for of_seed in sets]
    measured, lines = sample_metrics.measure_samples(
      features, space.reference, space.extractor, chosen, are_named
    )
    figures |= measured
    missing += lines
  return {"figures": figures}


def _memorization(context: EvaluationContext, sets: list[list[FeatureSet]]) -> Summary:
  """Test whether samples are nearer to the training images than held-out images are."""
  if "test" not in context.splits:
    return {}
  train, test = context.splits["train"].features, context.splits["test"].features
  with progress.phase("copying test"):
    copied = metrics.copying(sets[0][0].pool, train, test)
  return {
    "memorization": {
      "extractor": context.feature_spaces[0].extractor.name,
      "num_samples": context.num_samples,
      "samples_to_train": copied.samples_to_train._asdict(),
      "test_to_train": copied.test_to_train._asdict(),
      "closer_than_test": copied.closer_than_test,
      "c_t": copied.c_t,
      "verdict": _verdict(copied.c_t),
    }
  }


def _verdict(c_t: float) -> str:
  """Return the verdict in words, with the test's own threshold of 3 standard deviations."""
  if c_t < -3:
    return "samples are closer to the training images than held-out images: copying"
  if c_t > 3:
    return "samples are farther from the training images than held-out images: no copying"
  return "samples are as far from the training images as held-out images"


def nearest_training_images(
  context: EvaluationContext, checkpoint: CheckpointUnderTest, num: int, neighbours: int
) -> tuple[np.ndarray, np.ndarray] | None:
  """Return the first samples, and for each its nearest training images in feature space."""
  if not context.feature_spaces:
    return None
  train: Reference = context.splits["train"]
  samples = draw_samples(context, checkpoint, context.setting, context.seed, context.num_samples)
  images = next(samples)[1][:num]
  pool = context.feature_spaces[0].extract(images).pool
  nearest = metrics.nearest(pool, train.features, neighbours)
  return images, train.places[nearest.index]


def _likelihoods(context: EvaluationContext, checkpoint: CheckpointUnderTest) -> Summary:
  options = context.experiment.eval
  if not context.estimates:
    return {}
  source = split_of(context, options.likelihood_split)
  likelihoods: Summary = {}
  for name, estimate in context.estimates.items():
    facts = _estimate_facts(context, checkpoint, name)
    chunks = Chunks(checkpoint.work / f"{name}-{digest(facts)}", facts)
    num = len(source) * options.likelihood_repeats
    with progress.phase(f"likelihood {name}", num, "estimates") as phase:
      values = bits_per_dim.estimate_split(
        estimate, checkpoint.params, source, context.mesh, chunks, options.batch_size,
        options.likelihood_repeats, context.seed, phase.set,
      )  # fmt: skip
    _tell_restored(name, chunks)
    declared = context.generative.described_likelihoods.get(name, DescribedBase())
    about = {
      "description": declared.description,
      "card": declared.card,
      "split": options.likelihood_split,
      "num_levels": context.generative.num_levels,
      "conditional": bool(context.generative.num_classes),
      "options": facts["options"],
    }
    likelihoods[name] = about | bits_per_dim.summarize_estimates(values)
  return {"likelihoods": likelihoods} | _baseline(context)


def _estimate_facts(
  context: EvaluationContext, checkpoint: CheckpointUnderTest, name: str
) -> Summary:
  estimator = context.generative.described_likelihoods.get(name)
  sections = context.experiment.sections.items()  # iwae_50 belongs to section iwae
  section = next((n for n, part in sections if part is estimator), None)
  options = {} if section is None else context.experiment.to_dict()[section]
  return {
    "weights": checkpoint.weights,
    "split": context.experiment.eval.likelihood_split,
    "seed": context.seed,
    "batch_size": context.experiment.eval.batch_size,
    "settings": context.setting.facts,
    "name": name,
    "options": options,
  }


def _baseline(context: EvaluationContext) -> Summary:
  if context.test is None or context.experiment.eval.likelihood_split != "test":
    return {}
  bits = baseline_bits(context.generative, context.train, context.test)
  return {} if bits is None else {"baseline": {"independent_pixels": bits}}


def _spectrum(context: EvaluationContext, checkpoint: CheckpointUnderTest) -> Summary:
  if context.errors is None:
    return {}
  spectrum: Summary = {}
  options = context.experiment.eval
  splits: Mapping[str, Any] = {"train": context.train, "test": context.test}
  for name, source in splits.items():
    if source is None:
      continue
    facts = {"split": name, **_estimate_facts(context, checkpoint, "spectrum")}
    chunks = Chunks(checkpoint.work / f"spectrum-{name}-{digest(facts)}", facts)
    spectrum["log_snr"], spectrum[name] = noise_levels.mean_errors(
      context.errors, checkpoint.params, source, options.spectrum_images, context.mesh, chunks,
      options.batch_size, context.seed,
    )  # fmt: skip
    _tell_restored(f"spectrum, {name}", chunks)
  return {"spectrum": spectrum}


def _sweep(context: EvaluationContext, checkpoint: CheckpointUnderTest) -> Summary:
  """Measure the figures of each setting with the first seed."""
  rows, chosen = [], [metric for metric in context.metrics if metric.in_sweeps]
  for setting in context.sweep if context.feature_spaces else ():
    sets = [_features(context, checkpoint, setting, context.seed)]
    figures = _sample_figures(context, sets, chosen, [])
    rows.append(
      {
        "overrides": dict(setting.overrides),
        "num_evaluations": num_evaluations(
          setting.generative,
          checkpoint.params,
          context.seed,
          context.classes,
          sampled_fields(context, 0, PROBES),
        ),
        "num_samples": context.num_samples,
        **figures,
      }
    )
  return {"sweep": rows} if rows else {}
