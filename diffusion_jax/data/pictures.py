"""Pictures of any program: a folder or an archive of image files, or arrays."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Int, Int32, Num, UInt8

from diffusion_jax.core import npz
from diffusion_jax.core.files import printable
from diffusion_jax.data.archives import find_archive
from diffusion_jax.data.base import SourceBase
from diffusion_jax.data.checking import check_pictures
from diffusion_jax.data.listing import Listing, find_pictures
from diffusion_jax.data.reading import Reader, opened
from diffusion_jax.data.source import (
  About,
  ArraySource,
  DecodedSource,
  Source,
  fit_image,
  in_memory_if_small,
)
from diffusion_jax.data.walking import Walk
from diffusion_jax.types import ImageSpec, UserError

UNFINISHED = ".parts"
"""Sub-folder that marks images still being drawn; some of them are missing."""

ARRAYS = ("images", "arr_0")
"""Names of the image array in an .npz: ours, and that of unnamed arrays."""

MAX_RAM_GIB = 2.0
"""Size up to which pictures are decoded at once, so that unreadable ones are found early."""

ADVICE = "repair them or move them away"


def load_pictures(path: Path, flag: str, least: int = 2, model: ImageSpec | None = None) -> Source:
  """Load images from a folder or archive, an .npz, or a folder of .npz chunks.

  Skipped files are printed.

  Args:
    path: folder or file.
    flag: flag that named it, for messages.
    least: minimum number of images; a sample metric needs two.
    model: spec of the model that takes them; pictures are resized to it and cropped if its images
      are square, as those of a data set are. None: they are not resized.

  Raises:
    UserError: no images, too few images, mixed sizes, or unreadable files.
  """
  where = f"{flag}={path}"
  size = model.height if model is not None and model.height == model.width else None
  if (path / UNFINISHED).is_dir():
    raise UserError(f"{where}: the program that draws these images was cut off; start it again")
  if find_archive(path, where) is not None:
    source = _from_files(path, where, size)
  elif not path.exists():
    raise UserError(
      f"{where}: no such folder or .npz; give a folder of images, a .zip or .tar, or a file.npz"
    )
  elif not path.is_dir():
    source = _from_arrays(path, [path], where)
  elif chunks := _chunks(path):
    source = _from_arrays(path, chunks, where)
  else:
    source = _from_files(path, where, size)
  if not len(source):
    raise UserError(f"{where} holds no image; give at least {least}")
  if len(source) < least:
    raise UserError(f"{where} holds {len(source)} image; a sample metric needs at least {least}")
  for note in source.about.notes:
    print(printable(f"{where}: {note}"), flush=True)
  return source


def _chunks(path: Path) -> list[Path]:
  """Return the .npz files of a folder without pictures."""
  chunks = sorted(path.glob("*.npz"))
  return chunks if chunks and not Walk(str(path)).names else []


def _from_files(root: Path, where: str, size: int | None) -> Source:
  listing = find_pictures(root, where)
  make_reader = lambda found: _reader(found, 3, where, size)  # noqa: E731
  checked = check_pictures(listing, make_reader, where, "refuse", size)
  names, headers = checked.listing.names, checked.headers
  other = next((i for i, header in enumerate(headers) if header.size != headers[0].size), None)
  height, width = headers[0].size if size is None else (size, size)
  if other is not None and size is None:
    h, w = headers[other].size
    raise UserError(
      f"{where}: images of mixed sizes ({printable(names[0])} is {width}x{height}, "
      f"{printable(names[other])} is {w}x{h}); give images of one size"
    )
  channels = 1 if all(header.is_grey for header in headers) else 3
  pixels = _reader(checked.listing, channels, where, size)
  files, notes = checked.files, checked.notes()
  if files and set(files.pictures) - {"as they are"}:
    notes = (files.text(), *notes)
  source = DecodedSource(
    f"{root.name} given", ImageSpec(height, width, channels, 256, 0), len(names),
    lambda i: (pixels(i), 0), About(notes=notes, files=files),
  )  # fmt: skip
  return in_memory_if_small(source, MAX_RAM_GIB)


def _reader(listing: Listing, channels: int, where: str, size: int | None) -> Reader[np.ndarray]:
  def load(place: int) -> np.ndarray:
    with opened(listing.file(place)) as image:
      return fit_image(image, size, channels)

  return Reader(len(listing.names), load, lambda i: listing.names[i], where, ADVICE)


def _from_arrays(root: Path, files: list[Path], where: str) -> Source:
  all_images = [_open(file, where if file == root else f"{where}: {file.name}") for file in files]
  other = next(
    (i for i, images in enumerate(all_images) if images.shape[1:] != all_images[0].shape[1:]), None
  )
  if other is not None:
    raise UserError(
      f"{where}: images of mixed sizes ({files[0].name} has {all_images[0].shape[1:]}, "
      f"{files[other].name} has {all_images[other].shape[1:]}); give images of one size"
    )
  return ArraySource(f"{root.stem} given", np.concatenate(all_images), None, 256, 0)


def _open(file: Path, where: str) -> np.ndarray:
  there = npz.names(file, where)
  name = next((name for name in ARRAYS if name in there), None)
  if statistics := npz.statistics_names(there) or (["stamp"] * (name is None and "stamp" in there)):
    raise UserError(
      f"{where} holds statistics of features ({', '.join(statistics)}), which are never read as "
      "images; give a folder of images or an .npz with images alone. Statistics belong to "
      "--reference"
    )
  if name is None:
    raise UserError(f"{where} has {npz.listed_names(there)}; it needs an array images")
  return read_pictures(file, name, where)


def read_pictures(file: Path, name: str, where: str) -> UInt8[np.ndarray, "N H W C"]:
  """Return the pictures in one array of an .npz, whatever other arrays the file has.

  Args:
    file: the .npz.
    name: name of the array.
    where: source of the path, for messages.

  Raises:
    UserError: the array is damaged, or no uint8 [N, H, W], [N, H, W, 1] or [N, H, W, 3].
  """
  images = npz.read_npz(file, where, lambda array_name: array_name == name)[name]
  images = images[..., None] if images.ndim == 3 else images
  if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
    raise UserError(
      f"{where}: {name} is {images.dtype}{list(images.shape)}; it must be uint8 [N, H, W, 1] or "
      "[N, H, W, 3]"
    )
  return images


class RecolouredSource(SourceBase):
  """A one-channel source repeated to three channels, or the reverse.

  Args:
    source: the images; if they have three channels, these are equal in every image.
    channels: 1 or 3.
  """

  def __init__(self, source: Source, channels: int):
    self.name, self.about = source.name, source.about
    self.spec = source.spec._replace(channels=channels)
    self._source = source

  def __len__(self) -> int:
    return len(self._source)

  def gather(
    self, index: Int[np.ndarray, "B"]
  ) -> tuple[UInt8[np.ndarray, "B H W C"], Int32[np.ndarray, "B"]]:
    images, labels = self._source.gather(index)
    one = images[..., :1]
    return one if self.spec.channels == 1 else np.repeat(one, 3, axis=-1), labels

  def gather_fields(self, index: Int[np.ndarray, "B"]) -> Mapping[str, Num[np.ndarray, "B ..."]]:
    return self._source.gather_fields(index)


def with_channels(source: Source, channels: int) -> Source:
  """Convert images to 1 or 3 channels if this loses nothing; otherwise return the source.

  Grey pictures are often stored in colour. They become one channel if red, green and blue are equal
  in every pixel of every image, which is checked by reading them all.
  """
  if source.spec.channels == channels:
    return source
  if channels == 1 and not _is_grey_throughout(source):
    return source
  return RecolouredSource(source, channels)


def _is_grey_throughout(source: Source, chunk: int = 512) -> bool:
  for first in range(0, len(source), chunk):
    images = source.gather(np.arange(first, min(first + chunk, len(source))))[0]
    if (images != images[..., :1]).any():
      return False
  return True
