"""Reference statistics: features of real images, with a stamp of their origin."""

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from diffusion_jax import parallel
from diffusion_jax.core import files, npz, progress
from diffusion_jax.core.pixels import QUANTISATION, as_pictures
from diffusion_jax.core.wording import duration
from diffusion_jax.data import Source, fingerprint
from diffusion_jax.extractors import Extract, Extractor
from diffusion_jax.extractors.domain import data_name
from diffusion_jax.metrics import Gaussian, Moments, moments
from diffusion_jax.runs.resumable import digest
from diffusion_jax.types import UserError

SCHEMA = 1
MAX_FEATURES = 50_000
"""Maximum number of images whose features are kept; the moments include all images."""


NUM_TIMED = 64
"""Number of images from which the time of all others is told."""


class Reference(NamedTuple):
  """The features that samples are compared with.

  Attributes:
    stamp: extractor, data, count, resolution, resize, as JSON values.
    pool: moments of the features of all images; a Gaussian if another program made them.
    spatial: the same of the spatial features; None for an extractor without them.
    features: features of at most MAX_FEATURES images, evenly spaced; none where only mean and
      covariance are known.
    places: indices of these images in the split.
  """

  stamp: Mapping[str, Any]
  pool: Moments | Gaussian
  spatial: Moments | Gaussian | None
  features: Float[np.ndarray, "N D"]
  places: Int[np.ndarray, "N"]


def make_stamp(source: Source, split: str, extractor: Extractor) -> dict[str, Any]:
  """Return the stamp of a split's statistics under an extractor."""
  return {
    "schema": SCHEMA,
    "data": data_name(source),
    "split": split,
    "num": len(source),
    "fingerprint": fingerprint(source),
    "resolution": list(source.spec.shape),
    "augmentation": "none",
    "quantisation": QUANTISATION,
    "extractor": extractor.name,
    "extractor_sha256": extractor.stamp["sha256"],
    "resize": extractor.stamp["resize"],
  }


def compute(
  source: Source, split: str, extractor: Extractor, extract: Extract, chunk: int = 512
) -> Reference:
  """Compute the statistics of a split, every image once and without augmentation.

  The images are streamed, so memory stays bounded.

  Args:
    source: the split.
    split: name of the split, for the stamp.
    extractor, extract: feature network, and the function that applies it.
    chunk: images decoded at once.

  Raises:
    UserError: the split has fewer than two images.
  """
  check_num(source)
  places = np.unique(np.linspace(0, len(source) - 1, min(len(source), MAX_FEATURES)).astype(int))
  pool = spatial = None
  kept = []
  with progress.phase(f"features of {source.name}", len(source), "images") as phase:
    for first in range(0, len(source), chunk):
      index = np.arange(first, min(first + chunk, len(source)))
      features = extract(as_pictures(source.gather(index)[0], source.spec.num_levels))
      pool = _add(pool, features.pool)
      spatial = None if features.spatial is None else _add(spatial, features.spatial)
      kept.append(features.pool[np.isin(index, places)])
      phase.advance(len(index))
  assert pool is not None
  stamp = make_stamp(source, split, extractor)
  return Reference(stamp, pool, spatial, np.concatenate(kept), places)


def check_num(source: Source) -> None:
  """Raise an error for a split of fewer than two images.

  Raises:
    UserError: it has fewer; the message has its name and number.
  """
  if len(source) < 2:
    raise UserError(f"{source.name} has {len(source)} image; statistics need at least 2")


def _add(total: Moments | None, features: np.ndarray) -> Moments:
  return moments.add(total or moments.zeros(features.shape[1]), features)


def save(path: Path, reference: Reference) -> None:
  """Write an .npz in one move.

  Raises:
    UserError: the path cannot be written.
  """
  arrays = {"features": reference.features, "places": reference.places}
  for name, sums in (("pool", reference.pool), ("spatial", reference.spatial)):
    if sums is not None:
      arrays |= {f"{name}_{field}": np.asarray(value) for field, value in sums._asdict().items()}
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.atomic_write(path) as file:
      np.savez(file, allow_pickle=False, stamp=json.dumps(reference.stamp), **arrays)
  except OSError as error:
    raise UserError(f"--out={path} cannot be written ({error.strerror}); choose another") from error


