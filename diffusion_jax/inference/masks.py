"""Masks of inpainting: the part of an image that is known."""

import warnings

import numpy as np
from jaxtyping import Bool

from diffusion_jax.core.files import bucket_path
from diffusion_jax.data.reading import Broken, opened
from diffusion_jax.data.source import fit_image
from diffusion_jax.types import ImageSpec, UserError

SIDES = ("left", "right", "top", "bottom", "center")
GREY = 128
"""Pixel level of hidden pixels in the grid."""


def known_pixels(text: str, spec: ImageSpec) -> Bool[np.ndarray, "H W 1"]:
  """Return the mask of known pixels: the other half, outside the centre, or black in a .png."""
  known = np.ones((spec.height, spec.width), bool)
  middle = (slice(spec.height // 4, -(-3 * spec.height // 4)),
            slice(spec.width // 4, -(-3 * spec.width // 4)))  # fmt: skip
  hidden = {
    "left": (slice(None), slice(0, spec.width // 2)),
    "right": (slice(None), slice(spec.width // 2, None)),
    "top": (slice(0, spec.height // 2), slice(None)),
    "bottom": (slice(spec.height // 2, None), slice(None)),
    "center": middle,
  }
  if text in hidden:
    known[hidden[text]] = False
  else:
    known = _mask(text, known.shape)
  return known[..., None]


def _mask(text: str, shape: tuple[int, int]) -> Bool[np.ndarray, "H W"]:
  height, width = shape
  allowed = f"must be {', '.join(SIDES)}, or a .png of {width}x{height} pixels"
  if not text:
    raise UserError(f"--inpaint= is empty; {allowed}")
  path = bucket_path(text)
  try:
    with warnings.catch_warnings(action="ignore"), opened(path) as image:
      size = image.size
      if size == (width, height):  # the size is checked before the pixels are decoded
        return fit_image(image, None, 1)[..., 0] < GREY
  except Broken as error:
    raise UserError(f"--inpaint={text}: {allowed} ({error})") from error
  raise UserError(f"--inpaint={text} has {size[0]}x{size[1]} pixels; {allowed}")
