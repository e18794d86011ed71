"""Pictures as data URIs, with their place in the report."""

import base64
import dataclasses
import io
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

SHOWN_WIDTH = 520
"""Width up to which pictures are enlarged, by whole pixels, unsmoothed; CSS pixels."""
HERO_WIDTH = 380
"""The same width for the picture beside the headline figures, CSS pixels."""
NARROW_WIDTH = 360
"""The same width on a narrow screen, CSS pixels."""
HERO_TILES = 16
"""Number of samples beside the headline figures."""
TILE = 96
"""Length of the longer side of an image of its own, CSS pixels.

Larger images are reduced to it, smaller ones enlarged by the whole factor that comes closest.
"""
NARROW_TILE = 64
"""The same length on a narrow screen, CSS pixels."""

TITLES = {
  "samples": "Samples",
  "classes": "Real images beside samples, class by class",
  "real": "Real images beside samples",
  "progression": "From noise to image",
  "reconstructions": "Images and their reconstructions",
  "nearest": "Nearest training images",
}
CHANNELS = (1, 3, 4)


class Part(NamedTuple):
  """Images of one kind in a row of a picture.

  Attributes:
    heading: kind of the images, e.g. "real"; empty: none.
    images: pixels, [N, H, W, C].
    captions: text under each image; empty: none.
  """

  heading: str
  images: UInt8[np.ndarray, "N H W C"]
  captions: Sequence[str] = ()


class Row(NamedTuple):
  """A row of a picture: its name, e.g. of a class, and its images."""

  name: str
  parts: Sequence[Part]


@dataclasses.dataclass(frozen=True)
class Picture:
  """An image of the report.

  Attributes:
    image: pixels, grey, RGB or RGBA.
    caption: sentence that describes the image; it is also the alternative text.
    rows: the images in it, which the report then shows one by one in place of `image`.
  """

  image: UInt8[np.ndarray, "H W C"]
  caption: str
  rows: Sequence[Row] = ()

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
    shown_width, narrow_width: width on a wide and on a narrow screen, CSS pixels: whole multiples
      of `width` for pixel art.
    pixelated: true for pixel art.
    rows: the images one by one; empty if only the whole picture is shown.
    flows: true if the rows are short and stand beside each other.
  """

  name: str
  title: str
  caption: str
  uri: str
  width: int
  height: int
  shown_width: int
  narrow_width: int
  pixelated: bool
  rows: Sequence["ShownRow"] = ()
  flows: bool = False


class Tile(NamedTuple):
  """An image of its own as the template needs it; lengths as in `Shown`."""

  alt: str
  caption: str
  uri: str
  width: int
  height: int
  shown_width: int
  narrow_width: int
  pixelated: bool


class ShownRow(NamedTuple):
  """A row of images: its name, and a heading with images for each part."""

  name: str
  parts: Sequence[tuple[str, Sequence[Tile]]]


def show(name: str, picture: Picture, max_width: int = SHOWN_WIDTH) -> Shown:
  """Return a picture, its title and its width on a wide screen, at most `max_width` pixels."""
  title = TITLES.get(name, name.replace("_", " ").capitalize())
  if picture.rows:
    rows = [_shown_row(row) for row in picture.rows]
    flows = all(sum(len(tiles) for _, tiles in row.parts) <= 2 for row in rows) and len(rows) > 1
    return Shown(name, title, picture.caption, "", 0, 0, 0, 0, False, rows, flows)
  height, width = picture.image.shape[:2]
  wide, narrow = (min(max(1, most // width), 8) * width for most in (max_width, NARROW_WIDTH))
  uri, pixelated = png_uri(picture.image), width <= max_width
  return Shown(name, title, picture.caption, uri, width, height, wide, narrow, pixelated)


def show_hero(picture: Picture) -> Shown:
  """Return the picture beside the headline figures: the first images of its first part."""
  if picture.rows:
    heading, images, captions = picture.rows[0].parts[0]
    first = Part(heading, images[:HERO_TILES], captions[:HERO_TILES])
    num = len(first.images)
    words = f"The first {num} samples." if num < len(images) else picture.caption
    picture = Picture(picture.image, words, [Row("", [first])])
  return show("samples", picture, HERO_WIDTH)


def shows_part(picture: Picture) -> bool:
  """Return whether `show_hero` leaves images out."""
  return bool(picture.rows) and len(picture.rows[0].parts[0].images) > HERO_TILES


def _shown_row(row: Row) -> ShownRow:
  return ShownRow(row.name, [(part.heading, _tiles(part, row.name)) for part in row.parts])


def _tiles(part: Part, row: str) -> list[Tile]:
  """Return the images of a part; each alternative text says what the image is."""
  captions = list(part.captions) or [""] * len(part.images)
  tiles = []
  for i, (image, caption) in enumerate(zip(part.images, captions, strict=True)):
    height, width = image.shape[:2]
    words = [row, part.heading, caption, f"image {i + 1} of {len(part.images)}"]
    wide, narrow = (tile_width(height, width, length) for length in (TILE, NARROW_TILE))
    small = max(height, width) <= TILE
    alt = ", ".join(word for word in words if word)
    tiles.append(Tile(alt, caption, png_uri(image), width, height, wide, narrow, small))
  return tiles


def tile_width(height: int, width: int, length: int) -> int:
  """Return the shown width of an image whose longer side should be about `length` CSS pixels.

  Images of at most TILE pixels are shown in whole multiples of their pixels.
  """
  side = max(height, width)
  if side > TILE:
    return max(1, round(width * length / side))
  zoom = max(1, length // side)
  closer = (zoom + 1) * side / length < length / (zoom * side)
  return width * (zoom + closer)


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
