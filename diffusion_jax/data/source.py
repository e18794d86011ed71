"""Sources in memory or read one by one, their fingerprints, and how pictures become arrays."""

import hashlib
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType

import numpy as np
from jaxtyping import Int, Int32, Num, UInt8
from PIL import ExifTags, Image, ImageOps

from diffusion_jax.core.files import printable
from diffusion_jax.data.base import About, Source, SourceBase
from diffusion_jax.types import FieldSpec, ImageSpec


class ArraySource(SourceBase):
  """A split that lies in memory.

  Args:
    name: for people.
    images: levels 0..L-1, uint8 [N H W C].
    labels: class numbers [N]; None for an unlabelled set.
    num_levels: L.
    num_classes: of the whole data set; 0 for an unlabelled one. None: as the labels have.
    about: what else is known; the images of each class are counted here.
    fields: named arrays that accompany the images, finite and one row an image.

  Raises:
    ValueError: arrays that do not fit each other or their levels.
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
    raise ValueError(f"images hold {images.max()}; num_levels={num_levels} allows less than that")
  if labels is None:
    return
  if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
    raise ValueError(
      f"labels are {labels.dtype}{list(labels.shape)}; they must be one class number for each of "
      f"the {len(images)} images"
    )
  low, high = int(labels.min(initial=0)), int(labels.max(initial=0))
  if low < 0 or (num_classes and high >= num_classes):
    raise ValueError(f"labels run from {low} to {high}; num_classes={num_classes} allows 0 to less")


def check_field(name: str, array: np.ndarray, num: int) -> np.ndarray:
  """Return a named array [N ...] as it travels to the devices: float32, int32 or uint8.

  Raises:
    ValueError: it is no array of numbers, has another length than the images, or is not finite.
  """
  if array.dtype.kind not in "biuf":
    raise ValueError(f"'{name}' is {array.dtype}; it must hold numbers")
  if not array.ndim or len(array) != num:
    length = len(array) if array.ndim else "no"
    raise ValueError(f"'{name}' has {length} rows beside {num} images; it must have one an image")
  if array.dtype.kind == "f":
    bad = int((~np.isfinite(array).reshape(num, -1).all(axis=1)).sum())
    if bad:
      raise ValueError(f"'{name}' is not finite (NaN or infinity) in {bad} of {num} rows")
    return np.ascontiguousarray(array, np.float32)
  if array.dtype.kind == "b" or array.dtype == np.uint8:
    return np.ascontiguousarray(array, np.uint8)
  low, high = int(array.min(initial=0)), int(array.max(initial=0))
  if low < -(2**31) or high >= 2**31:
    raise ValueError(f"'{name}' holds values from {low} to {high}, which int32 does not")
  return np.ascontiguousarray(array, np.int32)


def count_labels(labels: Int[np.ndarray, "N"], num_classes: int) -> list[int] | None:
  """Return the images of each class, None for an unlabelled set."""
  return np.bincount(labels, minlength=num_classes).tolist() if num_classes else None


def trained_classes(source: Source) -> list[int]:
  """Return the labels that images of a split have; all of them where that is not known."""
  counts, num = source.about.counts, source.spec.num_classes
  return list(range(num)) if counts is None else [i for i in range(num) if counts[i]]


MAX_NAMED = 10
"""Classes that are named at the start of a run."""


def describe_classes(about: About, num_classes: int) -> str:
  """The first classes with their images, "ape (2), cat (3)", and how many have none."""
  names = [printable(name) for name in about.classes] or [str(i) for i in range(num_classes)]
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


def fixed_order(num: int, seed: int = 0) -> Int[np.ndarray, "N"]:
  """A permutation of 0..num-1 that stays the same in every version of NumPy.

  It sorts the raw words of the Philox counter-based generator (Salmon et al. 2011), whose stream
  is part of NumPy's compatibility promise; `Generator.permutation` is not.
  """
  return np.argsort(np.random.Philox(key=seed).random_raw(num), kind="stable")


def fingerprint(source: Source) -> str:
  """A short hash of a split's content: its length, specification, images and labels.

  Of a split above 1 GiB it takes 4,096 evenly spaced examples.
  """
  num = len(source) if len(source) * source.spec.num_dims <= 2**30 else 4096
  places = np.linspace(0, len(source) - 1, num).astype(np.int64)
  fields = sorted(source.spec.fields.items())
  spec = source.spec[:5] + ((fields,) if fields else ())
  digest = hashlib.sha256(repr((len(source), spec)).encode())
  for first in range(0, num, 1024):
    chosen = places[first : first + 1024]
    images, labels = source.gather(chosen)
    digest.update(images.tobytes())
    digest.update(labels.astype("<i4").tobytes())
    for name, array in sorted(source.gather_fields(chosen).items()):
      digest.update(name.encode() + np.ascontiguousarray(array).tobytes())
  return digest.hexdigest()[:16]


MIN_THREADS = 16
"""More than a small machine's cores, because storage may be slow: with 5 ms a read, two cores give
2,300 images of 64x64 a second to 16 threads and 320 to two; without a delay, as many to either."""


def num_threads() -> int:
  """Return how many threads read pictures at once."""
  return max(MIN_THREADS, os.cpu_count() or 1)


class DecodedSource(SourceBase):
  """A split whose examples are read one by one, by several threads.

  Args:
    name: for people.
    spec: of the images.
    num: examples.
    read: place -> (image, label); raises for an unreadable one.
    about: what else is known.
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
    places = iter(range(len(index)))  # shared: each thread takes the next, so that all end together

    def fill(_: int) -> None:
      for place in places:
        images[place], labels[place] = self._read(int(index[place]))

    # A task for each image instead would cost 24 us of the processor's time each.
    list(self._pool.map(fill, range(min(len(index), self._num_threads))))
    return images, labels