def load_statistics(path: Path) -> Reference:
  """Read an .npz from `save`; the archive's CRC-32 detects damage.

  Raises:
    UserError: the file is missing, damaged, or of another kind.
  """
  cure = "make them again with python -m diffusion_jax.stats"
  arrays = npz.read_npz(path, f"--reference={path}", cure=cure)
  try:
    stamp = json.loads(str(arrays["stamp"]))
    if stamp["schema"] != SCHEMA:
      raise ValueError(f"schema {stamp['schema']}, not {SCHEMA}")
    pool = _moments(arrays, "pool")
    spatial = _moments(arrays, "spatial") if "spatial_num" in arrays else None
    return Reference(stamp, pool, spatial, arrays["features"], arrays["places"])
  except Exception as error:
    raise UserError(
      f"--reference={path} holds no readable statistics ({type(error).__name__}: {error}); {cure}"
    ) from error


def _moments(arrays: Mapping[str, np.ndarray], name: str) -> Moments:
  num, total, outer = (arrays[f"{name}_{field}"] for field in ("num", "total", "outer"))
  return Moments(int(num), total, outer)


def is_statistics(path: Path) -> bool:
  """Return whether an .npz declares that it holds statistics."""
  try:
    return "stamp" in npz.names(path, f"--reference={path}")
  except UserError:  # the reader of images will raise it
    return False


def check_reference(
  reference: Reference | Mapping[str, Any], extractor: Extractor, resolution: tuple[int, ...]
) -> None:
  """Raise an error if these samples cannot be compared with statistics or their stamp.

  Raises:
    UserError: another extractor, resize or resolution; the message has both stamps.
  """
  wanted = {
    "extractor": extractor.name,
    "extractor_sha256": extractor.stamp["sha256"],
    "resize": extractor.stamp["resize"],
    "resolution": list(resolution),
  }
  stamp = reference.stamp if isinstance(reference, Reference) else reference
  there = {name: stamp[name] for name in wanted}
  if there != wanted:
    named = ", ".join(name for name in wanted if there[name] != wanted[name])
    raise UserError(
      f"the reference differs in {named}: its stamp is {json.dumps(there)}, the samples' is "
      f"{json.dumps(wanted)}; make statistics that match with python -m diffusion_jax.stats"
    )


def cached(
  source: Source, split: str, extractor: Extractor, extract: Extract, folder: Path
) -> Reference:
  """Return the statistics of a split: from `folder` if stored, else computed and stored."""
  stamp = make_stamp(source, split, extractor)
  path = folder / f"{stamp['data']}-{split}-{digest(stamp)}.npz"
  stored = None
  if path.is_file():
    try:
      stored = load_statistics(path)
    except UserError:
      print(f"{path} is damaged: computed again")
  if parallel.all_true(stored is not None):  # each host has its own cache
    assert stored is not None
    return stored
  line = f"features of the {len(source):,} images of {source.name} ({extractor.name})"
  if len(source) > 2 * NUM_TIMED:
    line += f": expected time about {duration(_expected_sec(source, extract))}"
  print(line, flush=True)
  reference = compute(source, split, extractor, extract)
  save(path, reference)
  return reference


def _expected_sec(
  source: Source, extract: Extract, now: Callable[[], float] = time.perf_counter
) -> float:
  """Return the seconds that the features of a split will take, from a few of its images."""
  images = source.gather(np.arange(min(NUM_TIMED, len(source))))[0]
  pictures = as_pictures(images, source.spec.num_levels)
  extract(pictures)  # compiles
  begun = now()
  extract(pictures)
  return (now() - begun) * math.ceil(len(source) / len(images))


def statistics_folder() -> Path:
  """Return the folder of stored statistics; they belong to the data, not to a run."""
  return files.cache_folder() / "statistics"
