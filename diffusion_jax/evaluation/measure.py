"""Measure one checkpoint, resumably: samples, figures, likelihoods, spectrum, sweep."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from diffusion_jax import metrics
from diffusion_jax.core import progress
from diffusion_jax.data import Source
from diffusion_jax.evaluation import anchors, bits_per_dim, noise_levels, sample_metrics
from diffusion_jax.evaluation.bits_per_dim import EvenlySpaced, SplitEstimate
from diffusion_jax.evaluation.context import (
  EvaluationContext,
  sampled_fields,
  split_of,
)
from diffusion_jax.evaluation.drawing import (
  CheckpointUnderTest,
  Summary,
  auto_spacing,
  draw_samples,
  leaves_classes_out,
  sample_features,
  say,
  seeds,
)
from diffusion_jax.evaluation.held_out_pass import baseline_bits
from diffusion_jax.evaluation.reference import Reference
from diffusion_jax.evaluation.sampling_cost import PROBES, num_evaluations
from diffusion_jax.evaluation.timing import clock
from diffusion_jax.likelihood import DescribedBase
from diffusion_jax.metrics import FeatureSet, Metric
from diffusion_jax.runs.resumable import Chunks, digest


def identity(context: EvaluationContext, checkpoint: CheckpointUnderTest) -> Summary:
  """Return everything that the figures depend on: work of one identity is done once."""
  config = context.experiment.to_dict()
  return {
    "weights": checkpoint.weights,
    "config": {n: s for n, s in config.items() if n not in ("logging", "checkpoint", "mesh")},
    "seed": context.seed,
    "auto_spacing": auto_spacing(context.setting),
    "sweep": [setting.overrides for setting in context.sweep],
    "references": [i.reference.stamp for i in context.feature_spaces],
    **({"classes": list(context.classes)} if leaves_classes_out(context) else {}),
  }


def evaluate_checkpoint(context: EvaluationContext, checkpoint: CheckpointUnderTest) -> Summary:
  """Return the measured parts of metrics.json: figures, likelihoods, spectrum, sweep, ..."""
  results: Summary = {"missing": list(context.missing)}
  if context.feature_spaces:
    with clock(checkpoint.seconds, "samples"):
      sets = [
        sample_features(context, checkpoint, context.setting, seed) for seed in seeds(context)
      ]
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


def _tell_restored(name: str, chunks: Chunks) -> None:
  if chunks.num_restored:
    say(f"  {name}: {chunks.num_restored:,} of its batches were measured before")


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
  likelihoods: Summary = {}
  for name, estimate in context.estimates.items():
    split = likelihood_split(context, checkpoint, name)
    num = len(split.source) * options.likelihood_repeats
    with progress.phase(f"likelihood {name}", num, "estimates") as phase:
      values = bits_per_dim.estimate_split(estimate, split, phase.advance)
    _tell_restored(name, split.chunks)
    declared = context.generative.described_likelihoods.get(name, DescribedBase())
    about = {
      "description": declared.description,
      "card": declared.card,
      "split": options.likelihood_split,
      "num_levels": context.generative.num_levels,
      "conditional": bool(context.generative.num_classes),
      "options": _estimate_facts(context, checkpoint, name)["options"],
    }
    likelihoods[name] = about | bits_per_dim.summarize_estimates(values)
  return {"likelihoods": likelihoods} | _baseline(context)


def likelihood_split(
  context: EvaluationContext, checkpoint: CheckpointUnderTest, name: str
) -> SplitEstimate:
  """Return the images on which a likelihood is measured, with their store."""
  options = context.experiment.eval
  source: Source = split_of(context, options.likelihood_split)
  facts = _estimate_facts(context, checkpoint, name)
  if options.likelihood_images is not None:
    source = EvenlySpaced(source, options.likelihood_images)
    facts["images"] = len(source)
  chunks = checkpoint.store(checkpoint.work / f"{name}-{digest(facts)}", facts)
  return SplitEstimate(
    checkpoint.params, source, context.mesh, chunks, options.batch_size,
    options.likelihood_repeats, context.seed,
  )  # fmt: skip


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
    chunks = checkpoint.store(checkpoint.work / f"spectrum-{name}-{digest(facts)}", facts)
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
    sets = [sample_features(context, checkpoint, setting, context.seed)]
    figures = _sample_figures(context, sets, chosen, [])
    rows.append(
      {
        "overrides": dict(setting.overrides),
        "num_evaluations": num_evaluations(
          setting.generative,
          checkpoint.params,
          context.mesh,
          context.seed,
          context.classes,
          sampled_fields(context, 0, PROBES),
        ),
        "num_samples": context.num_samples,
        **figures,
      }
    )
  return {"sweep": rows} if rows else {}
