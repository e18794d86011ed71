"""A directory tree of pictures; its sub-folders are the classes."""

import dataclasses
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from diffusion_jax.data.source import (
  DecodedSource,
  Source,
  fit_image,
  fixed_order,
  in_memory_if_small,
  orientation,
)
from diffusion_jax.paths import user_path
from diffusion_jax.types import ImageSpec, UserError

UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


class Listing(NamedTuple):
  """Pictures of a folder in sorted order, with their classes.

  Attributes:
    files: paths.
    labels: class of each, 0 where there are no sub-folders.
    classes: names of the sub-folders.
  """

  files: list[Path]
  labels: list[int]
  classes: list[str]


@dataclasses.dataclass(frozen=True)
class Folder:
  """Pictures (png, jpg, webp) below a folder. A picture in `path/cat/...` is of class cat.

  A folder that holds train/ and test/ (or val/, valid/, validation/) holds the two splits, as
  torchvision's data sets do: these names are no classes.

  Attributes:
    path: of the folder.
    image_size: resize the shorter side to it and crop the centre; none: all have one size.
    channels: 1 for grey, 3 for colour; pictures are converted.
    test_path: folder of the test split, with the same classes; in place of one below `path`.
    test_fraction: without a test_path, the share of pictures held out, chosen by a fixed order.
    max_ram_gib: a split that is smaller once decoded is kept in memory.
    flip: mirror half of the training images.
  """

  path: str = ""
  image_size: int | None = None
  channels: int = 3
  test_path: str | None = None
  test_fraction: float = 0.0
  max_ram_gib: float = 8.0
  flip: bool = False

  def __post_init__(self):
    if self.channels not in (1, 3):
      raise ValueError(f"channels={self.channels} must be 1 (grey) or 3 (colour)")
    if self.image_size is not None and self.image_size < 1:
      raise ValueError(f"image_size={self.image_size} must be at least 1, or none")
    if not 0 <= self.test_fraction < 1:
      raise ValueError(f"test_fraction={self.test_fraction} must be at least 0 and below 1")

  def load(self, split: str) -> Source:
    """Lists, checks and (if small) decodes a split.

    Raises:
      UserError: no such folder, no pictures, unreadable pictures, or sizes that differ.
    """
    if not self.path:
      raise UserError("--config.data.path is not set; give a folder of pictures")
    root = user_path(self.path)
    folders = split_folders(root, f"--config.data.path={root}")
    listing = _list_folder(folders.get("train", root), "path")
    if split == "test" and self.test_path:
      listing = _list_folder(user_path(self.test_path), "test_path", listing.classes)
    elif self.test_fraction:
      listing = _part(listing, split, self.test_fraction)
    elif split == "test":
      listing = _list_folder(folders["test"], "path", listing.classes)
    size = self._check_sizes(listing.files)
    spec = ImageSpec(*size, self.channels, 256, len(listing.classes))
    name = f"{Path(self.path).name} {split}"
    source = DecodedSource(name, spec, len(listing.files), lambda i: self._read(listing, i))
    return in_memory_if_small(source, self.max_ram_gib)

  def has_split(self, split: str) -> bool:
    if split == "train" or self.test_path or self.test_fraction:
      return True
    root = user_path(self.path)
    return "test" in split_folders(root, f"--config.data.path={root}")

  def _read(self, listing: Listing, place: int) -> tuple[np.ndarray, int]:
    try:
      with Image.open(listing.files[place]) as image:
        return fit_image(image, self.image_size, self.channels), listing.labels[place]
    except UNREADABLE as error:
      raise UserError(
        f"{listing.files[place]} is not a readable picture ({error}); mend it or move it away"
      ) from error

  def _check_sizes(self, files: list[Path]) -> tuple[int, int]:
    """Height and width of every picture, from their headers."""
    with ThreadPoolExecutor() as pool:
      found = list(pool.map(header_size, files))
    broken = [file for file, size in zip(files, found, strict=True) if size is None]
    if broken:
      raise UserError(
        f"{len(broken)} of {len(files)} pictures in {self.path} cannot be read, the first is "
        f"{broken[0]}; mend them or move them away"
      )
    if self.image_size is not None:
      return self.image_size, self.image_size
    sizes = [size for size in found if size is not None]
    other = next((i for i, size in enumerate(sizes) if size != sizes[0]), None)
    if other is not None:
      (h1, w1), (h2, w2) = sizes[0], sizes[other]
      raise UserError(
        f"pictures in {self.path} differ in size ({files[0].name} is {w1}x{h1}, "
        f"{files[other].name} is {w2}x{h2}); set --config.data.image_size={min(h1, w1, h2, w2)}"
      )
    return sizes[0]


