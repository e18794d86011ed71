"""Latents of an image set: the stored output of an autoencoder's encoder for every image.

For each split a folder contains the mean and log-variance of q(z | x) of every image in the order
of its source (`train.npy`, float32 [N h w 2c]) and their labels. It also contains the autoencoder's
weights as one vector and a manifest: the scale of the latents, the section of the image source, the
autoencoder's config and the SHA-256 of every file. `python -m diffusion_jax.encode` makes it.
"""

import dataclasses
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int, Int32, Num

from diffusion_jax.core.config import build
from diffusion_jax.core.field_types import as_text
from diffusion_jax.core.files import BUCKET, bucket_path, user_path
from diffusion_jax.core.settings import field_fact, fields_with, setting
from diffusion_jax.data.base import Autoencoder, DataSetBase, SourceBase, load_split
from diffusion_jax.data.source import About, Source, count_labels, fingerprint, source_identity
from diffusion_jax.data.unfinished import (
  PROGRESS,
  begin_encoding,
  facts_of,
  part_folder,
  write_progress,
)
from diffusion_jax.types import ImageSpec, UserError

FORMAT = 1
MANIFEST = "latents.json"
COMMAND = "python -m diffusion_jax.encode --workdir=RUN --out=DIR"
LACKING = {"autoencoder": {"norm_groups": None}}
"""Fields missing in folders of older versions, with their values then."""


@dataclasses.dataclass(frozen=True)
class Latents(DataSetBase):
  """An image set together with its latents, see `python -m diffusion_jax.encode`.

  It behaves as the image set itself, except for latent_diffusion, which trains on the latents.
  Mirrored images have other latents, so there is no `flip`.

  Attributes:
    path: folder that `python -m diffusion_jax.encode` has made.
    data_dir: current location of the images' own files, if they have moved: in place of the path or
      data_dir of the config that the folder was made with.
  """

  path: str = setting("", may_change=True, affects_figures=False, is_path=True)
  data_dir: str | None = setting(None, may_change=True, affects_figures=False, is_path=True)
  has_latents = True

  def load(self, split: str) -> Source:
    """Return the images of a split.

    Raises:
      UserError: the folder is missing or damaged, or the images differ from the encoded ones.
    """
    manifest = self._manifest()
    if split not in manifest["splits"]:
      raise UserError(f"{self._where} has no {split} split; it has {', '.join(manifest['splits'])}")
    source = load_split(self._image_source(manifest), split)
    if fingerprint(source) != manifest["splits"][split]["fingerprint"]:
      raise UserError(
        f"{self._where} was made from other images than {source.name} has now; restore them, or "
        f"encode again: {COMMAND}"
      )
    return source

  def has_split(self, split: str) -> bool:
    return split in self._manifest()["splits"]

  def load_latents(self, split: str, autoencoder: Mapping[str, Mapping[str, Any]]) -> Source:
    """Return the encoder's means and log-variances of a split, float32 [h w 2c] per image.

    Args:
      split: train or test.
      autoencoder: the sections "autoencoder" and "decoder" of the run's config.

    Raises:
      UserError: the folder is missing or damaged, or was made by another autoencoder.
    """
    manifest = self._manifest()
    self._check_same(manifest["autoencoder"], autoencoder)
    for name in manifest["files"]:
      self._check_file(manifest, name)
    folder, about = bucket_path(self.path), manifest["splits"][split]
    stats = np.load(folder / f"{split}.npy", mmap_mode="r")
    labels = np.load(folder / f"{split}_labels.npy")
    name, images = f"latents of {about['name']}", None
    if about.get("has_fields"):  # named arrays are read from the image source
      images = load_split(self._image_source(manifest), split)
    return LatentSource(name, stats, labels, manifest["num_classes"], images)

  def autoencoder(self) -> Autoencoder:
    """Return the weights and the scale.

    Raises:
      UserError: the folder is missing or damaged.
    """
    manifest = self._manifest()
    self._check_file(manifest, "autoencoder.npy")
    return Autoencoder(np.load(bucket_path(self.path) / "autoencoder.npy"), manifest["scale"])

  def fetch(self) -> None:
    """Copy latents that are in a bucket to this machine."""
    bucket_path(self.path)

  @property
  def _where(self) -> str:
    return f"`data.path={self.path}`"

  def _manifest(self) -> dict[str, Any]:
    file = bucket_path(self.path) / MANIFEST
    if not self.path or not file.is_file():
      raise UserError(f"{self._where}: no latents there ({MANIFEST} is missing); make them: "
                      f"{COMMAND}")  # fmt: skip
    try:
      manifest = _unseal(json.loads(file.read_text()))
    except (ValueError, TypeError, KeyError, OSError) as error:
      raise UserError(f"{self._where}: {MANIFEST} is damaged ({error}); encode again: "
                      f"{COMMAND}") from error  # fmt: skip
    if manifest["format"] != FORMAT:
      raise UserError(f"{self._where} has format {manifest['format']}, this version reads "
                      f"{FORMAT}; encode again: {COMMAND}")  # fmt: skip
    return manifest

  def _check_file(self, manifest: Mapping[str, Any], name: str) -> None:
    file = bucket_path(self.path) / name
    if not file.is_file() or _sha256(file) != manifest["files"][name]:
      what = "is damaged" if file.exists() else "is missing"
      raise UserError(f"{self._where}: {name} {what}; restore a complete copy, or encode again: "
                      f"{COMMAND}")  # fmt: skip

  def _check_same(self, theirs: Mapping[str, Any], ours: Mapping[str, Mapping[str, Any]]) -> None:
    for section, fields in theirs.items():
      for name, value in {**LACKING.get(section, {}), **fields}.items():
        mine = ours[section].get(name)
        if _plain(mine) != _plain(value) and _affects_encoding(section, ours[section], name):
          raise UserError(
            f"config.{section}.{name} is {mine}, the autoencoder of {self._where} has {value}; "
            f"set `{section}.{name}={as_text(value)}`"
          )

  def _image_source(self, manifest: Mapping[str, Any]) -> Any:
    from diffusion_jax.data import SOURCES  # imported here: SOURCES contains this class

    section = dict(manifest["image_source"])
    if self.data_dir is not None:
      field = next(iter(_path_fields(section)), None)
      if field is None:
        raise UserError(f"`data.data_dir={self.data_dir}`: {section['name']} has no files; "
                        "leave it out")  # fmt: skip
      section[field] = self.data_dir
    return build(SOURCES, section, "data")


