"""Reference statistics of other programs: means and covariances of Inception features.

Two layouts are read. "stats" has mu and sigma (TTUR, EDM's fid-refs, pytorch-fid, JiT). "adm" is
that of ADM's evaluation files (Dhariwal and Nichol 2021, arXiv 2105.05233): mu, sigma of all
training images, mu_s, sigma_s of their spatial features, and in arr_0 some of these images for
precision and recall. Nothing in such a file says which network, resize or number of images made it,
so its figures have names of their own (fid_stats, fid_adm), and the stamp says what is assumed.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.core import npz
from diffusion_jax.data import Source
from diffusion_jax.data.pictures import read_pictures
from diffusion_jax.data.source import ArraySource
from diffusion_jax.evaluation.reference import SCHEMA, Reference, compute
from diffusion_jax.extractors import Extract, Extractor
from diffusion_jax.extractors.inception_extractor import is_inception
from diffusion_jax.metrics import (
  FrechetDistance,
  FrechetInfinity,
  Gaussian,
  InceptionScore,
  Metric,
  Precision,
  Recall,
  SpatialFrechetDistance,
)
from diffusion_jax.types import UserError

WIDTHS = {"mu": 2048, "mu_s": 17 * 17 * 7}
"""Number of features of Inception's pool_3, and of mixed_6/conv's 7 channels for sFID."""

OTHER_WIDTHS = {
  64: "an earlier layer of Inception", 192: "an earlier layer of Inception",
  768: "an earlier layer of Inception, or CLIP ViT-L/14", 1024: "DINOv2 ViT-L/14",
}  # fmt: skip
"""Number of features -> layer or network that has as many."""

PICTURES = "arr_0"
LAYOUTS = {"stats": ("mu", "sigma"), "adm": (PICTURES, "mu", "sigma", "mu_s", "sigma_s")}
"""Name of a layout, which ends its figures' names -> its arrays."""

FROM_PICTURES = (Precision, Recall)
"""Metrics that compare samples with the single pictures of ADM's file."""

FRECHET = (FrechetDistance, FrechetInfinity, InceptionScore)  # the last needs no reference
MEASURED = {"stats": FRECHET, "adm": (*FRECHET, SpatialFrechetDistance, *FROM_PICTURES)}
"""Name of a layout -> metrics that it allows."""

ROUNDING = 1e-5
"""Asymmetry and negative eigenvalue that float32 leaves, relative to the largest number."""

ALLOWED = (
  "allowed are an .npz with mu and sigma, one of ADM's with arr_0, mu, sigma, mu_s and sigma_s, a "
  "folder or an .npz of images, and statistics made by python -m diffusion_jax.stats"
)

ALLOWED_BESIDE = (
  "allowed beside a run are an .npz with mu and sigma, and one of ADM's with arr_0, mu, sigma, "
  "mu_s and sigma_s"
)


class ForeignStatistics(NamedTuple):
  """Statistics that another program has published.

  Attributes:
    path: the file; `sha256`: its hash.
    layout: "stats" or "adm", see `LAYOUTS`.
    pool: mean and covariance of the pooled features.
    spatial: those of the spatial features; None for "stats".
    pictures: the pictures of ADM's file; None for "stats".
    not_read: names of its other arrays.
  """

  path: Path
  sha256: str
  layout: str
  pool: Gaussian
  spatial: Gaussian | None
  pictures: Source | None
  not_read: Sequence[str]


def holds_foreign_statistics(path: Path) -> bool:
  """Return whether an .npz has arrays that are named as statistics of other programs are."""
  try:
    return bool(npz.statistics_names(npz.names(path, f"--reference={path}")))
  except UserError:  # the reader of images will raise it
    return False


def read_foreign_statistics(path: Path) -> ForeignStatistics:
  """Read and check an .npz of mu and sigma, or one of ADM's.

  Raises:
    UserError: another layout, width or type, or no mean and covariance of real features.
  """
  where = f"--reference={path}"
  there = npz.names(path, where)
  layout = _layout(there, where)
  pool = _gaussian(path, "mu", "sigma", where)
  spatial = _gaussian(path, "mu_s", "sigma_s", where) if layout == "adm" else None
  pictures = None
  if layout == "adm":
    images = read_pictures(path, PICTURES, where)
    if len(images) < 2:
      raise UserError(f"{where}: {PICTURES} holds {len(images)} image; at least 2 are needed")
    pictures = ArraySource(f"{path.stem} given", images, None, 256, 0)
  with path.open("rb") as file:
    sha256 = hashlib.file_digest(file, "sha256").hexdigest()
  not_read = sorted(set(there) - set(LAYOUTS[layout]))
  return ForeignStatistics(path, sha256, layout, pool, spatial, pictures, not_read)


