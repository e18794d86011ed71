"""Data sets of Hugging Face's library `datasets`, by name or from disk."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.core.files import bucket_path
from diffusion_jax.core.settings import setting
from diffusion_jax.data.accounting import FileCounts, count_reasons, count_treatments
from diffusion_jax.data.base import DataSetBase, Seen
from diffusion_jax.data.checking import unreadable_notes
from diffusion_jax.data.decoded import decode_pictures
from diffusion_jax.data.listing import in_natural_order
from diffusion_jax.data.reading import (
  Broken,
  Header,
  Reader,
  Unreadable,
  files_digest,
  opened,
  read_header,
)
from diffusion_jax.data.source import (
  About,
  ArraySource,
  DecodedSource,
  Source,
  check_fit,
  check_test_fraction,
  fit_image,
  fits_in_memory,
  fixed_order,
)
from diffusion_jax.data.streamed import (
  Stream,
  keep_resized,
  open_stream,
  original_headers,
  picture_file,
)
from diffusion_jax.types import ImageSpec, UserError

INSTALL = "pip install 'diffusion_jax[hf]'"
AUTO = "auto"
TEST_NAMES = ("test", "validation", "valid", "val")
NUM_PROBES = 512
"""Number of evenly spaced pictures whose sizes are looked at."""

ADVICE = "repair them, or leave them out with `data.unreadable=skip`"


@dataclasses.dataclass(frozen=True)
class HuggingFace(DataSetBase):
  """An image data set of Hugging Face's `datasets`; it needs the extra `hf`.

  Its images are decoded at image_size into the memory, or, if they exceed max_ram_gib, as they are
  read: the library maps its files into memory and copies none.

  Attributes:
    dataset: name of the set, e.g. "ylecun/mnist"; downloaded into the library's own cache.
    path: folder written by the library's save_to_disk, in place of `dataset`; in a bucket too.
    subset: configuration of the set, if it has several.
    revision: version of the set: a tag, branch or commit; none: the newest.
    streaming: resize the images to image_size while they are downloaded, and keep only the result
      in the library's cache; splits are then plain names.
    train_split: training split in the library's notation, e.g. "train[:90%]".
    test_split: held-out split; auto: test or validation if the set has one; none: no such split.
    test_fraction: fraction of the pictures to hold out without a test split, in a fixed order.
    image_key: column of the images; auto: the first of that type.
    label_key: column of the classes; auto: the first class label; none: unlabelled.
    image_size: pixels per side: the shorter side is resized to it, the centre cropped; none: no
      resizing.
    channels: 1 for grey, 3 for colour; pictures are converted.
    unreadable: refuse and list all unreadable pictures, or skip them.
    max_ram_gib: largest decoded size of a split, in GiB, that is kept in memory.
    flip: mirror half of the training images, chosen at random.
  """

  dataset: str | None = None
  path: str | None = setting(None, may_change=True, affects_figures=False, is_path=True)
  subset: str | None = None
  revision: str | None = None
  streaming: bool = setting(False, may_change=True, affects_figures=False)
  train_split: str = "train"
  test_split: str | None = setting(AUTO, may_change=True)
  test_fraction: float = setting(0.0, may_change=True)
  image_key: str = AUTO
  label_key: str | None = AUTO
  image_size: int | None = None
  channels: int = 3
  unreadable: Unreadable = setting("refuse", may_change=True)
  max_ram_gib: float = setting(8.0, may_change=True, affects_figures=False)
  flip: bool = False

  def __post_init__(self):
    check_fit(self.image_size, self.channels)
    check_test_fraction(self.test_fraction)
    if self.dataset and self.path:
      raise ValueError(f"dataset={self.dataset} and path={self.path} both name a set; set one")
    if self.streaming and self.path:
      raise ValueError(f"streaming=true downloads a set by its name, and path={self.path} is here")

  def load(self, split: str) -> Source:
    """Read and decode a split.

    Raises:
      UserError: the library or the set is missing, or a column or picture does not fit.
    """
    name = self._split_name(split)
    rows = self._rows(name)
    image_key, label_key = self._columns(rows.features, name)
    labels, classes = _read_labels(rows, label_key)
    reader = self._reader(rows, image_key)
    headers = [_header(row[image_key]) for row in rows.select_columns([image_key])]
    broken = {i: str(header) for i, header in enumerate(headers) if isinstance(header, Broken)}
    sizes = original_headers(rows) or headers
    tolerant, images = self.unreadable == "skip", None
    if broken and not tolerant:
      raise reader.refuse(broken)
    shape = (*self._one_size(headers), self.channels)
    if fits_in_memory(len(rows), int(np.prod(shape)), self.max_ram_gib):
      digest = files_digest(f"{rows._fingerprint} {image_key} {shape} {self.image_size}", ())
      images, found = decode_pictures(reader, shape, len(rows), digest, tolerant)
      broken |= found
    kept = np.setdiff1d(np.arange(len(rows)), list(broken))
    part = self._part(len(kept), split)
    numbers = labels[kept][part]
    about = self._about(reader, sizes, broken, f"{name} of {self._where}")
    about = about._replace(classes=classes)
    title = f"{self.dataset or Path(self.path or '').name} {name}"
    if images is not None:
      own = numbers if classes else None
      return ArraySource(title, images[part], own, 256, len(classes), about)
    spec, places = ImageSpec(*shape, 256, len(classes)), kept[part]
    read = lambda i: (reader(int(places[i])), int(numbers[i]))  # noqa: E731
    return DecodedSource(title, spec, len(places), read, about)

  def has_split(self, split: str) -> bool:
    return split == "train" or bool(self.test_fraction) or self._test_name() is not None

  def look(self) -> Seen:
    """Return the sizes of some pictures and the number of classes."""
    rows, num_images = self._probes()
    image_key, label_key = self._columns(rows.features, self.train_split)
    index = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), NUM_PROBES)).astype(int))
    headers = [_header(rows[int(i)][image_key]) for i in index]
    headers = [header for header in headers if isinstance(header, Header)]
    _, classes = _read_labels(rows, label_key)
    is_grey = all(header.is_grey for header in headers)
    return Seen([h.size for h in headers], is_grey, num_images, len(classes), True)

  def _probes(self) -> tuple[Any, int]:
    """Return training rows to look at, and the number of all; a stream gives its first ones."""
    if not self.streaming or self.image_size is not None:
      rows = self._rows(self.train_split)
      return rows, len(rows)
    stream = self._asked(lambda: self._open_stream(self.train_split))
    first = self._asked(lambda: list(stream.take(NUM_PROBES)))
    rows = _library().Dataset.from_list(first, features=stream.features)
    return rows, self._num_rows(self.train_split) or len(rows)

  @property
  def _where(self) -> str:
    return f"`data.{'path' if self.path else 'dataset'}={self.path or self.dataset}`"

  def _split_name(self, split: str) -> str:
    name = self.train_split if split == "train" or self.test_fraction else self._test_name()
    if name is None:
      raise UserError(
        f"{self._where} has no held-out split; set `data.test_split=...`, or "
        "`data.test_fraction=0.1`"
      )
    return name

  def _test_name(self) -> str | None:
    if self.test_split != AUTO:
      return self.test_split
    names = self._split_names()
    return next((name for name in TEST_NAMES if name in names), None)

  def _split_names(self) -> Sequence[str]:
    if self.path:
      whole = self._from_disk(self.path)
      return list(whole) if isinstance(whole, Mapping) else []
    library = _library()
    return list(self._builder().info.splits or ()) or self._asked(
      lambda: library.get_dataset_split_names(self._name(), self.subset)
    )

  def _name(self) -> str:
    if not self.dataset:
      raise UserError("`data.dataset=` is empty; give a name such as ylecun/mnist")
    return self.dataset

  def _rows(self, split: str) -> Any:
    """Return a split with its images undecoded."""
    if self.path:
      whole = self._from_disk(self.path)
      rows = whole[split] if isinstance(whole, Mapping) and split in whole else whole
      if isinstance(rows, Mapping):
        raise UserError(f"{self._where} has the splits {', '.join(rows)}, not {split}")
    elif self.streaming:
      rows = self._streamed(split)
    else:
      named, load = {"split": split, "revision": self.revision}, _library().load_dataset
      rows = self._asked(lambda: load(self._name(), self.subset, **named))
    library = _library()
    for key, feature in rows.features.items():
      if isinstance(feature, library.Image):
        rows = rows.cast_column(key, library.Image(decode=False))
    if not len(rows):
      raise UserError(f"{self._where}: its split {split} holds no image")
    return rows

  def _streamed(self, split: str) -> Any:
    """Return a split whose images were resized while they were downloaded."""
    if self.image_size is None:
      raise UserError("`data.streaming=true` keeps resized images: set `data.image_size=...`")
    library, version = _library(), self._builder().hash
    features = self._asked(lambda: self._open_stream(split)).features
    keys = self._columns(features, split)
    about = Stream(
      self._name(), self.subset, split, self.revision, version, self._num_rows(split), *keys,
      self.image_size, self.channels,
    )  # fmt: skip
    return self._asked(lambda: keep_resized(library, about, features))

  def _open_stream(self, split: str) -> Any:
    return open_stream(_library(), self._name(), self.subset, split, self.revision)

  def _num_rows(self, split: str) -> int | None:
    """Return the number of rows of a split if the set tells it."""
    splits = self._builder().info.splits or {}
    return splits[split].num_examples if split in splits else None

  def _builder(self) -> Any:
    ask = _library().load_dataset_builder
    return self._asked(lambda: ask(self._name(), self.subset, revision=self.revision))

  def _from_disk(self, path: str) -> Any:
    folder = str(bucket_path(path))
    load = _library().load_from_disk
    return self._asked(lambda: load(folder))

  def _asked(self, ask: Any) -> Any:
    """Return what the library gives; its errors become one line."""
    try:
      return ask()
    except UserError:
      raise
    except Exception as error:
      cause: BaseException = error
      while cause.__cause__ is not None:  # the library wraps what happened
        cause = cause.__cause__
      reason = str(cause).strip().partition("\n")[0] or type(cause).__name__
      raise UserError(
        f"{self._where} cannot be loaded ({reason}); check the name, `data.subset=...` and the "
        "network, or save it elsewhere with save_to_disk and give `data=FOLDER`"
      ) from error

  def _columns(self, features: Mapping[str, Any], split: str) -> tuple[str, str | None]:
    """Return the columns of the images and of the classes."""
    library = _library()
    images = [key for key, feature in features.items() if isinstance(feature, library.Image)]
    if self.image_key != AUTO:
      images = [key for key in images if key == self.image_key]
    if not images:
      raise UserError(
        f"{self._where}: its split {split} has no column of images"
        f"{'' if self.image_key == AUTO else f' named {self.image_key}'}; its columns are "
        f"{', '.join(features)}; set `data.image_key=...`"
      )
    labels = [key for key, feature in features.items() if isinstance(feature, library.ClassLabel)]
    labels += [key for key in LABEL_NAMES if key in features and key not in labels]
    if self.label_key in (AUTO, None):
      return images[0], labels[0] if labels and self.label_key else None
    if self.label_key not in features:
      raise UserError(f"`data.label_key={self.label_key}`: its columns are {', '.join(features)}")
    return images[0], self.label_key

  def _reader(self, rows: Any, image_key: str) -> Reader[np.ndarray]:
    def load(index: int) -> np.ndarray:
      with opened(picture_file(rows[index][image_key])) as image:
        return fit_image(image, self.image_size, self.channels)

    return Reader(len(rows), load, lambda index: f"row {index}", self._where, ADVICE)

  def _one_size(self, headers: Sequence[Header | Broken]) -> tuple[int, int]:
    """Return the height and width of every image."""
    sizes = {header.size for header in headers if isinstance(header, Header)}
    if not sizes:
      raise UserError(f"{self._where}: none of its {len(headers):,} images can be read")
    if self.image_size is not None:
      return self.image_size, self.image_size
    if len(sizes) > 1:
      side = min(min(size) for size in sizes)
      raise UserError(
        f"{self._where}: its images have {len(sizes):,} sizes; set `data.image_size={side}`"
      )
    return sizes.pop()

  def _part(self, num_images: int, split: str) -> np.ndarray:
    """Return the positions of a split among the readable images."""
    if not self.test_fraction:
      return np.arange(num_images)
    order = fixed_order(num_images)
    num_train = num_images - round(num_images * self.test_fraction)
    return np.sort(order[:num_train] if split == "train" else order[num_train:])

  def _about(
    self,
    reader: Reader,
    headers: Sequence[Header | Broken],
    broken: Mapping[int, str],
    origin: str,
  ) -> About:
    sizes = [h.size for i, h in enumerate(headers) if isinstance(h, Header) and i not in broken]
    files = FileCounts(count_treatments(sizes, self.image_size), count_reasons(broken.values()))
    return About(origin=origin, notes=unreadable_notes(dict(broken), reader), files=files)


LABEL_NAMES = ("label", "labels", "class", "fine_label")
"""Columns that hold the class if no column has the type of one."""


def _library() -> Any:
  try:
    import datasets  # pyright: ignore[reportMissingImports]
  except ImportError as error:
    raise UserError(f"data sets of Hugging Face need their library: {INSTALL}") from error
  return datasets


def _header(cell: Mapping[str, Any] | None) -> Header | Broken:
  """Return the header of an undecoded image, or why it has none."""
  try:
    return read_header(picture_file(cell))
  except Broken as broken:
    return broken


def _read_labels(rows: Any, key: str | None) -> tuple[np.ndarray, list[str]]:
  """Return class numbers and names; no names if unlabelled.

  Raises:
    UserError: a label is missing, or is no class.
  """
  if key is None:
    return np.zeros(len(rows), np.int32), []
  values, names = rows[key], getattr(rows.features[key], "names", None)
  if names is None and all(isinstance(value, str) for value in values):
    names = sorted(set(values), key=in_natural_order)
    values = [names.index(value) for value in values]
  elif not all(type(value) is int and value >= 0 for value in values):
    raise UserError(
      f"`data.label_key={key}`: it must hold a class number or a name for every image; set "
      "it to none for an unlabelled set"
    )
  names = names or [str(i) for i in range(max(values) + 1)]
  return np.array(values, np.int32), list(names)