class LatentSource(SourceBase):
  """A split of latents.

  Args:
    name: name for messages.
    stats: mean and log-variance along the last axis; may be memory-mapped.
    labels: class numbers.
    num_classes: number of classes of the whole data set; 0 if unlabelled.
    images: the encoded images in the same order, if they have named arrays.
  """

  def __init__(
    self,
    name: str,
    stats: Float32[np.ndarray, "N h w C"],
    labels: Int[np.ndarray, "N"],
    num_classes: int,
    images: Source | None = None,
  ):
    self.name, self._images = name, images
    height, width, channels = stats.shape[1:]
    fields = {} if images is None else images.spec.fields
    self.spec = ImageSpec(height, width, channels, None, num_classes, fields)
    self._stats, self._labels = stats, labels.astype(np.int32)
    self.about = About(counts=count_labels(self._labels, num_classes))

  def __len__(self) -> int:
    return len(self._stats)

  def gather(
    self, index: Int[np.ndarray, "B"]
  ) -> tuple[Float32[np.ndarray, "B h w C"], Int32[np.ndarray, "B"]]:
    return np.asarray(self._stats[index]), self._labels[index]

  def gather_fields(self, index: Int[np.ndarray, "B"]) -> Mapping[str, Num[np.ndarray, "B ..."]]:
    return {} if self._images is None else self._images.gather_fields(index)


class Encoded(NamedTuple):
  """Encoded images of a data set, to be written.

  Attributes:
    sources: split -> its images.
    encode: (source, index of the first image, by default 0) -> means and log-variances [B h w 2c]
      and labels [B] of all images from there, in order, each once.
    shape: shape (h, w, 2c) of one image's means and log-variances.
    weights: parameters of the autoencoder as one vector.
    image_source: config section of the images.
    autoencoder: config sections "autoencoder" and "decoder".
    made_from: run and step that made it, as JSON values.
    batch_size: images per encoding batch; another value changes the rounding.
    asked: flags of the command as JSON values; see `unfinished.left_encoding`.
    scale: factor of the latents; None: measured, so that their standard deviation is 1.
  """

  sources: Mapping[str, Source]
  encode: Callable[..., Iterator[tuple[np.ndarray, np.ndarray]]]
  shape: tuple[int, int, int]
  weights: Float32[np.ndarray, "P"]
  image_source: Mapping[str, Any]
  autoencoder: Mapping[str, Mapping[str, Any]]
  made_from: Mapping[str, Any]
  batch_size: int = 0
  asked: Mapping[str, Any] = MappingProxyType({})
  scale: float | None = None


def write_latents(
  out: Path, encoded: Encoded, writes: bool = True, done: Mapping[str, int] | None = None,
  stopped: type[Exception] = OSError,
) -> float:  # fmt: skip
  """Write a folder of latents, completely or not at all.

  Finished latents survive a kill, a full disk and `stopped`; any other failure deletes them.

  Args:
    out: the folder.
    encoded: its content.
    writes: True on the one process that writes; all processes encode.
    done: result of `begin` on the writing process; None: it is called here.
    stopped: error that `encode` raises to stop early.

  Returns:
    The scale.

  Raises:
    UserError: the folder cannot be written, or the latents are not finite.
  """
  part = part_folder(out)
  counts = begin_encoding(out, encoded) if done is None and writes else dict(done or {})
  if not writes:
    for split, source in encoded.sources.items():
      for _ in _encode_from(encoded, source, counts.get(split, 0)):
        pass
    return math.nan
  try:
    for split, source in encoded.sources.items():
      _write_split(part, split, source, encoded, counts)
    measured = _scale(np.load(part / "train.npy", mmap_mode="r"))
    scale = measured if encoded.scale is None else encoded.scale
    np.save(part / "autoencoder.npy", encoded.weights)
    (part / MANIFEST).write_text(json.dumps(_describe(part, encoded, scale), indent=2))
    (part / PROGRESS).unlink()
    os.replace(part, out)
  except OSError as error:
    raise UserError(f"--out={out} cannot be written ({error.strerror}); choose another") from error
  except stopped:
    raise
  except Exception:
    shutil.rmtree(part, ignore_errors=True)
    raise
  return scale