def in_memory_if_small(source: Source, max_ram_gib: float) -> Source:
  """Decodes a whole split once if it fits: gathering from an array is far cheaper."""
  if len(source) * source.spec.num_dims > max_ram_gib * 2**30:
    return source
  places = np.arange(len(source))
  images, labels = source.gather(places)
  levels, classes = source.spec.num_levels or 256, source.spec.num_classes
  fields = source.gather_fields(places)
  return ArraySource(source.name, images, labels, levels, classes, source.about, fields)


def orientation(image: Image.Image) -> int:
  """Return EXIF's orientation of an open picture from its header, 1 to 8; 1 is upright."""
  if image.format == "PNG" and "exif" not in image.info:
    return 1  # Pillow would decode all of it to look behind the pixels
  return image.getexif().get(ExifTags.Base.Orientation, 1)


def is_transparent(image: Image.Image) -> bool:
  """Return whether an open picture has an alpha channel or a colour that is clear."""
  return image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info


def has_deep_channels(image: Image.Image) -> bool:
  """Return whether an open picture has more than 8 bits a channel, by its mode or its decoder's."""
  if image.mode.startswith(("I", "F")):
    return True
  for tile in getattr(image, "tile", ()):
    depth = str(tile[3])  # "RGB;16B" of a 16-bit PNG; "BGR;16" is a pixel of 16 bits
    if ";16" in depth and "BGR;16" not in depth:
      return True
    if tile[0].startswith("ppm") and isinstance(tile[3], tuple) and tile[3][-1] > 255:
      return True
  return False


def fit_image(image: Image.Image, size: int | None, channels: int) -> UInt8[np.ndarray, "H W C"]:
  """A picture as an array: grey or colour, and on request resized and centre-cropped.

  It is turned upright first, as its camera says (EXIF).

  Args:
    image: transparency is laid on white, palettes are resolved.
    size: the shorter side is resized to it (bicubic, antialiased) and the longer one cropped on
      both ends; None leaves the picture's size.
    channels: 1 or 3.

  Raises:
    ValueError: a picture of more than 8 bits a channel.
  """
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
