"""Pictures as data URIs, with their place in the report."""

import base64
import dataclasses
import io
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

SHOWN_WIDTH = 520
"""Width up to which pictures are enlarged, by whole pixels, unsmoothed; CSS pixels."""
HERO_WIDTH = 380
"""The same width for the picture beside the headline figures, CSS pixels."""

TITLES = {
  "samples": "Samples",
  "classes": "Class by class",
  "progression": "From noise to image",
  "reconstructions": "Images and their reconstructions",
  "nearest": "Nearest training images",
}
CHANNELS = (1, 3, 4)


@dataclasses.dataclass(frozen=True)
class Picture:
  """An image of the report.

  Attributes:
    image: pixels, grey, RGB or RGBA.
    caption: sentence that describes the image; it is also the alternative text.
  """

  image: UInt8[np.ndarray, "H W C"]
  caption: str

  def __post_init__(self):
    if self.image.shape[2] not in CHANNELS or not self.image.size:
      shape = "x".join(str(n) for n in self.image.shape)
      raise ValueError(f"a picture of {shape} must have pixels and 1, 3 or 4 channels")


class Shown(NamedTuple):
  """A picture as the template needs it.

  Attributes:
    name, title, caption: id, heading and description.
    uri: PNG as a data URI.
    width, height: size of the PNG, pixels.
    shown_width: width on a wide screen, CSS pixels: a whole multiple of `width` for pixel art.
    pixelated: true for pixel art.
  """

  name: str
  title: str
  caption: str
  uri: str
  width: int
  height: int
  shown_width: int
  pixelated: bool


def show(name: str, picture: Picture, max_width: int = SHOWN_WIDTH) -> Shown:
  """Return a picture, its title and its width on a wide screen, at most `max_width` pixels."""
  height, width = picture.image.shape[:2]
  zoom = min(max(1, max_width // width), 8)
  title = TITLES.get(name, name.replace("_", " ").capitalize())
  uri = png_uri(picture.image)
  return Shown(name, title, picture.caption, uri, width, height, zoom * width, width <= max_width)


def show_all(pictures: Mapping[str, Picture], *names: str) -> list[Shown]:
  """Return the pictures that exist among the names, in the order of the names."""
  return [show(name, pictures[name]) for name in names if name in pictures]


def show_others(pictures: Mapping[str, Picture]) -> list[Shown]:
  """Return the pictures that have no place of their own."""
  return [show(name, picture) for name, picture in pictures.items() if name not in TITLES]


def png_uri(image: UInt8[np.ndarray, "H W C"]) -> str:
  """Encode a PNG as a data URI; the same image gives the same bytes."""
  pixels = image[:, :, 0] if image.shape[2] == 1 else image
  stream = io.BytesIO()
  Image.fromarray(np.ascontiguousarray(pixels)).save(stream, format="PNG", optimize=True)
  return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
