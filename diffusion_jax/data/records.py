"""Large data sets in ArrayRecord shards, e.g. ImageNet, read record by record."""

import dataclasses
import glob
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from diffusion_jax.core.settings import setting
from diffusion_jax.data.base import DataSetBase, Seen
from diffusion_jax.data.checking import unreadable_notes
from diffusion_jax.data.reading import Header, Reader, Unreadable, opened, read_header
from diffusion_jax.data.record_format import (
  COMMAND,
  SUFFIX,
  Description,
  Shards,
  one_value,
  parse_example,
  parse_name,
  read_description,
  shard_path,
)
from diffusion_jax.data.source import About, DecodedSource, Source, fit_image, in_memory_if_small
from diffusion_jax.types import ImageSpec, UserError

NUM_PROBES = 64
"""Number of evenly spaced records that are checked when a split is opened."""

ADVICE = (
  "restore complete shards, make them again with " + COMMAND + ", or leave these out with "
  "`data.unreadable=skip`"
)


@dataclasses.dataclass(frozen=True)
class Records(DataSetBase):
  """Shards of tf.train.Examples with an encoded picture (png, jpg, webp) and a class number.

  `python -m diffusion_jax.prepare records` makes them from a folder; TFDS's files work as well.

  Attributes:
    path: training shards: a folder, or a pattern such as imagenet64/train-*.array_record; in a
      bucket too, of which the folder is copied to this machine.
    test_path: test shards; none: the shards named test in the folder `path`, if any.
    image_size: pixels per side: the shorter side is resized to it, the centre cropped; none: no
      resizing.
    channels: 1 for grey, 3 for colour; pictures are converted. None: the number in the shards'
      description, or 3.
    image_key: feature of an example that holds the encoded picture.
    label_key: feature of an example that holds the class; none: unlabelled.
    num_classes: number of classes; none: the number in the shards' description.
    unreadable: refuse and list all pictures that cannot be decoded; or skip them, which decodes
      every picture at the first start with these shards.
    max_ram_gib: largest decoded size of a split, in GiB, that is kept in memory.
    flip: mirror half of the training images, chosen at random.
  """

  path: str = setting("", may_change=True, affects_figures=False, is_path=True)
  test_path: str | None = setting(None, may_change=True, is_path=True)
  image_size: int | None = None
  channels: int | None = None
  image_key: str = "image"
  label_key: str | None = "label"
  num_classes: int | None = None
  unreadable: Unreadable = setting("refuse", may_change=True)
  max_ram_gib: float = setting(8.0, may_change=True, affects_figures=False)
  flip: bool = False

  def __post_init__(self):
    if self.channels not in (None, 1, 3):
      raise ValueError(f"channels={self.channels} must be 1 (grey), 3 (colour) or none")
    for field in ("image_size", "num_classes"):
      value = getattr(self, field)
      if value is not None and value < 1:
        raise ValueError(f"{field}={value} must be at least 1, or none")

  def load(self, split: str) -> Source:
    """Open the shards of a split and check some of its records.

    Raises:
      UserError: no shards, missing or damaged shards, or records that do not fit.
    """
    shard_files = self._find(split)
    shards = Shards(shard_files.files)
    _check_count(shards, shard_files)
    train = self._find("train") if split == "test" else shard_files
    description = _same_classes(train, shard_files)
    num_classes = self._count_classes(shard_files, description)
    reader = self._reader(shards, shard_files, num_classes)
    beside = lambda: self._readers_beside(split)  # noqa: E731
    pictures = Reader(len(shards), reader.read, shards.where, shard_files.where, ADVICE, beside)
    broken = self._find_broken(pictures, shard_files)
    readable = np.setdiff1d(np.arange(len(shards)), list(broken))
    if not len(readable):
      raise UserError(f"{shard_files.where}: none of its {len(shards):,} pictures can be read")
    height, width = self._one_size(shards, pictures, readable)
    spec = ImageSpec(height, width, reader.channels, 256, num_classes)

    def read(index: int) -> tuple[np.ndarray, int]:
      image, label = pictures(int(readable[index]))
      _check_size(image, (height, width), shards.where(int(readable[index])))
      return image, label

    name = f"{shard_files.files[0].parent.name} {split}"
    about = self._about(reader, pictures, shard_files, broken)
    source = DecodedSource(name, spec, len(readable), read, about)
    return in_memory_if_small(source, self.max_ram_gib)

  def fetch(self) -> None:
    """Copy the shards that are in a bucket to this machine."""
    for text in filter(None, (self.path, self.test_path)):
      shard_path(text)

  def _readers_beside(self, split: str) -> list[Reader]:
    """Return a reader of the pictures of the other split, if there is one."""
    other = "test" if split == "train" else "train"
    if not self.has_split(other):
      return []
    shard_files = self._find(other)
    shards = Shards(shard_files.files)
    reader = self._reader(shards, shard_files, 0)  # labels are not needed here
    return [Reader(len(shards), reader.read, shards.where, shard_files.where, ADVICE)]

  def _find_broken(self, pictures: Reader, shard_files: "ShardFiles") -> dict[int, str]:
    """Return position -> reason of the skipped records."""
    if self.unreadable == "refuse":
      return {}
    files = shard_files.files
    return pictures.remembered(str(files[0].parent), list(map(str, files)))

  def _about(
    self, reader: "_Reader", pictures: Reader, shard_files: "ShardFiles", broken: dict[int, str]
  ) -> About:
    files = "shard" if len(shard_files.files) == 1 else "shards"
    origin = f"{len(shard_files.files):,} {files} {shard_files.group} of {shard_files.where}"
    notes = unreadable_notes(broken, pictures)
    described = shard_files.description
    if described is None or reader.label_key is None or self.num_classes is not None:
      return About((), None, origin, notes)
    counts = described.class_counts
    if counts is not None:
      lost = np.bincount([reader.parse(i)[1] for i in broken], minlength=len(counts))
      counts = (np.array(counts) - lost.astype(int)).tolist()
    return About(described.classes, counts, origin, notes)

  def look(self) -> Seen:
    """Return the sizes of some records' pictures, and the number of classes."""
    shard_files = self._find("train")
    shards = Shards(shard_files.files)
    _check_count(shards, shard_files)
    reader = self._reader(shards, shard_files, 0)
    index = np.unique(np.linspace(0, len(shards) - 1, NUM_PROBES).astype(int))
    headers = [read_header(io.BytesIO(reader.parse(int(i))[0])) for i in index]
    headers = [header for header in headers if isinstance(header, Header)]
    described = shard_files.description
    num_classes = len(described.classes) if described else 0
    is_grey = all(header.is_grey for header in headers)
    return Seen([h.size for h in headers], is_grey, len(shards), num_classes, True)

  def has_split(self, split: str) -> bool:
    if split == "train" or self.test_path is not None:
      return True
    groups = _groups(_list(self.path)) if self.path and shard_path(self.path).is_dir() else {}
    return any(_is_named(group, split) for group in groups)

  def _find(self, split: str) -> "ShardFiles":
    if not self.path:
      raise UserError(f"`data.path=DIR` is missing; give a folder of shards, made by {COMMAND}")
    if split == "test" and self.test_path is not None:
      return find_shards(self.test_path, "test_path", split)
    return find_shards(self.path, "path", split)

  def _reader(self, shards: Shards, shard_files: "ShardFiles", num_classes: int) -> "_Reader":
    channels = self.channels or (shard_files.description.channels if shard_files.description else 3)
    label_key = self.label_key if num_classes else None
    return _Reader(shards, self.image_key, label_key, self.image_size, channels, num_classes)

  def _one_size(self, shards: Shards, pictures: Reader, readable: np.ndarray) -> tuple[int, int]:
    """Return the height and width of the pictures, after checking some of them."""
    chosen = readable[np.unique(np.linspace(0, len(readable) - 1, NUM_PROBES).astype(int))]
    with ThreadPoolExecutor(16) as pool:
      images = list(pool.map(lambda index: pictures(int(index))[0], chosen))
    size = images[0].shape[:2]
    for index, image in zip(chosen, images, strict=True):
      _check_size(image, size, shards.where(int(index)))
    return size

  def _count_classes(self, shard_files: "ShardFiles", description: Description | None) -> int:
    if self.label_key is None:
      return 0
    if self.num_classes is not None:
      return self.num_classes
    if description is None:
      raise UserError(
        f"{shard_files.where}: no {shard_files.group}.shards.json there says how many classes "
        "it has; set e.g. `data.num_classes=1000`, or `data.label_key=None`"
      )
    return len(description.classes)


