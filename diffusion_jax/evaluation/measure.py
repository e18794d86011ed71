"""Measure one checkpoint, resumably: samples, figures, likelihoods, spectrum, sweep."""

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import UInt8

from diffusion_jax import metrics
from diffusion_jax.core.pixels import QUANTISATION, to_uint8
from diffusion_jax.evaluation import bits_per_dim, noise_levels, sample_metrics
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
from diffusion_jax.extractors import Features
from diffusion_jax.inference import restore as restoring
from diffusion_jax.inference.restore import Average
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


def restore_subject(
  bench: EvaluationContext, step: int | None, average: Average
) -> CheckpointUnderTest:
  """Read an average of a checkpoint; None: the newest good one."""
  found = restoring.restore_weights(bench.workdir, step, bench.mesh, bench.generative, average)
  folder = bench.folder / f"{found.step}{average.suffix}"
  return CheckpointUnderTest(
    found.params, average, found.made, found.step, digest(dict(found.facts)), found.meta["data"],
    folder, {},
  )  # fmt: skip


def identity(bench: EvaluationContext, subject: CheckpointUnderTest) -> Summary:
  """Return everything that the figures depend on: work of one identity is done once."""
  config = bench.experiment.to_dict()
  return {
    "weights": subject.weights,
    "config": {n: s for n, s in config.items() if n not in ("logging", "checkpoint", "mesh")},
    "seed": bench.seed,
    "auto_spacing": _auto_spacing(bench.own),
    "sweep": [setting.overrides for setting in bench.sweep],
    "references": [i.reference.stamp for i in bench.instruments],
    **({"classes": list(bench.classes)} if _leaves_classes_out(bench) else {}),
  }


def _leaves_classes_out(bench: EvaluationContext) -> bool:
  return len(bench.classes) < bench.generative.num_classes


def evaluate_checkpoint(bench: EvaluationContext, subject: CheckpointUnderTest) -> Summary:
  """Return the measured parts of metrics.json: figures, likelihoods, spectrum, sweep, ..."""
  found: Summary = {"missing": list(bench.missing)}
  if bench.instruments:
    with _clock(subject, "samples"):
      sets = [_features(bench, subject, bench.own, seed) for seed in seeds(bench)]
    with _clock(subject, "sample metrics"):
      found |= _sample_figures(bench, sets, bench.metrics, found["missing"])
      found |= _memorization(bench, sets)
  with _clock(subject, "likelihoods"):
    found |= _likelihoods(bench, subject)
  with _clock(subject, "spectrum"):
    found |= _spectrum(bench, subject)
  with _clock(subject, "sweep"):
    found |= _sweep(bench, subject)
  return found


@contextlib.contextmanager
def _clock(subject: CheckpointUnderTest, name: str) -> Iterator[None]:
  begun = time.perf_counter()
  yield
  subject.seconds[name] = round(time.perf_counter() - begun, 2)


def say(text: str) -> None:
  """Print a line, on one process only."""
  if jax.process_index() == 0:
    print(text, flush=True)


def seeds(bench: EvaluationContext) -> list[int]:
  """Return the seed of each set of samples."""
  return list(range(bench.seed, bench.seed + bench.experiment.eval.num_seeds))


def labels_of(bench: EvaluationContext, first: int, num: int) -> np.ndarray | None:
  """Return labels in turn, by the image's number; None for an unconditional model."""
  classes = np.asarray(bench.classes, np.int32)
  return classes[(first + np.arange(num)) % len(classes)] if len(classes) else None


def named_labels(bench: EvaluationContext) -> str | None:
  """Describe `labels_of` in words."""
  if _leaves_classes_out(bench):
    return f"classes {','.join(map(str, bench.classes))} in turn"
  return "classes in turn" if bench.generative.num_classes else None


def sample_facts(
  bench: EvaluationContext, subject: CheckpointUnderTest, setting: SamplerSetting, seed: int
) -> Summary:
  """Return everything that a set of samples depends on."""
  return {
    "weights": subject.weights,
    "seed": seed,
    "settings": setting.facts,
    "labels": named_labels(bench),
    "quantisation": QUANTISATION,
    "auto_spacing": _auto_spacing(setting),
  }


