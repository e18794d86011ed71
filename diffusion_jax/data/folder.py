"""A directory tree or an archive of pictures; its sub-folders are the classes."""

import dataclasses
from pathlib import Path

import numpy as np

from diffusion_jax.core.files import bucket_path, printable
from diffusion_jax.core.settings import setting
from diffusion_jax.data.base import DataSetBase, Seen
from diffusion_jax.data.checking import Checked, check_pictures
from diffusion_jax.data.decoded import Decoded, decode_pictures
from diffusion_jax.data.listing import Listing, list_folder, split_folders
from diffusion_jax.data.reading import (
  Header,
  Reader,
  Unreadable,
  files_digest,
  opened,
  read_headers,
)
from diffusion_jax.data.source import (
  About,
  ArraySource,
  DecodedSource,
  Source,
  check_fit,
  check_test_fraction,
  count_labels,
  fit_image,
  fits_in_memory,
  fixed_order,
  in_memory_if_small,
)
from diffusion_jax.types import ImageSpec, UserError

ADVICE = "repair them, move them away, or leave them out with `data.unreadable=skip`"


@dataclasses.dataclass(frozen=True)
class Folder(DataSetBase):
  """Pictures in folders or archives; the class of `path/cat/any/depth/x.png` is cat.

  A folder with train/ and test/ (or val/, valid/, validation/) contains the two splits, as in
  torchvision's data sets: these names are not classes. Links are followed. Names that begin with a
  dot, __MACOSX and Thumbs.db are ignored. Labels in a dataset.json (EDM's data sets) or in .cls and
  .json files beside the pictures (WebDataset) are read too.

  Attributes:
    path: folder of the pictures, whose sub-folders are the classes; or a .zip or .tar of such a
      folder; or tar files: their folder, or a pattern such as train-{000..146}.tar.
    image_size: pixels per side: the shorter side is resized to it, the centre cropped; none: no
      resizing.
    channels: 1 for grey, 3 for colour; pictures are converted.
    test_path: folder of the test split, with the same classes; in place of one inside `path`.
    test_fraction: fraction of the pictures to hold out without a test_path, in a fixed order.
    unreadable: refuse and list all unreadable pictures; or skip them, and pictures beside the
      classes and dangling links, which decodes every picture at the first start with these files.
    max_ram_gib: largest decoded size of a split, in GiB, that is kept in memory.
    flip: mirror half of the training images, chosen at random.
    draft: decode large JPEGs at 1/2, 1/4 or 1/8 of their size but at least twice image_size, which
      is several times faster and changes the pixels slightly.
  """

  path: str = setting("", may_change=True, affects_figures=False, is_path=True)
  image_size: int | None = None
  channels: int = 3
  test_path: str | None = setting(None, may_change=True, is_path=True)
  test_fraction: float = setting(0.0, may_change=True)
  unreadable: Unreadable = setting("refuse", may_change=True)
  max_ram_gib: float = setting(8.0, may_change=True, affects_figures=False)
  flip: bool = False
  draft: bool = False

  def __post_init__(self):
    check_fit(self.image_size, self.channels)
    check_test_fraction(self.test_fraction)

  def load(self, split: str) -> Source:
    """List, check and (if small) decode a split.

    Raises:
      UserError: no such folder, no pictures, unreadable pictures, or different sizes.
    """
    if not self.path:
      raise UserError("`data.path=DIR` is missing; give a folder of pictures")
    if self.test_path and self.test_fraction:
      raise UserError(
        f"`data.test_path={self.test_path}` and `data.test_fraction={self.test_fraction}` both "
        "define the test split; set only one"
      )
    chosen, where, origin = self._choose(split)
    listing = chosen.listing
    num_classes = len(listing.classes)
    spec = ImageSpec(*self._one_size(chosen), self.channels, 256, num_classes)
    counts = count_labels(np.array(listing.labels, int), num_classes)
    about = About(listing.classes, counts, origin, chosen.notes(), chosen.files)
    name, num = f"{Path(self.path).name} {split}", len(listing.names)
    if chosen.images is not None:
      images, labels = chosen.images[chosen.rows], np.array(listing.labels, np.int32)
      return ArraySource(name, images, labels, 256, num_classes, about)
    pixels = self._reader(listing, where, memory=chosen.memory)
    source = DecodedSource(name, spec, num, lambda i: (pixels(i), listing.labels[i]), about)
    return in_memory_if_small(source, self.max_ram_gib)

  def look(self) -> Seen:
    """Return the sizes of all training pictures by their headers, and the number of classes."""
    (train, _), *_ = self._listings()
    headers = [h for h in read_headers(train.files()) if isinstance(h, Header)]
    is_grey = all(header.is_grey for header in headers)
    sizes = [header.size for header in headers]
    return Seen(sizes, is_grey, len(headers), len(train.classes), True)

  def has_split(self, split: str) -> bool:
    if split == "train" or self.test_path or self.test_fraction:
      return True
    root = bucket_path(self.path)
    return "test" in split_folders(root, f"`data.path={root}`")

  def _choose(self, split: str) -> tuple[Checked, str, str]:
    """Return the pictures of a split, the flag that named them, and their origin."""
    (train, where), *others = self._listings()
    if self.test_fraction:
      part = _part(self._check(train, where), split, self.test_fraction)
      unused = self._unused_folder()
      return part, where, f"{self.test_fraction:g} of {train.root}, in a fixed order{unused}"
    if split == "test" and not others:
      raise UserError(
        f"{where} has no held-out images: it has no folder test; set `data.test_path=DIR` or "
        "`data.test_fraction=0.1`"
      )
    listing, where = others[0] if split == "test" else (train, where)
    return self._check(listing, where), where, f"from {listing.root}"

  def _listings(self) -> list[tuple[Listing, str]]:
    """Return all pictures with the flag that named them; the training folder first."""
    root = bucket_path(self.path)
    where = f"`data.path={root}`"
    folders = split_folders(root, where)
    strict = self.unreadable == "refuse"
    train = list_folder(folders.get("train", root), where, strict=strict)
    found = [(train, where)]
    if self.test_path:
      root = bucket_path(self.test_path)
      where = f"`data.test_path={root}`"
      found.append((list_folder(root, where, train.classes, strict), where))
    elif "test" in folders and not self.test_fraction:
      found.append((list_folder(folders["test"], where, train.classes, strict), where))
    return found

  def _unused_folder(self) -> str:
    root = bucket_path(self.path)
    folder = split_folders(root, str(root)).get("test")
    return "" if folder is None else f"; {folder} is not used"

  def _check(self, listing: Listing, where: str) -> Checked:
    num_dims = (self.image_size or 0) ** 2 * self.channels
    decode = None
    if self.image_size and fits_in_memory(len(listing.names), num_dims, self.max_ram_gib):
      decode = self._decode
    make_reader = lambda found: self._reader(found, where)  # noqa: E731
    return check_pictures(listing, make_reader, where, self.unreadable, self.image_size, decode)

  def _decode(self, reader: Reader[np.ndarray], listing: Listing, tolerant: bool) -> Decoded:
    assert self.image_size
    shape = (self.image_size, self.image_size, self.channels)
    files = listing.files()
    digest = files_digest(f"{listing.root} {shape} draft={self.draft}", files)
    return decode_pictures(reader, shape, len(files), digest, tolerant)

  def _reader(
    self, listing: Listing, where: str, beside: bool = True, memory: Path | None = None
  ) -> Reader[np.ndarray]:
    """Return a reader of a split's pictures; with `beside`, it lists broken ones of both."""

    def load(place: int) -> np.ndarray:
      with opened(listing.file(place)) as image:
        return fit_image(image, self.image_size, self.channels, self.draft)

    def name(index: int) -> str:
      return listing.names[index] if beside else listing.path(index)

    others = (lambda: self._readers_beside(listing)) if beside else tuple
    return Reader(len(listing.names), load, name, where, ADVICE, others, memory)

  def _readers_beside(self, listing: Listing) -> list[Reader[np.ndarray]]:
    """Return readers of the pictures of the other split."""
    readers = []
    for other, where in self._listings():
      names = set(listing.names) if other.root == listing.root else set()
      rest = other.keep([i for i, name in enumerate(other.names) if name not in names])
      readers.append(self._reader(rest, where, beside=False))
    return readers

  def _one_size(self, chosen: Checked) -> tuple[int, int]:
    """Return the height and width of every picture."""
    if self.image_size is not None:
      return self.image_size, self.image_size
    names, sizes = chosen.listing.names, [header.size for header in chosen.headers]
    other = next((i for i, size in enumerate(sizes) if size != sizes[0]), None)
    if other is not None:
      (h1, w1), (h2, w2) = sizes[0], sizes[other]
      raise UserError(
        f"pictures in {self.path} differ in size ({printable(names[0])} is {w1}x{h1}, "
        f"{printable(names[other])} is "
        f"{w2}x{h2}); set `data.image_size={min(h1, w1, h2, w2)}`"
      )
    return sizes[0]


def _part(whole: Checked, split: str, test_fraction: float) -> Checked:
  """Return the training or the held-out part, in the order of the files."""
  order = fixed_order(len(whole.headers))
  num_train = len(order) - round(len(order) * test_fraction)
  chosen = np.sort(order[:num_train] if split == "train" else order[num_train:])
  if not len(chosen):
    raise UserError(
      f"`data.test_fraction={test_fraction}` leaves no picture of {len(order)} for the "
      f"{split} split; choose another"
    )
  return whole.keep([int(i) for i in chosen])