class ShardFiles(NamedTuple):
  """The shards of a split.

  Attributes:
    files: the files in order.
    group: their common name.
    description: content of their description file, if there is one.
    where: flag that named them.
  """

  files: Sequence[Path]
  group: str
  description: Description | None
  where: str


def find_shards(text: str, field: str, split: str) -> ShardFiles:
  """Find the shards at a path.

  Args:
    text: a folder, a pattern or a file.
    field: name of the config field, for messages.
    split: train or test, to choose among several groups in one folder.

  Raises:
    UserError: no shards, several sets of shards, or an incomplete set.
  """
  where = f"`data.{field}={text}`"
  groups = _groups(_list(text))
  if not groups:
    _check_finished(shard_path(text), split, where)
    raise UserError(
      f"{where}: no shards (*{SUFFIX}) there; give a folder or a pattern of ArrayRecord files, or "
      f"make them with {COMMAND}"
    )
  group = _choose(sorted(groups), split, where, field)
  files = groups[group]
  _check_finished(files[0].parent, group, where)
  _check_complete(files, where)
  description = read_description(files[0].parent / f"{group}.shards.json")
  return ShardFiles(files, group, description, where)


def _choose(groups: list[str], split: str, where: str, field: str) -> str:
  named = [g for g in groups if _is_named(g, split)]
  if len(named) == 1:
    return named[0]
  if field == "path" and split == "test":
    raise UserError(
      f"{where} has no shards called test, only {', '.join(groups)}; set `data.test_path=DIR`"
    )
  if len(groups) > 1:
    raise UserError(
      f"{where} holds several sets: {', '.join(groups)}; name one with a pattern such as "
      f"`data.{field}=DIR/{groups[0]}-*`"
    )
  return groups[0]


