"""Shapes of tensors that layouts of flax's files have in common."""

import numpy as np

from diffusion_jax.porting.tensors import Tensors
from diffusion_jax.types import UserError


def with_flat_norms(tensors: Tensors) -> Tensors:
  """Return the tensors with the norms' scales and biases as vectors.

  Flax before version 0.4 keeps them with axes for the batch and the pixels, 1 1 1 C.
  """

  def flat(name: str, value: np.ndarray) -> np.ndarray:
    is_norm = name.rpartition("/")[0].rpartition("/")[2].startswith("GroupNorm_")
    return value.reshape(-1) if is_norm and value.shape[:-1] == (1, 1, 1) else value

  return {name: flat(name, value) for name, value in tensors.items()}


def side_of(image_size: int | None, where: str) -> int:
  """Return the side of the images, pixels.

  Raises:
    UserError: the user gave none.
  """
  if image_size is None:
    raise UserError(f"{where} does not tell the side of the images; add --image_size=32")
  return image_size


def shape_of(tensors: Tensors, name: str, num_axes: int, where: str) -> tuple[int, ...]:
  """Return the shape of a tensor that the network's description needs.

  Raises:
    UserError: it is missing or has another number of axes.
  """
  if name not in tensors:
    raise UserError(f"{where} has no tensor {name}, which this architecture needs")
  if tensors[name].ndim != num_axes:
    raise UserError(
      f"{where}: {name} has the shape {list(tensors[name].shape)}, this architecture needs "
      f"{num_axes} axes"
    )
  return tensors[name].shape