def _encode_from(encoded: Encoded, source: Source, first: int) -> Iterator[Any]:
  """Yield the rest of a split; nothing if all of it is encoded."""
  return encoded.encode(source, first) if first < len(source) else iter(())


def _write_split(
  part: Path, split: str, source: Source, encoded: Encoded, done: dict[str, int]
) -> None:
  stats = np.lib.format.open_memmap(part / f"{split}.npy", "r+")
  labels = np.lib.format.open_memmap(part / f"{split}_labels.npy", "r+")
  first, facts = done.get(split, 0), facts_of(encoded)
  for batch_stats, batch_labels in _encode_from(encoded, source, first):
    stats[first : first + len(batch_stats)] = batch_stats
    labels[first : first + len(batch_stats)] = batch_labels
    stats.flush()
    labels.flush()
    first += len(batch_stats)
    done[split] = first
    write_progress(part, facts, done)
  assert first == len(source)


def _scale(stats: Float32[np.ndarray, "N h w C"], chunk: int = 4096) -> float:
  """Return 1 / the standard deviation of z ~ q(z | x) over all images and dimensions.

  Var(z) = E[var] + E[mean^2] - E[mean]^2. Source: Rombach et al. 2022, appendix G.
  """
  sums = np.zeros(2)
  for first in range(0, len(stats), chunk):
    mean, log_var = np.split(np.float64(stats[first : first + chunk]), 2, axis=-1)
    sums += mean.sum(), (mean**2 + np.exp(log_var)).sum()
  first, second = sums / (stats.size / 2)
  if not math.isfinite(second) or second <= first**2:
    raise UserError("the latents are not finite or all the same; train the autoencoder longer, or "
                    "choose another `step`")  # fmt: skip
  return float(1.0 / math.sqrt(second - first**2))


def _describe(part: Path, encoded: Encoded, scale: float) -> dict[str, Any]:
  """Return the manifest, which contains its own hash."""
  sources = encoded.sources
  section = dict(encoded.image_source)
  for field in _path_fields(section):
    if section.get(field) and not BUCKET.match(section[field]):
      section[field] = str(user_path(section[field]).absolute())
  return _seal(
    {
      "format": FORMAT,
      "scale": scale,
      "num_classes": sources["train"].spec.num_classes,
      "image_source": section,
      "autoencoder": {n: dict(s) for n, s in encoded.autoencoder.items()},
      "made_from": dict(encoded.made_from),
      "splits": {
        split: {
          **source_identity(source),
          **({"has_fields": True} if source.spec.fields else {}),
        }
        for split, source in sources.items()
      },
      "files": {file.name: _sha256(file) for file in sorted(part.glob("*.npy"))},
    }
  )


def _sha256(file: Path) -> str:
  with file.open("rb") as opened:
    return hashlib.file_digest(opened, "sha256").hexdigest()


def _seal(manifest: dict[str, Any]) -> dict[str, Any]:
  text = json.dumps(manifest, sort_keys=True)
  return {**manifest, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def _unseal(sealed: Any) -> dict[str, Any]:
  if not isinstance(sealed, dict):
    raise ValueError("it holds no object")
  manifest = {name: value for name, value in sealed.items() if name != "sha256"}
  if _seal(manifest)["sha256"] != sealed["sha256"]:
    raise ValueError("its hash does not hold")
  return manifest


def _path_fields(section: Mapping[str, Any]) -> list[str]:
  """Return the fields of an image source that hold paths."""
  from diffusion_jax.data import SOURCES  # imported here: SOURCES contains `Latents`

  return fields_with("is_path", SOURCES.find(str(section["name"]), "config.data.name"))


def _affects_encoding(section: str, fields: Mapping[str, Any], name: str) -> bool:
  """Return whether the encoding by given weights depends on a field of the autoencoder."""
  from diffusion_jax.models import DECODERS, VAES  # imported here: other data need no networks

  registry = {"autoencoder": VAES, "decoder": DECODERS}[section]
  cls = registry.find(str(fields["name"]), f"config.{section}.name")
  return field_fact("affects_encoding", registry, cls, name)


def _plain(value: Any) -> Any:
  return list(value) if isinstance(value, tuple) else value
