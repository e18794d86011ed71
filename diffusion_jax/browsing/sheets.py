"""Pictures of a page: all images of an answer in one PNG, in rows and columns."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from diffusion_jax.core.class_names import name_of
from diffusion_jax.core.pixels import to_uint8
from diffusion_jax.report.inline_images import CHANNELS, png_uri


def sheet(images: Float[np.ndarray, "R N H W C"]) -> dict[str, Any]:
  """Return images in [-1, 1] as one PNG without gaps, with its rows, columns and image size.

  Images of a number of channels that no PNG has are shown by their first three, or the first.
  """
  rows, columns, height, width, channels = images.shape
  if channels not in CHANNELS:
    images = images[..., : 3 if channels > 3 else 1]
  pixels = to_uint8(images.reshape(-1, *images.shape[2:])).reshape(images.shape)
  tiled = pixels.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, -1)
  size = {"rows": rows, "columns": columns, "height": height, "width": width}
  return {"uri": png_uri(tiled), **size}


def captions_of(labels: np.ndarray | None, names: Sequence[str], null: int) -> list[str]:
  """Return the names of the classes of images; empty for the null class or no classes."""
  if labels is None:
    return []
  return [name_of(int(label), names) if label != null else "" for label in labels]