def _layout(there: Sequence[str], where: str) -> str:
  """Return the name of the layout whose statistics are exactly those of the file."""
  found = npz.statistics_names(there)
  has_pictures = PICTURES in there
  for layout, names in LAYOUTS.items():
    if found == sorted(n for n in names if n != PICTURES) and has_pictures == (PICTURES in names):
      return layout
  layouts = "mu and sigma alone, or arr_0, mu, sigma, mu_s and sigma_s"
  raise UserError(
    f"{where} has {npz.listed_names(there)}; statistics of features must be {layouts} (ADM's)"
  )


def _gaussian(path: Path, mean_name: str, covariance_name: str, where: str) -> Gaussian:
  """Return one mean and covariance of a file in float64, after checking them."""
  found = npz.read_npz(path, where, lambda name: name in (mean_name, covariance_name))
  for name, array in found.items():
    if array.dtype.kind != "f" or array.dtype.itemsize not in (4, 8):
      raise UserError(f"{where}: {name} is {array.dtype}; it must be float32 or float64")
  mean, covariance = found[mean_name], found[covariance_name]
  width = WIDTHS[mean_name]
  if mean.shape != (width,):
    _refuse_width(where, mean_name, mean.shape, width)
  if covariance.shape != (width, width):
    shape = list(covariance.shape)
    raise UserError(f"{where}: {covariance_name} has shape {shape}; it must be [{width}, {width}]")
  for name, array in found.items():
    if damaged := int((~np.isfinite(array)).sum()):
      raise UserError(f"{where}: {damaged:,} numbers of {name} are not finite (NaN or infinity)")
  mean, covariance = mean.astype(np.float64), covariance.astype(np.float64)
  largest = np.abs(covariance).max()
  gap = np.abs(covariance - covariance.T).max()
  if gap > ROUNDING * largest:
    raise UserError(
      f"{where}: {covariance_name} is no covariance: it differs from its transpose by {gap:.3g}"
    )
  covariance = covariance / 2 + covariance.T / 2
  lowest, *_, highest = np.linalg.eigvalsh(covariance)
  if lowest < -ROUNDING * highest or highest <= 0:
    raise UserError(
      f"{where}: {covariance_name} is no covariance: its eigenvalues are between {lowest:.3g} and "
      f"{highest:.3g}, and none may be negative"
    )
  return Gaussian(mean, covariance)


def _refuse_width(where: str, name: str, shape: tuple[int, ...], width: int) -> None:
  """Raise the error for a mean of another width or shape, with the network that it may be of."""
  if len(shape) != 1:
    raise UserError(f"{where}: {name} has shape {list(shape)}; it must be [{width}]")
  named = OTHER_WIDTHS.get(shape[0])
  other = f" ({shape[0]:,}: {named})" if named else ""
  raise UserError(
    f"{where}: {name} has {shape[0]:,} features and Inception has {width:,}{other}; statistics of "
    "other networks are not compared: give the images themselves, --reference=FOLDER, with "
    "--dinov2=FILE or --clip=FILE for these networks"
  )


def comparable(
  extractors: Sequence[Extractor], missing: Sequence[str], path: Path
) -> tuple[list[Extractor], list[str]]:
  """Return the extractors that fit foreign statistics, and a line for each other one.

  Args:
    extractors: available feature networks.
    missing: lines on networks that are not available.
    path: file of the statistics.

  Raises:
    UserError: none is Inception; the message tells why.
  """
  kept = [extractor for extractor in extractors if is_inception(extractor)]
  lines = [
    f"fd_{e.name}: {path.name} has Inception's statistics, which other features cannot be compared "
    "with; give images or a config as the reference"
    for e in extractors
    if not is_inception(e)
  ]
  if not kept:
    why = [line for line in missing if "Inception weights" in line] or ["--inception=none"]
    reason = "; ".join([*why, *lines])
    raise UserError(f"--reference={path} needs Inception's features, and there are none: {reason}")
  return kept, [*missing, *lines]


def check_resolution_of_pictures(foreign: ForeignStatistics, shape: tuple[int, int, int]) -> None:
  """Raise an error if ADM's pictures have another resolution than the samples.

  Raises:
    UserError: the shapes differ; the message has both.
  """
  theirs = None if foreign.pictures is None else foreign.pictures.spec.shape
  if theirs not in (None, shape):
    raise UserError(
      f"--reference={foreign.path}: its pictures are {theirs} and the samples {shape}; both must "
      "have one resolution, because the resize is part of the protocol"
    )


