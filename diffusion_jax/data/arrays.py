"""Images in one .npz file."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from diffusion_jax.core import npz
from diffusion_jax.core.files import bucket_path
from diffusion_jax.core.settings import setting
from diffusion_jax.data.base import DataSetBase
from diffusion_jax.data.listing import MAX_CLASSES
from diffusion_jax.data.source import (
  About,
  ArraySource,
  Source,
  check_field,
  check_test_fraction,
  fixed_order,
)
from diffusion_jax.data.walking import some
from diffusion_jax.types import ImageSpec, UserError

SPLITS = {
  "train": (("train_images", "train_labels"), ("images", "labels"), ("x_train", "y_train"),
            ("arr_0", "arr_1")),
  "test": (("test_images", "test_labels"), ("x_test", "y_test")),
}  # fmt: skip
"""Array names of the images and labels of a split: ours, Keras', np.savez(FILE, images)'s."""


CLASS_NAMES = "class_names"
"""Name of the array with one text per class, as `sample` writes it."""


class Named(NamedTuple):
  """Names of the arrays of a split.

  Attributes:
    images: name of the image array.
    labels: name of the label array; None for an unlabelled split.
  """

  images: str
  labels: str | None


@dataclasses.dataclass(frozen=True)
class Arrays(DataSetBase):
  """An .npz with train_images, train_labels, test_images, test_labels, or images and labels.

  Keras' x_train, y_train, x_test, y_test and the unnamed arr_0 (with arr_1 for labels) are accepted
  too; further unnamed arrays are refused. Labels, the test split and the names of the classes
  (class_names, one text for each) are optional.

  Attributes:
    path: the .npz file.
    num_levels: number L of pixel levels, at most 256; pixels are the integers 0..L-1.
    fields: named arrays with one row per image, e.g. embedding: the file's train_embedding (or
      embedding) for the training split, test_embedding for the test split.
    flip: mirror half of the training images, and named arrays of three axes with them.
    test_fraction: fraction of the training images to hold out, in a fixed order, if the file has no
      test split.
  """

  path: str = setting("", may_change=True, affects_figures=False, is_path=True)
  num_levels: int = 256
  fields: tuple[str, ...] = ()
  flip: bool = False
  test_fraction: float = setting(0.0, may_change=True)

  def __post_init__(self):
    if len(set(self.fields)) < len(self.fields) or not all(map(str.isidentifier, self.fields)):
      raise ValueError(
        f"fields={','.join(self.fields)} must be different names of letters, digits and _, e.g. "
        "embedding"
      )
    if not 2 <= self.num_levels <= 256:
      raise ValueError(f"num_levels={self.num_levels} must be between 2 and 256")
    check_test_fraction(self.test_fraction)

  def load(self, split: str) -> Source:
    """Read a split.

    Raises:
      UserError: the file, its arrays, their shapes or values are invalid.
    """
    there = self._there()
    named = self._named(there)
    is_held_out = split == "test" and split not in named and self.test_fraction > 0
    if split not in named and not (is_held_out and "train" in named):
      raise UserError(
        f"{self._where} has {npz.listed_names(there)}; it needs {split}_images (and {split}_labels)"
        + ", images (and labels) or x_train (and y_train)" * (split == "train")
      )
    fields = {name: self._field(name, split, named, there) for name in self.fields}
    wanted = {name for pair in named.values() for name in pair if name is not None}
    wanted |= set(fields.values())
    arrays = npz.read_npz(bucket_path(self.path), self._where, lambda name: name in wanted)
    arrays |= {n.labels: _one_column(arrays[n.labels]) for n in named.values() if n.labels}
    chosen = named["train" if is_held_out else split]
    for each in named.values():
      self._check_shape(each.images, arrays[each.images])
    images = self._check_images(chosen.images, arrays[chosen.images])
    num_classes = self._count_classes(named, arrays)
    labels = arrays[chosen.labels] if chosen.labels else None
    beside = {key for name in self.fields for each in SPLITS for key in _field_keys(name, each)}
    classes = self._class_names(there, num_classes)
    others = sorted(set(there) - wanted - beside - ({CLASS_NAMES} if classes else set()))
    notes = [f"arrays that are not read: {some(others)}"] if others else []
    part = self._part(len(images), split, "test" in named)
    origin = f"{chosen.images} of {self.path}"
    name = f"{Path(self.path).stem} {split}"
    about = About(classes, origin=origin, notes=notes)
    try:
      extra = {name: check_field(key, arrays[key], len(images)) for name, key in fields.items()}
    except ValueError as error:
      raise UserError(f"{self._where}: {error}") from error
    extra = {name: array[part] for name, array in extra.items()}
    labels = None if labels is None else labels[part]
    return ArraySource(name, images[part], labels, self.num_levels, num_classes, about, extra)

  def _part(self, num_images: int, split: str, has_test: bool) -> np.ndarray | slice:
    """Return the positions of a split among the training images."""
    if has_test or not self.test_fraction:
      return slice(None)
    order = fixed_order(num_images)
    num_train = num_images - round(num_images * self.test_fraction)
    part = np.sort(order[:num_train] if split == "train" else order[num_train:])
    if not len(part):
      raise UserError(
        f"`data.test_fraction={self.test_fraction}` leaves no image of {num_images} for the "
        f"{split} split; choose another"
      )
    return part

  def known_spec(self) -> ImageSpec:
    return self.load("train").spec

  def has_split(self, split: str) -> bool:
    return split in self._named(self._there()) or (split == "test" and self.test_fraction > 0)

  @property
  def _where(self) -> str:
    return f"`data.path={self.path}`"

  def _there(self) -> Sequence[str]:
    if not self.path:
      raise UserError("`data.path=FILE` is missing; give an .npz with images")
    there = npz.names(bucket_path(self.path), self._where)
    asked = {key for name in self.fields for split in SPLITS for key in _field_keys(name, split)}
    if statistics := npz.statistics_names([name for name in there if name not in asked]):
      raise UserError(
        f"{self._where} holds statistics of features ({', '.join(statistics)}), and a file of them "
        "is never read as images; store the images alone, or name arrays of one row per image: "
        "`data.fields=...`"
      )
    return there

  def _named(self, there: Sequence[str]) -> dict[str, Named]:
    """Return the array names of each split in the file."""
    split_names = {}
    for split, pairs in SPLITS.items():
      mine = [(images, labels) for images, labels in pairs if images in there]
      if mine and mine[0][0] == "arr_0" and "arr_2" in there:
        raise UserError(
          f"{self._where} has {npz.listed_names(there)}, of which only arr_0 and arr_1 have a "
          "meaning; name them: np.savez(FILE, train_images=..., train_labels=..., "
          "test_images=..., test_labels=...)"
        )
      if len(mine) > 1:
        raise UserError(
          f"{self._where} has {mine[0][0]} and {mine[1][0]}, both images of the {split} split; "
          "keep one of them"
        )
      if mine:
        images, labels = mine[0]
        split_names[split] = Named(images, labels if labels in there else None)
    return split_names

  def _field(self, name: str, split: str, named: Mapping[str, Named], there: Sequence[str]) -> str:
    """Return the name in the file of a split's named array."""
    keys = _field_keys(name, split)
    taken = {array for pair in named.values() for array in pair}
    free = [key for key in keys if key in there and key not in taken]
    if not free:
      raise UserError(
        f"`data.fields={','.join(self.fields)}`: {self.path} has "
        f"{npz.listed_names(there)}; it needs {' or '.join(keys)}, one row per image"
      )
    return free[0]

  def _count_classes(self, named: Mapping[str, Named], arrays: dict[str, np.ndarray]) -> int:
    """Return the number of classes over all splits; 0 if nothing is labelled."""
    labelled = [pair for pair in named.values() if pair.labels]
    for pair in labelled:
      self._check_labels(pair.labels or "", arrays[pair.labels or ""], len(arrays[pair.images]))
    unlabelled = [pair for pair in named.values() if not pair.labels]
    if labelled and unlabelled:
      raise UserError(
        f"{self._where} has {labelled[0].labels} but no labels beside {unlabelled[0].images}; "
        "label every split or none"
      )
    return max((int(arrays[pair.labels or ""].max()) + 1 for pair in labelled), default=0)

  def _class_names(self, there: Sequence[str], num_classes: int) -> list[str]:
    """Return the names of the classes, if the file has a text for each."""
    if CLASS_NAMES not in there or not num_classes:
      return []
    try:
      path = bucket_path(self.path)
      names = npz.read_npz(path, self._where, lambda name: name == CLASS_NAMES)[CLASS_NAMES]
    except UserError:  # Python objects, which no version has read
      return []
    is_text = names.ndim == 1 and names.dtype.kind == "U"
    return names[:num_classes].tolist() if is_text and len(names) >= num_classes else []

  def _check_shape(self, name: str, images: np.ndarray) -> None:
    where, shape = f"{self._where}: {name} has shape {images.shape}", images.shape
    if len(shape) not in (3, 4) or shape[3:] not in ((), (1,), (3,)) or not all(shape[1:]):
      raise UserError(f"{where}; it must be [N, H, W], [N, H, W, 1] or [N, H, W, 3]")
    if not shape[0]:
      raise UserError(f"{where}: it holds no image; give at least one, or leave the array out")

  def _check_images(self, name: str, images: np.ndarray) -> np.ndarray:
    where = f"{self._where}: {name}"
    if images.ndim == 3:
      images = images[..., None]
    if images.dtype.kind not in "iu":
      raise UserError(f"{where} is {images.dtype}; it must hold integers, e.g. uint8")
    low, high = int(images.min()), int(images.max())
    if low < 0 or high >= self.num_levels:
      more = f", or set `data.num_levels={high + 1}`" if low >= 0 and high < 256 else ""
      raise UserError(
        f"{where} holds values from {low} to {high}; they must be between 0 and "
        f"{self.num_levels - 1}{more}"
      )
    return images.astype(np.uint8)

  def _check_labels(self, name: str, labels: np.ndarray, num_images: int) -> None:
    fault = f"is {labels.dtype}{list(labels.shape)}"
    if labels.shape == (num_images,) and labels.dtype.kind in "iu":
      low, high = int(labels.min()), int(labels.max())
      if low >= 0 and high < MAX_CLASSES:
        return
      fault = f"holds values from {low} to {high}"
    raise UserError(
      f"{self._where}: {name} {fault}; it must hold one class number from 0 to "
      f"{MAX_CLASSES - 1:,} for each of the {num_images} images"
    )


def _field_keys(name: str, split: str) -> list[str]:
  """Return the possible names in the file of a split's named array."""
  return [f"{split}_{name}", f"{name}_{split}", *([name] if split == "train" else [])]


def _one_column(labels: np.ndarray) -> np.ndarray:
  """Turn a column of labels [N, 1], as in some Keras sets, into [N]."""
  return labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
