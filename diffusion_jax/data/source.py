"""Sources in memory or read one by one, their fingerprints, and pictures as arrays."""

import hashlib
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Int, Int32, Num, UInt8
from PIL import ExifTags, Image, ImageOps

from diffusion_jax.core import progress
from diffusion_jax.core.files import printable
from diffusion_jax.data.base import About, Source, SourceBase
from diffusion_jax.types import FieldSpec, ImageSpec


class ArraySource(SourceBase):
  """A split in memory.

  Args:
    name: name for messages.
    images: levels 0..L-1, uint8 [N H W C].
    labels: class numbers [N]; None for an unlabelled set.
    num_levels: number L of pixel levels.
    num_classes: number of classes of the whole data set; 0: unlabelled. None: from the labels.
    about: other facts; the number of images per class is added here.
    fields: named arrays, finite and with one row per image.

  Raises:
    ValueError: arrays that do not match each other or their levels.
  """

  def __init__(
    self,
    name: str,
    images: np.ndarray,
    labels: np.ndarray | None = None,
    num_levels: int = 256,
    num_classes: int | None = None,
    about: About = About(),  # noqa: B008
    fields: Mapping[str, np.ndarray] = MappingProxyType({}),
  ):
    self.name = name
    _check_arrays(images, labels, num_levels, num_classes)
    if num_classes is None:
      num_classes = 0 if labels is None else int(labels.max(initial=-1)) + 1
    self._fields = {name: check_field(name, array, len(images)) for name, array in fields.items()}
    named = {n: FieldSpec(array.shape[1:], str(array.dtype)) for n, array in self._fields.items()}
    height, width, channels = images.shape[1:]
    self.spec = ImageSpec(height, width, channels, num_levels, num_classes, named)
    self._images = np.ascontiguousarray(images)
    self._labels = np.zeros(len(images), np.int32) if labels is None else labels.astype(np.int32)
    self.about = about._replace(counts=count_labels(self._labels, num_classes))

  def __len__(self) -> int:
    return len(self._images)

  def gather(
    self, index: Int[np.ndarray, "B"]
  ) -> tuple[UInt8[np.ndarray, "B H W C"], Int32[np.ndarray, "B"]]:
    return self._images[index], self._labels[index]

  def gather_fields(self, index: Int[np.ndarray, "B"]) -> Mapping[str, Num[np.ndarray, "B ..."]]:
    return {name: array[index] for name, array in self._fields.items()}


def _check_arrays(
  images: np.ndarray, labels: np.ndarray | None, num_levels: int, num_classes: int | None
) -> None:
  if images.dtype != np.uint8 or images.ndim != 4:
    raise ValueError(f"images are {images.dtype}{list(images.shape)}; they must be uint8 [N H W C]")
  if num_levels < 256 and images.max(initial=0) >= num_levels:
    raise ValueError(
      f"images hold the value {images.max()}; with num_levels={num_levels} all must be between 0 "
      f"and {num_levels - 1}"
    )
  if labels is None:
    return
  if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
    raise ValueError(
      f"labels are {labels.dtype}{list(labels.shape)}; they must be one class number for each of "
      f"the {len(images)} images"
    )
  low, high = int(labels.min(initial=0)), int(labels.max(initial=0))
  if low < 0 or (num_classes and high >= num_classes):
    most = f"; with num_classes={num_classes} all must be between 0 and" if num_classes else ""
    needed = f"{most} {num_classes - 1}" if num_classes else "; none may be negative"
    raise ValueError(f"the labels are between {low} and {high}{needed}")


def check_field(name: str, array: np.ndarray, num_images: int) -> np.ndarray:
  """Convert a named array [N ...] to the type for the devices: float32, int32 or uint8.

  Raises:
    ValueError: it has no numbers, another length than the images, or values that are not finite.
  """
  if array.dtype.kind not in "biuf":
    raise ValueError(f"'{name}' is {array.dtype}; it must hold numbers")
  if not array.ndim or len(array) != num_images:
    length = len(array) if array.ndim else "no"
    raise ValueError(
      f"'{name}' has {length} rows beside {num_images} images; it must have one per image"
    )
  if array.dtype.kind == "f":
    bad = int((~np.isfinite(array).reshape(num_images, -1).all(axis=1)).sum())
    if bad:
      raise ValueError(f"'{name}' is not finite (NaN or infinity) in {bad} of {num_images} rows")
    return np.ascontiguousarray(array, np.float32)
  if array.dtype.kind == "b" or array.dtype == np.uint8:
    return np.ascontiguousarray(array, np.uint8)
  low, high = int(array.min(initial=0)), int(array.max(initial=0))
  if low < -(2**31) or high >= 2**31:
    raise ValueError(f"'{name}' holds values from {low} to {high}, which int32 does not")
  return np.ascontiguousarray(array, np.int32)


