"""Anchors: the sample metrics of real images, to compare those of samples with."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax import parallel
from diffusion_jax.core import files, progress
from diffusion_jax.core.pixels import as_pictures
from diffusion_jax.data import Source
from diffusion_jax.evaluation import reference, sample_metrics
from diffusion_jax.evaluation.context import EvaluationContext, FeatureSpace
from diffusion_jax.evaluation.foreign_statistics import is_foreign
from diffusion_jax.extractors import Extract
from diffusion_jax.metrics import PACKAGED, FeatureSet, Metric
from diffusion_jax.runs.resumable import digest

SCHEMA = 1
CHUNK = 512

WORDS = {
  "train": "held-out images against training images",
  "test": "training images against held-out images",
}
"""Split of the reference -> description of the measured images."""

Anchors = dict[str, dict[str, Any]]
"""Name -> figure: value, standard_error, num_images, num_reference."""


def measure_anchors(
  context: EvaluationContext, figures: Mapping[str, Mapping[str, Any]]
) -> tuple[Anchors, list[str]]:
  """Return the anchor of each figure, by the figure's name, and a line for each missing one.

  The images are those of the split that the samples are not compared with: as many as there are
  samples, evenly spaced, or all of a smaller split. Metrics of this package are computed once and
  kept beside the statistics of the reference.
  """
  split = context.experiment.eval.reference_split
  other = context.test if split == "train" else context.train
  if other is None:
    return {}, [f"{context.train.name} has no held-out images, so its figures have no anchors"]
  anchors, missing = {}, []
  for space in _own_spaces(context.feature_spaces):
    mine = {
      f["metric"]: name
      for name, f in figures.items()
      if (f["extractor"], f["reference"]) == (space.extractor.name, split)
    }
    chosen = [metric for metric in context.metrics if metric.name in mine]
    measured = _measured(context, space, other, chosen)
    for metric in chosen:
      name, figure = mine[metric.name], measured.get(metric.name)
      if figure is None:
        missing.append(f"anchor of {name}: too few {'held-out ' * (split == 'train')}images")
      else:
        anchors[name] = {"images": WORDS[split], **figure}
  return anchors, missing


def _own_spaces(spaces: Sequence[Any]) -> list[Any]:
  """Return the feature spaces whose reference is a split, without statistics of others."""
  return [space for space in spaces if not is_foreign(space.reference.stamp)]


def _measured(
  context: EvaluationContext, space: FeatureSpace, other: Source, chosen: Sequence[Metric]
) -> Anchors:
  """Return the anchors by metric, from the cache or computed."""
  num = min(len(other), context.num_samples)
  path = _path(context, space, other, num)
  stored = _read(path)
  if parallel.all_true(all(metric.name in stored for metric in chosen)):
    return stored
  images = _extract(other, num, space.extract)  # on every host: each has its own cache
  wanted = [metric for metric in chosen if metric.name not in stored]
  figures, _ = sample_metrics.measure_samples([images], space.reference, space.extractor, wanted)
  new = {f["metric"]: _anchor(f, len(other)) for f in figures.values()}
  kept = {n: f for n, f in (stored | new).items() if n in PACKAGED}
  _write(path, kept)
  return stored | new


def num_to_extract(context: EvaluationContext) -> int:
  """Return the number of images whose features the anchors still need in a feature space."""
  other = context.test if context.experiment.eval.reference_split == "train" else context.train
  if other is None:
    return 0
  num = min(len(other), context.num_samples)
  paths = [_path(context, space, other, num) for space in _own_spaces(context.feature_spaces)]
  return 0 if all(path.is_file() for path in paths) else num


def _path(context: EvaluationContext, space: FeatureSpace, other: Source, num: int) -> Path:
  """Return the file of the anchors of a feature space."""
  name = "test" if context.experiment.eval.reference_split == "train" else "train"
  key = {
    "schema": SCHEMA,
    "reference": dict(space.reference.stamp),
    "images": reference.make_stamp(other, name, space.extractor),
    "num": num,
  }
  return reference.statistics_folder() / f"{key['images']['data']}-anchors-{digest(key)}.json"


def _anchor(figure: Mapping[str, Any], num_there: int) -> dict[str, Any]:
  return {
    "value": figure["value"],
    "standard_error": figure.get("standard_error"),
    "num_images": figure["num_samples"],
    "num_there": num_there,
    "num_reference": figure["num_reference"],
  }


def _extract(source: Source, num: int, extract: Extract) -> FeatureSet:
  """Return the features of evenly spaced images."""
  places = np.linspace(0, len(source) - 1, num).astype(int)
  batches = []
  with progress.phase(f"features of {source.name}, for the anchors", num, "images") as phase:
    for first in range(0, num, CHUNK):
      images = source.gather(places[first : first + CHUNK])[0]
      batches.append(extract(as_pictures(images, source.spec.num_levels)))
      phase.advance(len(images))
  return sample_metrics.gather(batches)


def _read(path: Path) -> Anchors:
  try:
    content = json.loads(path.read_text())
  except (OSError, ValueError):
    return {}
  return content if isinstance(content, dict) else {}


def _write(path: Path, anchors: Anchors) -> None:
  """Store the anchors on each host; infinite values are not JSON, and are computed again."""
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, anchors)
  except (OSError, ValueError):
    return
