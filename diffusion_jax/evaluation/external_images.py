"""Measure images from any program against a data set, other images or statistics."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np

from diffusion_jax import __version__
from diffusion_jax.core import files, npz, progress
from diffusion_jax.core.files import bucket_path
from diffusion_jax.core.pixels import as_pictures
from diffusion_jax.data import Source, load_pictures, with_channels
from diffusion_jax.data.archives import find_archive
from diffusion_jax.evaluation import (
  foreign_statistics,
  metrics_json,
  reference,
  results,
  sample_metrics,
)
from diffusion_jax.evaluation.context import EXTRACT_BATCH
from diffusion_jax.evaluation.drawing import Summary, say
from diffusion_jax.evaluation.foreign_statistics import ForeignStatistics
from diffusion_jax.evaluation.reference import Reference
from diffusion_jax.evaluation.requests import vision_flags
from diffusion_jax.extractors import (
  VISION,
  Extract,
  Extractor,
  load_domain,
  load_inception,
  make_extract,
  optional_inception,
  optional_vision,
)
from diffusion_jax.extractors.domain import default_features_path
from diffusion_jax.metrics import Metric, create_metrics
from diffusion_jax.parallel import sharding
from diffusion_jax.runs import provenance
from diffusion_jax.types import UserError

CHUNK = 512


class Against(NamedTuple):
  """The reference for the images: exactly one of the three.

  Attributes:
    path: a folder, an .npz of images, or statistics, also of other programs.
    source, split: a split of a data set, and its name.
    metrics: names of the metrics to measure, or all.
  """

  path: Path | None = None
  source: Source | None = None
  split: str = "given"
  metrics: Literal["all"] | Sequence[str] = "all"


class Comparison(NamedTuple):
  """Images and their reference under one extractor.

  Attributes:
    extractor: feature network.
    samples: images to measure.
    other: images or statistics, with the samples' number of channels.
  """

  extractor: Extractor
  samples: Source
  other: Source | Reference | ForeignStatistics


def measure_external(args: Any, against: Against, repeat: str) -> Summary:
  """Measure --samples by the program's flags and write --out; make all checks first.

  Raises:
    UserError: images, reference, extractor or the output path do not fit.
  """
  metrics = create_metrics(against.metrics)
  samples = load_pictures(args.samples, "--samples")
  other = load_other(against)
  flags = args.features, args.inception, args.inception_sha256 == "any", against, vision_flags(args)
  if isinstance(other, ForeignStatistics):
    extractors, missing = foreign_statistics.comparable(*_networks(*flags), other.path)
  else:
    extractors, missing = extractors_by_flags(*flags)
  about, comparisons = prepare_comparisons(samples, other, against, extractors)
  if args.out is not None:
    check_metrics_out(args.out, about)
  measured = measure_images(comparisons, against, about, metrics, missing, repeat)
  say("\n".join(metrics_json.lines(measured)))
  if args.out is not None:
    metrics_json.write_metrics(args.out, measured)
    say(f"written to {args.out}")
  return measured


def extractors_by_flags(
  features: str | None,
  inception: str | None,
  any_inception: bool,
  against: Against,
  vision: Mapping[str, str | None] = MappingProxyType(dict.fromkeys(VISION, "none")),
) -> tuple[list[Extractor], list[str]]:
  """Return the extractors selected by flags, and a line for each unavailable one.

  Without a data set its own features are not available.

  Raises:
    UserError: a named file is invalid, or no extractor is left.
  """
  extractors, missing = _networks(features, inception, any_inception, against, vision)
  if not extractors:
    reason = "; ".join(missing) if missing else "--inception=none and no features"
    raise UserError(f"nothing to measure with: {reason}; or give --features=FILE")
  return extractors, missing


def _networks(
  features: str | None,
  inception: str | None,
  any_inception: bool,
  against: Against,
  vision: Mapping[str, str | None],
) -> tuple[list[Extractor], list[str]]:
  extractors, missing = [], []
  if features not in (None, "none"):
    extractors.append(load_domain(bucket_path(features or "")))
  elif features is None and against.source is not None:
    file = default_features_path(against.source)
    if file.is_file():
      extractors.append(load_domain(file))
    else:
      missing.append("no features of the data set: python -m diffusion_jax.features --config=...")
  weights = None if inception is None else bucket_path(inception)
  networks, reasons = optional_inception(inception, lambda: load_inception(weights, any_inception))
  others, lacking = optional_vision(vision, lambda load: load())
  return extractors + networks + others, missing + reasons + lacking


def prepare_comparisons(
  samples: Source,
  other: Source | Reference | ForeignStatistics,
  against: Against,
  extractors: list[Extractor],
) -> tuple[Summary, list[Comparison]]:
  """Make all checks that are possible before a feature is computed.

  Args:
    samples: images to measure.
    other: reference from `load_other`; foreign statistics only with extractors that fit them.
    against: request of the reference.
    extractors: feature networks.

  Returns:
    The parts of metrics.json on samples, extractors and references; and the comparison of each
    extractor.

  Raises:
    UserError: images, reference and extractor do not fit each other.
  """
  comparisons, stamps = [], {}
  for extractor in extractors:
    shown, theirs = match_channels(samples, other, extractor, against)
    check_resolution(extractor, shown, "--samples")
    if isinstance(theirs, ForeignStatistics):
      foreign_statistics.check_resolution_of_pictures(theirs, shown.spec.shape)
      stamp = foreign_statistics.foreign_stamp(theirs, extractor, shown.spec.shape)
    elif isinstance(theirs, Reference):
      stamp = dict(theirs.stamp)
    else:
      check_resolution(extractor, theirs, "--config" if against.source else "--reference")
      reference.check_num(theirs)
      stamp = reference.make_stamp(theirs, against.split, extractor)
    reference.check_reference(stamp, extractor, shown.spec.shape)
    stamps[foreign_statistics.reference_name(extractor.name, stamp)] = stamp
    comparisons.append(Comparison(extractor, shown, theirs))
  about = {
    "samples": {
      "source": samples.name.removesuffix(" given"),
      "num": len(samples),
      "resolution": list(samples.spec.shape),
      "quantisation": "as found",
    },
    "extractors": {e.name: dict(e.stamp) for e in extractors},
    "references": stamps,
  }
  return about, comparisons


def check_metrics_out(out: Path, about: Summary) -> None:
  """Raise an error for a path that cannot be written, or a file that is no metrics.json.

  Args:
    out: the metrics.json to write; figures of other images there are replaced, with a message.
    about: summary from `prepare_comparisons`.

  Raises:
    UserError: the file is something else, or cannot be written.
  """
  files.check_file(out)
  if not out.exists():
    return
  old, new = results.read_metrics(out), metrics_json.json_values(about)
  if old is None:
    raise UserError(f"--out={out} exists and is no metrics.json; choose another name")
  if other := [name for name in new if old.get(name) != new[name]]:
    say(f"{out} has other figures ({', '.join(other)} differ), which will be replaced")


def measure_images(
  comparisons: Sequence[Comparison],
  against: Against,
  about: Summary,
  metrics: Sequence[Metric],
  missing: list[str],
  repeat: str,
) -> Summary:
  """Return the figures of a set of images, as in metrics.json.

  `comparisons` and `about` come from `prepare_comparisons`.
  """
  begun = time.perf_counter()
  mesh = sharding.create_mesh(sharding.MeshShape())
  figures: Summary = {}
  for extractor, samples, other in comparisons:
    extract = make_extract(extractor, mesh, EXTRACT_BATCH)
    if isinstance(other, ForeignStatistics):
      stamp = foreign_statistics.foreign_stamp(other, extractor, samples.spec.shape)
      statistics = foreign_statistics.as_reference(other, stamp, extractor, extract)
    else:
      statistics = find_reference(other, against, extractor, extract)
    features = [sample_metrics.gather(_features(samples, extract))]
    measured, lines = sample_metrics.measure_samples(
      features, statistics, extractor, metrics, against.metrics != "all"
    )
    figures |= measured
    missing = missing + lines
  seconds = {"sample metrics": round(time.perf_counter() - begun, 2)}
  return {
    "schema": metrics_json.SCHEMA,
    **about,
    "metrics": [metric.name for metric in metrics],
    "figures": figures,
    "missing": missing,
    "repeat": repeat,
    "code": {"version": __version__, "git_revision": provenance.git_revision()},
    "run": metrics_json.environment(seconds),
  }


def check_resolution(extractor: Extractor, source: Source, flag: str) -> None:
  """Raise an error for images that a data set's own features do not accept.

  Raises:
    UserError: the resolutions differ; the message has both.
  """
  if extractor.resolution not in (None, source.spec.shape):
    raise UserError(
      f"{flag}: {source.name} has images of {source.spec.shape}, the features {extractor.name} "
      f"take {extractor.resolution}; give --features=none, or features of such images"
    )


def load_other(against: Against) -> Source | Reference | ForeignStatistics:
  """Load the reference images or statistics.

  Raises:
    UserError: no reference was named, or it cannot be read.
  """
  if against.source is not None:
    return against.source
  if against.path is None:
    raise UserError("--samples needs a reference: --reference=... or --config=...")
  if reference.is_statistics(against.path):
    return reference.load_statistics(against.path)
  if foreign_statistics.holds_foreign_statistics(against.path):
    return foreign_statistics.read_foreign_statistics(against.path)
  where = f"--reference={against.path}"
  if against.path.is_file() and find_archive(against.path, where) is None:
    npz.names(against.path, where, cure=foreign_statistics.ALLOWED)  # says so of a pickle
  return load_pictures(against.path, "--reference")


def match_channels(
  samples: Source,
  other: Source | Reference | ForeignStatistics,
  extractor: Extractor,
  against: Against,
) -> tuple[Source, Source | Reference | ForeignStatistics]:
  """Convert both sides to one number of channels if that is lossless.

  Grey images may be stored in colour. Features for images of any size see a grey image as three
  equal channels, so the result is the same.
  """
  if isinstance(other, ForeignStatistics):
    pictures = other.pictures or samples
    return with_channels(samples, pictures.spec.channels), other
  if extractor.resolution is not None:
    wanted = extractor.resolution[2]
    theirs = other if isinstance(other, Reference) else with_channels(other, wanted)
    return with_channels(samples, wanted), theirs
  if isinstance(other, Reference):
    return with_channels(samples, other.stamp["resolution"][2]), other
  if against.source is None and samples.spec.channels == 1:
    other = with_channels(other, 1)
  samples = with_channels(samples, other.spec.channels)
  if against.source is None:
    other = with_channels(other, samples.spec.channels)
  return samples, other


def find_reference(
  other: Source | Reference, against: Against, extractor: Extractor, extract: Extract
) -> Reference:
  """Return the reference statistics: as loaded, computed, or from the cache."""
  if isinstance(other, Reference):
    return other
  if against.source is not None:
    folder = reference.statistics_folder()
    return reference.cached(other, against.split, extractor, extract, folder)
  return reference.compute(other, "given", extractor, extract)


def _features(samples: Source, extract: Extract) -> list:
  features = []
  with progress.phase("features of the samples", len(samples), "images") as phase:
    for first in range(0, len(samples), CHUNK):
      index = np.arange(first, min(first + CHUNK, len(samples)))
      features.append(extract(as_pictures(samples.gather(index)[0], samples.spec.num_levels)))
      phase.advance(len(index))
  return features