def _check_finished(folder: Path, group: str, where: str) -> None:
  if (folder / f"{group}.shards.json.part").exists():
    raise UserError(
      f"{where}: the preparation of {group} is not finished; if it was interrupted, start the same "
      "prepare command again"
    )


def _list(text: str) -> list[Path]:
  path = shard_path(text)
  if path.is_file():
    return [path]
  paths = path.glob(f"*{SUFFIX}*") if path.is_dir() else map(Path, glob.glob(str(path)))
  return sorted(f for f in paths if f.is_file() and not f.name.endswith((".part", ".json")))


def _groups(files: Sequence[Path]) -> dict[str, list[Path]]:
  groups: dict[str, list[Path]] = {}
  for file in files:
    groups.setdefault(parse_name(file.name).group, []).append(file)
  return groups


def _is_named(group: str, split: str) -> bool:
  """Return True if a group is of a split; TFDS puts the data set's name first."""
  return group == split or group.endswith(f"-{split}")


def _check_complete(files: Sequence[Path], where: str) -> None:
  names = [parse_name(file.name) for file in files]
  totals = {name.total for name in names}
  if len(totals) > 1:
    raise UserError(
      f"{where} mixes shards of {', '.join(f'{t}' for t in totals)} files; keep one of these sets"
    )
  (total,) = totals
  if total is not None and len(files) < total:
    missing = min(set(range(total)) - {name.number for name in names})
    raise UserError(
      f"{where} has {len(files)} of {total} shards, number {missing} is the first that is missing; "
      "copy it there, or start the prepare command again"
    )


def _check_count(shards: Shards, shard_files: ShardFiles) -> None:
  if not len(shards):
    raise UserError(f"{shard_files.where}: the shards hold no record; make them with {COMMAND}")
  described = shard_files.description
  if described is not None and described.num_examples != len(shards):
    raise UserError(
      f"{shard_files.where}: the shards hold {len(shards):,} records, but "
      f"{shard_files.group}.shards.json says {described.num_examples:,}; copy all files of one "
      "preparation there"
    )


def _same_classes(train: ShardFiles, test: ShardFiles) -> Description | None:
  """Return the description with the class numbers; both splits must have the same classes."""
  if train.description is None or test.description is None:
    return test.description or train.description
  if train.description.classes != test.description.classes:
    odd = set(train.description.classes) ^ set(test.description.classes)
    raise UserError(
      f"{test.where} has other classes than path ({', '.join(sorted(odd)[:3])}); prepare both "
      "into one folder, so that they are numbered alike"
    )
  return test.description


class _Reader(NamedTuple):
  """Reader and decoder of single records."""

  shards: Shards
  image_key: str
  label_key: str | None
  image_size: int | None
  channels: int
  num_classes: int

  def read(self, index: int) -> tuple[np.ndarray, int]:
    """Return a picture and its label.

    Raises:
      Broken: the picture cannot be decoded.
      UserError: the record is invalid.
    """
    data, label = self.parse(index)
    with opened(io.BytesIO(data)) as image:
      return fit_image(image, self.image_size, self.channels), label

  def parse(self, index: int) -> tuple[bytes, int]:
    """Return an encoded picture and its label."""
    record = self.shards[index]
    try:
      features = parse_example(record)
      data = one_value(features, self.image_key, "bytes_list")
      label = one_value(features, self.label_key, "int64_list") if self.label_key else 0
    except ValueError as error:
      raise UserError(
        f"{self.shards.where(index)} {error}; set `data.image_key=KEY` and "
        "`data.label_key=KEY` to what it has (label_key=none: unlabelled)"
      ) from error
    if self.label_key is not None and not 0 <= label < self.num_classes:
      raise UserError(
        f"{self.shards.where(index)} has {self.label_key} {label}, but the labels of "
        f"{self.num_classes} classes go from 0 to {self.num_classes - 1}; set "
        "`data.num_classes=N`"
      )
    return data, label


def _check_size(image: np.ndarray, wanted: tuple[int, int], where: str) -> None:
  """Raise a UserError unless, without an image_size, a picture is as large as the first."""
  if image.shape[:2] != wanted:
    (height, width), (first_height, first_width) = image.shape[:2], wanted
    raise UserError(
      f"{where} is {width}x{height}, the first picture {first_width}x{first_height}; set "
      f"`data.image_size={min(height, width, *wanted)}`"
    )
