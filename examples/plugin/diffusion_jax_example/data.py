"""A data set in a plug-in: soft blobs, one class per quadrant."""

import dataclasses

import numpy as np

from diffusion_jax.data.base import DataSetBase
from diffusion_jax.data.source import ArraySource


@dataclasses.dataclass(frozen=True)
class Blobs(DataSetBase):
  """Grey images of one bright blob; its quadrant is the class.

  Attributes:
    num_images: number of training images; the test split has a quarter as many.
    image_size: pixels per side, at least 4.
    flip: mirror half of the training images (not sensible here: it changes the class).
  """

  num_images: int = 512
  image_size: int = 8
  flip: bool = False

  def __post_init__(self):
    if self.num_images < 16 or self.image_size < 4:
      raise ValueError(
        f"num_images={self.num_images}, image_size={self.image_size} must be at least 16 and 4"
      )

  def has_split(self, split):
    """Return True for "train" and "test"."""
    return split in ("train", "test")

  def load(self, split):
    """Return the images of a split, the same for every call."""
    num, size = self.num_images // (1 if split == "train" else 4), self.image_size
    rng = np.random.default_rng(int(split == "test"))
    labels = np.arange(num) % 4
    center = (np.stack([labels // 2, labels % 2], 1) + rng.uniform(0.2, 0.8, (num, 2))) * size / 2
    place = np.arange(size) + 0.5
    away = [(place - center[:, i, None]) ** 2 for i in range(2)]
    light = np.exp(-(away[0][:, :, None] + away[1][:, None, :]) / (0.15 * size) ** 2)
    images = np.round(255 * light).astype(np.uint8)[..., None]
    return ArraySource(f"blobs {split}", images, labels, 256, 4)