def count_labels(labels: Int[np.ndarray, "N"], num_classes: int) -> list[int] | None:
  """Return the number of images of each class, or None for an unlabelled set."""
  return np.bincount(labels, minlength=num_classes).tolist() if num_classes else None


def trained_classes(source: Source) -> list[int]:
  """Return the labels with images in a split; all labels if that is not known."""
  counts, num_classes = source.about.counts, source.spec.num_classes
  return [i for i in range(num_classes) if counts is None or counts[i]]


def class_names(about: About) -> list[str]:
  """Return the names of the classes on one line each; empty if they have only numbers."""
  return [printable(name) for name in about.classes]


MAX_NAMED = 10
"""Number of classes that are listed at the start of a run."""


def describe_classes(about: About, num_classes: int) -> str:
  """List the first classes, "ape (2), cat (3)", and the number of classes without images."""
  names = class_names(about) or [str(i) for i in range(num_classes)]
  counts = about.counts
  if counts is None:
    shown, num_there = list(names[:MAX_NAMED]), num_classes
  else:
    there = [i for i in range(num_classes) if counts[i]]
    shown, num_there = [f"{names[i]} ({counts[i]:,})" for i in there[:MAX_NAMED]], len(there)
  more = f" and {num_there - MAX_NAMED:,} more" if num_there > MAX_NAMED else ""
  without = ""
  if num_there < num_classes:
    without = (f"; {num_classes - num_there:,} of {num_classes:,} have no image, and are neither "
               "sampled nor measured")  # fmt: skip
  return f"{', '.join(shown)}{more}{without}"


def fixed_order(num_images: int, seed: int = 0) -> Int[np.ndarray, "N"]:
  """Return a permutation of 0..num_images-1 that is the same in every version of NumPy.

  It sorts the raw words of the Philox counter-based generator (Salmon et al. 2011), whose stream is
  part of NumPy's compatibility promise; `Generator.permutation` is not.
  """
  return np.argsort(np.random.Philox(key=seed).random_raw(num_images), kind="stable")


def fingerprint(source: Source) -> str:
  """Return a short hash of a split: its length, specification, images and labels.

  For a split above 1 GiB it uses 4,096 evenly spaced examples.
  """
  num_hashed = len(source) if len(source) * source.spec.num_dims <= 2**30 else 4096
  places = np.linspace(0, len(source) - 1, num_hashed).astype(np.int64)
  fields = sorted(source.spec.fields.items())
  spec = source.spec[:5] + ((fields,) if fields else ())
  digest = hashlib.sha256(repr((len(source), spec)).encode())
  with progress.phase(f"fingerprint of {source.name}", num_hashed, "images") as phase:
    for first in range(0, num_hashed, 1024):
      chosen = places[first : first + 1024]
      images, labels = source.gather(chosen)
      digest.update(images.tobytes())
      digest.update(labels.astype("<i4").tobytes())
      for name, array in sorted(source.gather_fields(chosen).items()):
        digest.update(name.encode() + np.ascontiguousarray(array).tobytes())
      phase.advance(len(chosen))
  return digest.hexdigest()[:16]


def source_identity(source: Source) -> dict[str, Any]:
  """Return name, num and fingerprint of a split, by which a run knows its data again."""
  return {"name": source.name, "num": len(source), "fingerprint": fingerprint(source)}


MIN_THREADS = 16
"""Minimum number of reading threads.

It exceeds the cores of a small machine because storage may be slow: with 5 ms per read, two cores
read 2,300 images of 64x64 per second with 16 threads and 320 with two; without a delay, both read
the same number.
"""


def num_threads() -> int:
  """Return the number of threads that read pictures at once."""
  return max(MIN_THREADS, os.cpu_count() or 1)


class DecodedSource(SourceBase):
  """A split whose examples are read one by one, in several threads.

  Args:
    name: name for messages.
    spec: shape of the images.
    num: number of examples.
    read: position -> (image, label); raises for an unreadable one.
    about: other facts.
  """

  def __init__(
    self,
    name: str,
    spec: ImageSpec,
    num: int,
    read: Callable[[int], tuple[UInt8[np.ndarray, "H W C"], int]],
    about: About = About(),  # noqa: B008
  ):
    self.name, self.spec, self.about = name, spec, about
    self._num, self._read = num, read
    self._num_threads = num_threads()
    self._pool = ThreadPoolExecutor(self._num_threads)

  def __len__(self) -> int:
    return self._num

  def gather(
    self, index: Int[np.ndarray, "B"]
  ) -> tuple[UInt8[np.ndarray, "B H W C"], Int32[np.ndarray, "B"]]:
    images = np.empty((len(index), *self.spec.shape), np.uint8)
    labels = np.empty(len(index), np.int32)
    rows = iter(range(len(index)))  # shared: each thread takes the next, so all end together

    def fill(_: int) -> None:
      for i in rows:
        images[i], labels[i] = self._read(int(index[i]))

    # One task per image instead would cost 24 us of CPU time each.
    list(self._pool.map(fill, range(min(len(index), self._num_threads))))
    return images, labels