def _auto_spacing(setting: SamplerSetting) -> str | None:
  """Return the spacing that spacing=auto selects in this version; None for other settings."""
  return AUTO if setting.facts.get("sampler", {}).get("spacing") == "auto" else None


def draw_samples(
  bench: EvaluationContext,
  subject: CheckpointUnderTest,
  setting: SamplerSetting,
  seed: int,
  num: int,
) -> Iterator[tuple[int, UInt8[np.ndarray, "N H W C"]]]:
  """Yield (number of the chunk, images), drawn or read; image i depends on (seed, i) only."""
  facts = sample_facts(bench, subject, setting, seed)
  chunks = Chunks(subject.folder / "samples" / digest(facts), facts)
  size, begun, new = min(bench.experiment.eval.batch_size, num), time.perf_counter(), 0
  told = begun
  for number, first, count in pieces(num, size):

    def compute(first=first, size=size):
      nonlocal new
      labels = labels_of(bench, first, size)
      fields = sampled_fields(bench, first, size)
      images = to_uint8(setting.draw(subject.params, labels, size, seed, first, fields))
      new += size
      return {"images": images, "labels": np.full(size, -1) if labels is None else labels}

    yield number, chunks.get(number, count, compute)["images"]
    now = time.perf_counter()
    if first + count == num or now - told > 10:
      told, rate = now, f", {new / (now - begun):,.1f} per second" if new else ", all drawn before"
      say(f"  {_words(setting)}seed {seed}: {first + count:,} of {num:,} samples{rate}")


def _words(setting: SamplerSetting) -> str:
  return "".join(f"{name}={value} " for name, value in setting.overrides.items())


def _features(
  bench: EvaluationContext, subject: CheckpointUnderTest, setting: SamplerSetting, seed: int
) -> list[FeatureSet]:
  """Return the features of a seed's samples under each instrument, kept until the end."""
  parts: list[list[Features]] = [[] for _ in bench.instruments]
  facts = sample_facts(bench, subject, setting, seed)
  stores = [_feature_store(subject, facts, instrument) for instrument in bench.instruments]
  for number, images in draw_samples(bench, subject, setting, seed, bench.num_samples):
    for store, instrument, part in zip(stores, bench.instruments, parts, strict=True):

      def compute(images=images, instrument=instrument):
        found = instrument.extract(images)._asdict()
        return {name: value for name, value in found.items() if value is not None}

      part.append(Features(**store.get(number, len(images), compute)))
  return [sample_metrics.gather(part) for part in parts]


def _feature_store(
  subject: CheckpointUnderTest, facts: Summary, instrument: FeatureSpace
) -> Chunks:
  facts = {"samples": facts, "extractor": dict(instrument.extractor.stamp)}
  return Chunks(subject.work / f"features-{digest(facts)}", facts)


def _sample_figures(
  bench: EvaluationContext,
  sets: list[list[FeatureSet]],
  chosen: Sequence[Metric],
  missing: list[str],
) -> Summary:
  found: Summary = {}
  are_named = bench.experiment.eval.metrics != "all"
  for place, instrument in enumerate(bench.instruments):
    own = [features[place] for features in sets]
    rows, lines = sample_metrics.measure_samples(
      own, instrument.reference, instrument.extractor, chosen, are_named
    )
    found |= rows
    missing += lines
  return {"figures": found}


