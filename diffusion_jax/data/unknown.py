"""The data of a model that was imported without them."""

import dataclasses
from typing import NoReturn

from diffusion_jax.data.base import DataSetBase
from diffusion_jax.types import UserError


@dataclasses.dataclass(frozen=True)
class Unknown(DataSetBase):
  """No data: the model was imported, and its training images are elsewhere.

  Sampling needs none. To evaluate or to train on, name a data set, e.g. by --config.data.name=tfds
  with --config.data.dataset=cifar10.

  Attributes:
    flip: mirror half of the training images, chosen at random.
  """

  flip: bool = False

  has_latents = True  # those of an imported latent diffusion model are as unknown as its images

  def load(self, split: str) -> NoReturn:
    """Raise a UserError: there are no images."""
    raise UserError(
      f"config.data: the {split} images of an imported model are not known; name a data set, e.g. "
      "`data.name=folder` `data.path=DIR`, or `data.name=tfds` `data.dataset=cifar10`"
    )