def in_memory_if_small(source: Source, max_ram_gib: float) -> Source:
  """Decode a whole split once if it fits in memory, which makes reading far cheaper."""
  if not fits_in_memory(len(source), source.spec.num_dims, max_ram_gib):
    return source
  places = np.arange(len(source))
  images, labels = _decoded(source)
  levels, classes = source.spec.num_levels or 256, source.spec.num_classes
  fields = source.gather_fields(places)
  return ArraySource(source.name, images, labels, levels, classes, source.about, fields)


def fits_in_memory(num_images: int, num_dims: int, max_ram_gib: float) -> bool:
  """Return True if so many decoded images may be kept in memory."""
  return num_images * num_dims <= max_ram_gib * 2**30


def _decoded(source: Source) -> tuple[np.ndarray, np.ndarray]:
  """Return all images and labels of a split."""
  images, labels = source.gather(np.arange(1))
  images = np.empty((len(source), *images.shape[1:]), images.dtype)
  labels = np.empty(len(source), labels.dtype)
  with progress.phase(f"decoding {source.name}", len(source), "images") as phase:
    for first in range(0, len(source), 1024):
      index = np.arange(first, min(first + 1024, len(source)))
      images[index], labels[index] = source.gather(index)
      phase.advance(len(index))
  return images, labels


def orientation(image: Image.Image) -> int:
  """Return the EXIF orientation of an open picture from its header, 1 to 8; 1 is upright."""
  if image.format == "PNG" and "exif" not in image.info:
    return 1  # Pillow would decode the whole picture to read data after the pixels
  return image.getexif().get(ExifTags.Base.Orientation, 1)


def is_transparent(image: Image.Image) -> bool:
  """Return True if an open picture has an alpha channel or a transparent colour."""
  return image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info


def has_deep_channels(image: Image.Image) -> bool:
  """Return True if an open picture has more than 8 bits per channel (mode or decoder)."""
  if image.mode.startswith(("I", "F")):
    return True
  for tile in getattr(image, "tile", ()):
    depth = str(tile[3])  # "RGB;16B" of a 16-bit PNG; "BGR;16" is a pixel of 16 bits
    if ";16" in depth and "BGR;16" not in depth:
      return True
    if tile[0].startswith("ppm") and isinstance(tile[3], tuple) and tile[3][-1] > 255:
      return True
  return False


DRAFT_FACTOR = 2
"""Sides of a JPEG decoded at a reduced size are at least so many times the wanted ones."""


def check_fit(image_size: int | None, channels: int = 3) -> None:
  """Raise a ValueError if pictures cannot have this size or number of channels."""
  if channels not in (1, 3):
    raise ValueError(f"channels={channels} must be 1 (grey) or 3 (colour)")
  if image_size is not None and image_size < 1:
    raise ValueError(f"image_size={image_size} must be at least 1, or none")


def check_test_fraction(test_fraction: float) -> None:
  """Raise a ValueError if the fraction to hold out is not in [0, 1)."""
  if not 0 <= test_fraction < 1:
    raise ValueError(f"test_fraction={test_fraction} must be at least 0 and below 1")


def fit_image(
  image: Image.Image, size: int | None, channels: int, draft: bool = False
) -> UInt8[np.ndarray, "H W C"]:
  """Return a picture as an array: grey or colour, optionally resized and centre-cropped.

  It is first turned upright by its EXIF orientation.

  Args:
    image: the picture; transparent parts become white and palettes are resolved.
    size: the shorter side is resized to it (bicubic, antialiased) and the longer one cropped at
      both ends; None keeps the size.
    channels: 1 or 3.
    draft: decode a large JPEG at 1/2, 1/4 or 1/8 of its size, several times faster.

  Raises:
    ValueError: a picture with more than 8 bits per channel.
  """
  if draft and size is not None and image.format in ("JPEG", "MPO"):
    image.draft(None, (DRAFT_FACTOR * size, DRAFT_FACTOR * size))
  if has_deep_channels(image):
    raise ValueError(f"{image.mode} has more than 8 bits a channel, which would be cut off")
  if orientation(image) != 1:
    image = ImageOps.exif_transpose(image)
  if is_transparent(image):
    image = image.convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
  image = image.convert("L" if channels == 1 else "RGB")
  if size is not None and image.size != (size, size):
    image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
  return np.asarray(image, np.uint8).reshape(image.height, image.width, channels)