def _memorization(bench: EvaluationContext, sets: list[list[FeatureSet]]) -> Summary:
  """Test whether samples are nearer to the training images than held-out images are."""
  if "test" not in bench.splits:
    return {}
  train, test = bench.splits["train"].features, bench.splits["test"].features
  found = metrics.copying(sets[0][0].pool, train, test)
  return {
    "memorization": {
      "extractor": bench.instruments[0].extractor.name,
      "num_samples": bench.num_samples,
      "samples_to_train": found.samples_to_train._asdict(),
      "test_to_train": found.test_to_train._asdict(),
      "closer_than_test": found.closer_than_test,
      "c_t": found.c_t,
      "verdict": _verdict(found.c_t),
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
  bench: EvaluationContext, subject: CheckpointUnderTest, num: int, neighbours: int
) -> tuple[np.ndarray, np.ndarray] | None:
  """Return the first samples, and for each its nearest training images in feature space."""
  if not bench.instruments:
    return None
  train: Reference = bench.splits["train"]
  images = next(draw_samples(bench, subject, bench.own, bench.seed, bench.num_samples))[1][:num]
  pool = bench.instruments[0].extract(images).pool
  found = metrics.nearest(pool, train.features, neighbours)
  return images, train.places[found.index]


def _likelihoods(bench: EvaluationContext, subject: CheckpointUnderTest) -> Summary:
  options = bench.experiment.eval
  if not bench.estimates:
    return {}
  source = split_of(bench, options.likelihood_split)
  found: Summary = {}
  for name, estimate in bench.estimates.items():
    facts = _estimate_facts(bench, subject, name)
    chunks = Chunks(subject.work / f"{name}-{digest(facts)}", facts)
    values = bits_per_dim.estimate_split(
      estimate, subject.params, source, bench.mesh, chunks, options.batch_size,
      options.likelihood_repeats, bench.seed, _progress(name),
    )  # fmt: skip
    about = {
      "split": options.likelihood_split,
      "num_levels": bench.generative.num_levels,
      "conditional": bool(bench.generative.num_classes),
      "options": facts["options"],
    }
    found[name] = about | bits_per_dim.summarize_estimates(values)
  return {"likelihoods": found} | _baseline(bench)


def _estimate_facts(bench: EvaluationContext, subject: CheckpointUnderTest, name: str) -> Summary:
  config = bench.experiment.to_dict()
  section = name if name in config else name.partition("_")[0]  # iwae_50 belongs to section iwae
  options = config.get(section, {})
  return {
    "weights": subject.weights,
    "split": bench.experiment.eval.likelihood_split,
    "seed": bench.seed,
    "batch_size": bench.experiment.eval.batch_size,
    "settings": bench.own.facts,
    "name": name,
    "options": options,
  }


def _progress(name: str):
  """Print the progress of an estimate, at most every ten seconds."""
  told = time.perf_counter()

  def report(done: int, num: int) -> None:
    nonlocal told
    if done == num or time.perf_counter() - told > 10:
      told = time.perf_counter()
      say(f"  {name}: {done:,} of {num:,} estimates")

  return report


def _baseline(bench: EvaluationContext) -> Summary:
  if bench.test is None or bench.experiment.eval.likelihood_split != "test":
    return {}
  bits = baseline_bits(bench.generative, bench.train, bench.test)
  return {} if bits is None else {"baseline": {"independent_pixels": bits}}


def _spectrum(bench: EvaluationContext, subject: CheckpointUnderTest) -> Summary:
  if bench.errors is None:
    return {}
  found: Summary = {}
  splits: Mapping[str, Any] = {"train": bench.train, "test": bench.test}
  for name, source in splits.items():
    if source is None:
      continue
    facts = {"split": name, **_estimate_facts(bench, subject, "spectrum")}
    chunks = Chunks(subject.work / f"spectrum-{name}-{digest(facts)}", facts)
    found["log_snr"], found[name] = noise_levels.mean_errors(
      bench.errors, subject.params, source, bench.experiment.eval.spectrum_images, bench.mesh,
      chunks, bench.experiment.eval.batch_size, bench.seed,
    )  # fmt: skip
  return {"spectrum": found}


def _sweep(bench: EvaluationContext, subject: CheckpointUnderTest) -> Summary:
  """Measure the figures of each setting with the first seed."""
  rows, chosen = [], [metric for metric in bench.metrics if metric.in_sweeps]
  for setting in bench.sweep if bench.instruments else ():
    sets = [_features(bench, subject, setting, bench.seed)]
    found = _sample_figures(bench, sets, chosen, [])
    rows.append(
      {
        "overrides": dict(setting.overrides),
        "num_evaluations": num_evaluations(
          setting.generative,
          subject.params,
          bench.seed,
          bench.classes,
          sampled_fields(bench, 0, PROBES),
        ),
        "num_samples": bench.num_samples,
        **found,
      }
    )
  return {"sweep": rows} if rows else {}
