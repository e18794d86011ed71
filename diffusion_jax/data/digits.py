"""The embedded data set: 1,797 handwritten digits of 8x8 pixels and 17 grey levels."""

import dataclasses
from typing import Any

import numpy as np

from diffusion_jax.data.base import DataSetBase
from diffusion_jax.data.source import About, ArraySource, Source, fixed_order
from diffusion_jax.types import ImageSpec

NUM_TRAIN = 1500


@dataclasses.dataclass(frozen=True)
class Digits(DataSetBase):
  """Scikit-learn's bundled 8x8 digits with 17 levels; 1,500 to train, 297 to test.

  Source: the test part of Alpaydin and Kaynak 1998, "Optical Recognition of Handwritten Digits"
  (UCI). The split is our own fixed permutation, since the set has none.

  Attributes:
    flip: mirror half of the training images (not sensible for digits).
  """

  flip: bool = False

  def load(self, split: str) -> Source:
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    order = fixed_order(len(bunch.target))
    chosen = order[:NUM_TRAIN] if split == "train" else order[NUM_TRAIN:]
    images = bunch.images[chosen].astype(np.uint8)[..., None]
    origin = f"{len(chosen):,} of the set's {len(order):,}, in a fixed order"
    labels = bunch.target[chosen]
    about = About([str(name) for name in bunch.target_names], origin=origin)
    return ArraySource(f"digits {split}", images, labels, 17, 10, about)

  def known_spec(self) -> ImageSpec:
    return self.load("train").spec

  def has_split(self, split: str) -> bool:
    return split in ("train", "test")
