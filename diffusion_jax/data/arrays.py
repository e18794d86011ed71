"""Images in one .npz file."""

import dataclasses
from pathlib import Path

import numpy as np

from diffusion_jax.data.source import ArraySource, Source
from diffusion_jax.paths import user_path
from diffusion_jax.types import UserError

MAX_CLASSES = 1 << 16
"""More is taken for a mistake: every class costs a row of the label embedding."""


@dataclasses.dataclass(frozen=True)
class Arrays:
  """An .npz with train_images, train_labels, test_images, test_labels, or images and labels.

  Labels and the test split may be missing.

  Attributes:
    path: of the file.
    num_levels: L; pixels are the integers 0..L-1, at most 256 of them.
    flip: mirror half of the training images.
  """

  path: str = ""
  num_levels: int = 256
  flip: bool = False

  def __post_init__(self):
    if not 2 <= self.num_levels <= 256:
      raise ValueError(f"num_levels={self.num_levels} must lie between 2 and 256")

  def load(self, split: str) -> Source:
    """Reads a split.

    Raises:
      UserError: the file, its arrays, their shapes or values are not as they should be.
    """
    arrays = self._open()
    name = self._images_key(arrays, split)
    if name is None:
      raise UserError(
        f"--config.data.path={self.path} has arrays {', '.join(sorted(arrays)) or 'none'}; "
        f"it needs {split}_images (and {split}_labels)" + " or images" * (split == "train")
      )
    images = self._check_images(name, arrays[name])
    labels = arrays.get(_labels_key(name))
    stem = Path(self.path).stem
    num_classes = self._count_classes(arrays)
    return ArraySource(f"{stem} {split}", images, labels, self.num_levels, num_classes)

  def has_split(self, split: str) -> bool:
    return self._images_key(self._open(), split) is not None

  def _open(self) -> dict[str, np.ndarray]:
    if not user_path(self.path).is_file():
      raise UserError(f"--config.data.path={self.path}: no such file; give an .npz with images")
    try:
      with np.load(user_path(self.path), allow_pickle=False) as file:
        return {name: file[name] for name in file.files if name.endswith(("images", "labels"))}
    except Exception as error:
      raise UserError(f"--config.data.path={self.path}: not a readable .npz ({error})") from error

  def _images_key(self, arrays: dict[str, np.ndarray], split: str) -> str | None:
    names = (f"{split}_images", "images") if split == "train" else (f"{split}_images",)
    return next((name for name in names if name in arrays), None)

  def _count_classes(self, arrays: dict[str, np.ndarray]) -> int:
    """Classes of all splits together; 0 where nothing is labelled."""
    images = [n for n in ("train_images", "test_images", "images") if n in arrays]
    labelled = [n for n in images if _labels_key(n) in arrays]
    for name in labelled:
      self._check_labels(_labels_key(name), arrays[_labels_key(name)], len(arrays[name]))
    unlabelled = [n for n in images if n not in labelled]
    if labelled and unlabelled:
      raise UserError(
        f"--config.data.path={self.path} has {_labels_key(labelled[0])} but no "
        f"{_labels_key(unlabelled[0])}; label every split or none"
      )
    return max((int(arrays[_labels_key(n)].max()) + 1 for n in labelled), default=0)

  def _check_images(self, name: str, images: np.ndarray) -> np.ndarray:
    where = f"--config.data.path={self.path}: {name}"
    if images.ndim == 3:
      images = images[..., None]
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or not images.size:
      raise UserError(
        f"{where} has shape {images.shape}; it must be [N, H, W], [N, H, W, 1] or [N, H, W, 3]"
      )
    if images.dtype.kind not in "iu":
      raise UserError(f"{where} is {images.dtype}; it must hold integers, e.g. uint8")
    low, high = int(images.min()), int(images.max())
    if low < 0 or high >= self.num_levels:
      raise UserError(
        f"{where} holds values from {low} to {high}; they must lie between 0 and "
        f"{self.num_levels - 1}, or set --config.data.num_levels"
      )
    return images.astype(np.uint8)

  def _check_labels(self, name: str, labels: np.ndarray, num: int) -> None:
    wrong = labels.shape != (num,) or labels.dtype.kind not in "iu" or not num
    if wrong or labels.min() < 0 or labels.max() >= MAX_CLASSES:
      raise UserError(
        f"--config.data.path={self.path}: {name} is {labels.dtype}{list(labels.shape)}; it must "
        f"hold one class number from 0 to {MAX_CLASSES - 1:,} for each of the {num} images"
      )


def _labels_key(images_key: str) -> str:
  return images_key.removesuffix("images") + "labels"
