"""Measures images that any program has made against a data set, other images or statistics."""

import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from diffusion_jax import __version__, provenance, sharding
from diffusion_jax.data import Source, load_pictures
from diffusion_jax.evaluation import document, figures, reference
from diffusion_jax.evaluation.bench import EXTRACT_BATCH
from diffusion_jax.evaluation.reference import Reference
from diffusion_jax.evaluation.study import Summary, say
from diffusion_jax.extractors import Extract, Extractor, load_domain, load_inception, make_extract
from diffusion_jax.extractors.domain import default_path
from diffusion_jax.levels import as_pictures
from diffusion_jax.paths import user_path
from diffusion_jax.types import UserError

CHUNK = 512


class Against(NamedTuple):
  """What the images are compared with: exactly one of the three.

  Attributes:
    path: a folder, an .npz of images, or statistics.
    source, split: a split of a data set, and its name.
  """

  path: Path | None = None
  source: Source | None = None
  split: str = "given"


def find_extractors(
  features: str | None, inception: str | None, any_inception: bool, against: Against
) -> tuple[list[Extractor], list[str]]:
  """Extractors by their flags; without a data set there are no features of its own to fall back to.

  Raises:
    UserError: a file that was named is not as it should be, or nothing is left to measure with.
  """
  found, missing = [], []
  if features not in (None, "none"):
    found.append(load_domain(user_path(features or "")))
  elif features is None and against.source is not None:
    place = default_path(against.source)
    if place.is_file():
      found.append(load_domain(place))
    else:
      missing.append("no features of the data set: python -m diffusion_jax.features --config=...")
  if inception != "none":
    try:
      found.append(
        load_inception(None if inception is None else user_path(inception), any_inception)
      )
    except UserError as error:
      if inception is not None:
        raise
      missing.append(str(error))
  if not found:
    reason = "; ".join(missing) if missing else "--inception=none and no features"
    raise UserError(f"nothing to measure with: {reason}; or give --features=FILE")
  return found, missing


def measure(
  samples: Source, against: Against, extractors: list[Extractor], missing: list[str], repeat: str
) -> Summary:
  """The figures of a set of images as metrics.json has them.

  Raises:
    UserError: images, reference and extractor do not fit each other.
  """
  begun = time.perf_counter()
  mesh = sharding.create_mesh(sharding.MeshShape())
  rows: Summary = {}
  references = {}
  for extractor in extractors:
    check_resolution(extractor, samples, "--samples")
    extract = make_extract(extractor, mesh, EXTRACT_BATCH)
    found = find_reference(against, extractor, extract, samples)
    parts = _features(samples, extract)
    own, lines = figures.measure([figures.gather(parts)], found, extractor)
    rows |= own
    missing = missing + lines
    references[extractor.name] = dict(found.stamp)
  seconds = {"sample metrics": round(time.perf_counter() - begun, 2)}
  return {
    "schema": document.SCHEMA,
    "samples": {
      "source": samples.name.removesuffix(" given"),
      "num": len(samples),
      "resolution": list(samples.spec.shape),
      "quantisation": "as found",
    },
    "extractors": {e.name: dict(e.stamp) for e in extractors},
    "references": references,
    "figures": rows,
    "missing": missing,
    "repeat": repeat,
    "code": {"version": __version__, "git_revision": provenance.git_revision()},
    "run": document.environment(seconds),
  }


def check_resolution(extractor: Extractor, source: Source, flag: str) -> None:
  """Refuses images that a data set's own features do not take.

  Raises:
    UserError: with both resolutions.
  """
  if extractor.resolution not in (None, source.spec.shape):
    raise UserError(
      f"{flag}: {source.name} has images of {source.spec.shape}, the features {extractor.name} "
      f"take {extractor.resolution}; give --features=none, or features of such images"
    )


def find_reference(
  against: Against, extractor: Extractor, extract: Extract, samples: Source
) -> Reference:
  """The statistics to compare with, read or computed, and checked.

  Raises:
    UserError: as `reference.check`.
  """
  if against.source is not None:
    check_resolution(extractor, against.source, "--config")
    folder = reference.cache_folder()
    found = reference.cached(against.source, against.split, extractor, extract, folder)
  elif against.path is not None and reference.is_statistics(against.path):
    found = reference.load(against.path)
  elif against.path is not None:
    source = load_pictures(against.path, "--reference")
    check_resolution(extractor, source, "--reference")
    found = reference.compute(source, "given", extractor, extract)
  else:
    raise UserError("--samples needs something to compare with: --reference=... or --config=...")
  reference.check(found, extractor, samples.spec.shape)
  return found


def _features(samples: Source, extract: Extract) -> list:
  parts = []
  for first in range(0, len(samples), CHUNK):
    index = np.arange(first, min(first + CHUNK, len(samples)))
    parts.append(extract(as_pictures(samples.gather(index)[0], samples.spec.num_levels)))
    say(f"  {index[-1] + 1:,} of {len(samples):,} images")
  return parts
