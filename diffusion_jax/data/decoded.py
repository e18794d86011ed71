"""Decoded pictures, kept in the user's cache until a file or a setting changes."""

import json
import shutil
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from diffusion_jax.core import files, progress
from diffusion_jax.data.reading import CHUNK, Broken, Reader
from diffusion_jax.data.source import num_threads
from diffusion_jax.parallel import watchdog
from diffusion_jax.types import UserError

CACHED_FROM_SEC = 1.0
"""Seconds of decoding from which the result is stored."""

MAX_CACHE_BYTES = 32 << 30
"""Size of all decoded sets in the cache; beyond it those used longest ago are deleted."""


class Decoded(NamedTuple):
  """The pictures of a set.

  Attributes:
    images: pixels [N H W C] of the pictures that can be read, in the order of their positions.
    broken: position -> reason, for the others.
  """

  images: np.ndarray
  broken: dict[int, str]


def decode_pictures(
  reader: Reader[np.ndarray],
  shape: tuple[int, int, int],
  num_images: int,
  digest: str,
  tolerant: bool,
) -> Decoded:
  """Decode every picture, or take the result from the user's cache.

  Args:
    reader: position -> pixels of that shape.
    shape: height, width and channels of every result.
    num_images: number of pictures.
    digest: hash of everything that the pixels depend on, see `reading.files_digest`.
    tolerant: skip unreadable pictures; otherwise an error lists all of them.

  Raises:
    UserError: pictures are unreadable.
  """
  folder = files.cache_folder() / "decoded" / digest
  cached = _load(folder)
  if cached is not None and (tolerant or not cached.broken):
    return cached
  begun = time.monotonic()
  decoded, is_lasting = _decode(reader, num_images, shape, tolerant)
  if is_lasting and time.monotonic() - begun >= CACHED_FROM_SEC:
    _store(folder, decoded)
  return decoded


def _decode(
  reader: Reader[np.ndarray], num: int, shape: tuple[int, int, int], tolerant: bool
) -> tuple[Decoded, bool]:
  """Return the pictures, and whether unreadable ones are so for good."""
  images, broken, is_lasting = np.empty((num, *shape), np.uint8), {}, True

  def load(place: int) -> Broken | None:
    try:
      images[place] = reader.load(place)
    except Broken as error:
      return error
    return None

  with (
    ThreadPoolExecutor(num_threads()) as pool,
    progress.phase("reading pictures", num, "images") as phase,
  ):
    for first in range(0, num, CHUNK):
      places = range(first, min(first + CHUNK, num))
      for place, error in zip(places, pool.map(load, places), strict=True):
        phase.advance()
        if error is not None:
          broken[place] = str(error)
          is_lasting = is_lasting and not error.by_system
      watchdog.beat()
      if broken and not tolerant:
        raise reader.refuse(broken)
  if broken:
    images = images[np.setdiff1d(np.arange(num), list(broken))]
  return Decoded(images, broken), is_lasting


def _load(folder: Path) -> Decoded | None:
  """Return a stored set; None if there is none or its checksum is wrong."""
  try:
    about = json.loads((folder / "about.json").read_text())
    images = np.load(folder / "images.npy", mmap_mode="r")
    if _checksum(images) != about["crc32"]:
      return None
    (folder / "about.json").touch()  # used now
    return Decoded(images, {int(place): reason for place, reason in about["broken"].items()})
  except (OSError, ValueError, KeyError, TypeError, AttributeError):
    return None


def _checksum(images: np.ndarray) -> int:
  value = 0
  for first in range(0, len(images), CHUNK):
    value = zlib.crc32(images[first : first + CHUNK].tobytes(), value)
  return value


def _store(folder: Path, decoded: Decoded) -> None:
  """Store a set; without room or rights it is decoded again at the next start."""
  try:
    folder.parent.mkdir(parents=True, exist_ok=True)
    _make_room(folder.parent, decoded.images.nbytes)
    if shutil.disk_usage(folder.parent).free < 2 * decoded.images.nbytes:
      return
    folder.mkdir(exist_ok=True)
    (folder / "about.json").unlink(missing_ok=True)
    with files.atomic_write(folder / "images.npy") as file:
      np.save(file, decoded.images)
    about = {"crc32": _checksum(decoded.images), "broken": decoded.broken}
    files.write_json(folder / "about.json", about)
  except (OSError, UserError):
    return


def _make_room(root: Path, num_bytes: int) -> None:
  sets = [(about.stat().st_mtime, about.parent) for about in root.glob("*/about.json")]
  sizes = {folder: sum(f.stat().st_size for f in folder.iterdir()) for _, folder in sets}
  total = num_bytes + sum(sizes.values())
  for _, folder in sorted(sets):
    if total <= MAX_CACHE_BYTES:
      return
    shutil.rmtree(folder, ignore_errors=True)
    total -= sizes[folder]