TEST_NAMES = ("test", "val", "valid", "validation")


def split_folders(root: Path, where: str) -> dict[str, Path]:
  """Return the folders of the splits, "train" and perhaps "test"; empty where there are none.

  Args:
    root: that may hold them.
    where: it was named, for messages.

  Raises:
    UserError: folders named as splits beside others, two test splits, or no training split.
  """
  below = sorted(f for f in root.iterdir() if f.is_dir()) if root.is_dir() else []
  below = [f for f in below if not f.name.startswith((".", "__MACOSX"))]
  tests = [f for f in below if f.name.lower() in TEST_NAMES]
  train = [f for f in below if f.name.lower() == "train"]
  if not tests and not train:
    return {}
  others = [f.name for f in below if f not in tests and f not in train]
  named = ", ".join(f.name for f in train + tests)
  if others:
    raise UserError(
      f"{where} holds folders named as splits ({named}) and others ({others[0]}): are they splits "
      "or classes? Move the splits, or the classes, into a folder of their own, or rename them"
    )
  if len(tests) > 1 or len(train) != 1:
    raise UserError(
      f"{where} holds {named}: give one folder train and one of {', '.join(TEST_NAMES)}, or name "
      "them: --config.data.path=ROOT/train --config.data.test_path=ROOT/test"
    )
  return {"train": train[0]} | ({"test": tests[0]} if tests else {})


def _list_folder(root: Path, field: str, classes: list[str] | None = None) -> Listing:
  flag = f"--config.data.{field}={root}"
  if not root.is_dir():
    raise UserError(f"{flag}: no such folder; give a folder of pictures")
  files = sorted(f for f in root.rglob("*") if f.suffix.lower() in SUFFIXES and f.is_file())
  if not files:
    raise UserError(f"{flag}: no pictures there; it needs files ending in {', '.join(SUFFIXES)}")
  top = [f.relative_to(root).parts[0] if f.parent != root else "" for f in files]
  names = sorted({t for t in top if t}, key=in_natural_order)
  if names and "" in top:
    stray = files[top.index("")]
    raise UserError(f"{flag} holds classes ({names[0]}, ...) and {stray.name}; move it into one")
  if classes is not None and set(names) - set(classes):
    raise UserError(f"{flag} has class {min(set(names) - set(classes))}, which path has not")
  if classes and not names:
    raise UserError(f"{flag} has no sub-folders, but path has the classes {', '.join(classes)}")
  classes = names if classes is None else classes
  return Listing(files, [classes.index(t) if t else 0 for t in top], classes)


def in_natural_order(name: str) -> list[tuple[int, int | str]]:
  """Return the key that sorts 2 before 10, and numbers before words."""
  parts = re.split(r"([0-9]+)", name)
  return [(0, int(p)) if p.isdecimal() else (1, p) for p in parts if p]


def _part(listing: Listing, split: str, test_fraction: float) -> Listing:
  """The training or the held-out part, in the files' order."""
  order = fixed_order(len(listing.files))
  num_train = len(order) - round(len(order) * test_fraction)
  chosen = np.sort(order[:num_train] if split == "train" else order[num_train:])
  if not len(chosen):
    raise UserError(
      f"--config.data.test_fraction={test_fraction} leaves no picture of {len(order)} for the "
      f"{split} split; choose another"
    )
  files, labels = [listing.files[i] for i in chosen], [listing.labels[i] for i in chosen]
  return Listing(files, labels, listing.classes)


def header_size(file: Path) -> tuple[int, int] | None:
  """Return height and width of a picture turned upright, without decoding; None if unreadable."""
  try:
    with Image.open(file) as image:
      is_turned = orientation(image) >= 5  # by a quarter
      return (image.width, image.height) if is_turned else (image.height, image.width)
  except UNREADABLE:
    return None
