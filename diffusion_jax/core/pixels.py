"""Pixel levels and the [-1, 1] axis on which models work."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num, UInt8

from diffusion_jax.types import UserError


class NonFiniteImages(UserError):
  """Raised for images with NaN or infinity, which cannot be shown or measured."""


QUANTISATION = "floor(127.5 x + 128), clipped to 0..255"
"""The rounding of `to_uint8`, as stored with the figures that depend on it."""


def from_levels(
  image: Num[Array | np.ndarray, "B H W C"], num_levels: int | None
) -> Float[Array, "B H W C"]:
  """Map levels k = 0..L-1 to 2 k / (L - 1) - 1; float data (L None) stay unchanged."""
  x = jnp.asarray(image, jnp.float32)
  return x if num_levels is None else x * (2.0 / (num_levels - 1)) - 1.0


def to_uint8(image: Float[np.ndarray, "..."]) -> UInt8[np.ndarray, "..."]:
  """Map images in [-1, 1] to 0..255: floor(127.5 x + 128), clipped.

  Every k / 127.5 - 1 returns k. The result is the nearest level, without the half-level bias of
  floor(127.5 (x + 1)).

  Raises:
    NonFiniteImages: an image holds NaN or infinity; the first axis counts images.
  """
  x = np.asarray(image, np.float64)
  finite = np.isfinite(x).reshape(len(x), -1).all(axis=1)
  if not finite.all():
    raise NonFiniteImages(
      f"{np.sum(~finite):,} of {len(x):,} images are not finite (NaN or infinity); use weaker "
      "guidance (`guidance.weight=1`), another sampler or more steps (`sampler.name=ddim`, "
      "`sampler.steps=N`), or an earlier checkpoint (`step=N`)"
    )
  return np.clip(np.floor(127.5 * x + 128.0), 0, 255).astype(np.uint8)


def as_pictures(
  image: Num[Array | np.ndarray, "B H W C"], num_levels: int | None
) -> UInt8[np.ndarray, "B H W C"]:
  """Map images of a data set from levels 0..L-1 to 0..255."""
  return to_uint8(np.asarray(from_levels(image, num_levels)))
