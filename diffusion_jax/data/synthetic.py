"""Generated images, for tests and for measuring speed."""

import dataclasses
import math

import numpy as np

from diffusion_jax.data.base import DataSetBase
from diffusion_jax.data.source import ArraySource, Source
from diffusion_jax.types import ImageSpec, UserError


@dataclasses.dataclass(frozen=True)
class Synthetic(DataSetBase):
  """A bright square on a dark noisy background; its position is the class.

  Attributes:
    num_images: number of training images; the test split has a quarter as many.
    image_size: pixels per side, at least 4.
    channels: 1 or 3.
    num_classes: number of positions of the square; 0: unlabelled images.
    flip: mirror half of the training images, chosen at random.
  """

  num_images: int = 1024
  image_size: int = 32
  channels: int = 3
  num_classes: int = 10
  flip: bool = False

  def __post_init__(self):
    for name, least in (("num_images", 4), ("image_size", 4), ("num_classes", 0)):
      if getattr(self, name) < least:
        raise ValueError(f"{name}={getattr(self, name)} must be at least {least}")
    if self.channels not in (1, 3):
      raise ValueError(f"channels={self.channels} must be 1 or 3")

  def load(self, split: str) -> Source:
    num_images = self.num_images if split == "train" else self.num_images // 4
    images = self._noise(num_images, int(split == "test"))
    size = self.image_size
    labels = np.arange(num_images) % max(self.num_classes, 1)
    side = int(np.ceil(np.sqrt(max(self.num_classes, 1))))
    cell = max(size // side, 1)
    for image, label in zip(images, labels, strict=True):
      top, left = label // side * cell, label % side * cell
      image[top : top + cell, left : left + cell] += 192
    return ArraySource(f"synthetic {split}", images, labels, 256, self.num_classes)

  def _noise(self, num_images: int, stream: int) -> np.ndarray:
    """Return the dark noise of all images, uint8 [N, size, size, channels]."""
    shape = (num_images, self.image_size, self.image_size, self.channels)
    try:
      word = np.random.Philox(key=[stream, num_images])
      return (word.random_raw(math.prod(shape)) >> np.uint64(58)).astype(np.uint8).reshape(shape)
    except (MemoryError, OverflowError, ValueError) as error:
      raise UserError(
        f"config.data: num_images={self.num_images}, image_size={self.image_size}: so many pixels "
        "do not fit into memory; give smaller ones"
      ) from error

  def known_spec(self) -> ImageSpec:
    return self.load("train").spec

  def has_split(self, split: str) -> bool:
    return split in ("train", "test")