def foreign_stamp(
  foreign: ForeignStatistics, extractor: Extractor, shape: tuple[int, int, int]
) -> dict[str, Any]:
  """Return the stamp of foreign statistics: the file, and what is assumed of it.

  Args:
    foreign: the statistics.
    extractor: feature network of the samples.
    shape: resolution of the samples.
  """
  stamp: dict[str, Any] = {
    "schema": SCHEMA,
    "data": foreign.path.name,
    "split": foreign.layout,
    "sha256": foreign.sha256,
    "layout": ", ".join(LAYOUTS[foreign.layout]),
    "resolution": list(shape),
    "extractor": extractor.name,
    "extractor_sha256": extractor.stamp["sha256"],
    "resize": extractor.stamp["resize"],
    "assumed": (
      "Inception of TensorFlow's 2015-12-05 with TensorFlow 1's resize, images of the samples' "
      "resolution, number of images unknown"
    ),
    "standard_errors": "over fresh samples, with the reference as it is",
  }
  if foreign.pictures is not None:
    stamp["num_pictures"] = len(foreign.pictures)
    stamp["assumed"] += f"; {PICTURES} holds a part of these images, for precision and recall"
  if foreign.not_read:
    stamp["not_read"] = list(foreign.not_read)
  return stamp


def is_foreign(stamp: Mapping[str, Any]) -> bool:
  """Return whether the stamp of a reference is that of foreign statistics."""
  return "layout" in stamp


def reference_name(extractor_name: str, stamp: Mapping[str, Any]) -> str:
  """Return the name of a reference in metrics.json: its extractor, and a foreign layout."""
  return f"{extractor_name}_{stamp['split']}" if is_foreign(stamp) else extractor_name


def reference_stamps(spaces: Sequence[Any]) -> dict[str, dict[str, Any]]:
  """Return the stamps of feature spaces by their `reference_name`."""
  stamps = [(space.extractor.name, dict(space.reference.stamp)) for space in spaces]
  return {reference_name(name, stamp): stamp for name, stamp in stamps}


def load_beside(
  path: Path | None,
  extractors: Sequence[Extractor],
  missing: Sequence[str],
  shape: tuple[int, int, int],
) -> ForeignStatistics | None:
  """Return the foreign statistics that a run's samples are compared with beside its own data.

  Args:
    path: their file; None: none.
    extractors, missing: available feature networks, and lines on the others.
    shape: resolution of the samples.

  Raises:
    UserError: other contents, or no Inception features of the samples.
  """
  if path is None:
    return None
  where = f"--reference={path}"
  if not npz.statistics_names(npz.names(path, where, cure=ALLOWED_BESIDE)):
    raise UserError(
      f"{where} has no statistics of another program; a run is compared with its own data, and "
      f"{ALLOWED_BESIDE}. For other images draw samples, and give them by --samples"
    )
  foreign = read_foreign_statistics(path)
  comparable(extractors, missing, path)
  check_resolution_of_pictures(foreign, shape)
  return foreign


def as_reference(
  foreign: ForeignStatistics, stamp: Mapping[str, Any], extractor: Extractor, extract: Extract
) -> Reference:
  """Return foreign statistics as a reference, with the features of pictures if it has any."""
  if foreign.pictures is None:
    none = np.zeros((0, len(foreign.pool.mean)), np.float32)
    return Reference(stamp, foreign.pool, foreign.spatial, none, np.zeros(0, int))
  of_pictures = compute(foreign.pictures, foreign.layout, extractor, extract)
  return of_pictures._replace(stamp=stamp, pool=foreign.pool, spatial=foreign.spatial)


def measurable(metrics: Sequence[Metric], stamp: Mapping[str, Any]) -> tuple[list[Metric], str]:
  """Return the metrics that a reference allows, and a line on the others.

  The line is empty if there are no others.

  Args:
    metrics: metrics to measure.
    stamp: stamp of any reference; one that is not foreign allows all.
  """
  if not is_foreign(stamp):
    return list(metrics), ""
  allowed = MEASURED[stamp["split"]]
  kept = [metric for metric in metrics if type(metric) in allowed]
  others = ", ".join(metric.name for metric in metrics if metric not in kept)
  why = {
    "stats": "it has mean and covariance alone, and these need features of single images",
    "adm": "they are not in ADM's protocol, and its pictures are a part of the training images",
  }[stamp["split"]]
  line = f"{others} against {stamp['data']}: {why}; give images as the reference"
  return kept, line if others else ""
