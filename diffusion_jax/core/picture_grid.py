"""Grids of pictures, with captions in the fonts at hand."""

import contextlib
import functools
import math
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont, features

from diffusion_jax.core.class_names import name_of

SIZE = 11
"""Height of the letters, pixels."""

LINE = 15
"""Height of a line of captions, pixels."""

ROOM = 72
"""Width up to which the pictures are enlarged to make room for their captions, pixels."""

NO_LETTER = "\uffff"
"""Character that no font has."""


def label_captions(labels: Sequence[int] | np.ndarray, names: Sequence[str]) -> list[str]:
  """Return the caption of each picture: its class's name, or its number.

  A name in letters that no font at hand has is written without its accents if that is enough, and
  as "class 3" otherwise. Labels without a class (-1) give an empty caption.
  """
  return [_caption(int(label), tuple(names)) if label >= 0 else "" for label in labels]


@functools.lru_cache(4096)
def _caption(label: int, names: tuple[str, ...]) -> str:
  name = unicodedata.normalize("NFC", name_of(label, names)).strip()
  if name and font_of(name):
    return name
  parts = unicodedata.normalize("NFKD", name)
  without = "".join(c for c in parts if not unicodedata.combining(c)).strip()
  return without if without and font_of(without) else f"class {label}"


INSTALLED = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "NotoSansCJK-Regular.ttc", "Arial.ttf",
             "Arial Unicode.ttf", "NotoSansArabic-Regular.ttf")  # fmt: skip
"""Fonts of the machine, for letters that Pillow's own font lacks."""


@functools.lru_cache(4096)
def font_of(text: str) -> Any | None:
  """Return a font with every letter of a text: Pillow's own, or one of the machine, or None."""
  if _is_right_to_left(text) and not features.check("raqm"):  # it would be written backwards
    return None
  return next((font for font in _fonts() if _has_letters(font, text)), None)


@functools.cache
def _fonts() -> list[Any]:
  fonts = [ImageFont.load_default(SIZE)]
  for name in INSTALLED:
    with contextlib.suppress(OSError):
      fonts.append(ImageFont.truetype(name, SIZE))
  return fonts


def _is_right_to_left(text: str) -> bool:
  return any(unicodedata.bidirectional(c) in ("R", "AL") for c in text)


def _has_letters(font: Any, text: str) -> bool:
  """Return whether a font has these letters: another shape than that of missing ones."""
  missing = _shape(font, NO_LETTER)
  return all(c == " " or _shape(font, c) not in (missing, None) for c in text)


def _shape(font: Any, letter: str) -> tuple[Any, bytes] | None:
  """Return the size and the pixels of a letter; None if it cannot be drawn or has none."""
  try:
    mask = font.getmask(letter)
  except (UnicodeEncodeError, OSError, ValueError):
    return None
  return (mask.size, bytes(mask)) if mask.size[0] and mask.size[1] else None


def text_width(text: str) -> int:
  """Return the width of a text, pixels."""
  return math.ceil((font_of(text) or _fonts()[0]).getlength(text))


def draw_caption(text: str, width: int, channels: int) -> UInt8[np.ndarray, "H W C"]:
  """Draw a text in black on white, centred, and cut with an ellipsis if it is too wide."""
  if text_width(text) > width:
    while text and text_width(text + "...") > width:
      text = text[:-1]
    text = text.rstrip() + "..." if text else ""
  canvas = Image.new("L", (width, LINE), 255)
  left = max(0, (width - text_width(text)) // 2)
  ImageDraw.Draw(canvas).text((left, 0), text, fill=0, font=font_of(text) or _fonts()[0])
  return np.repeat(np.asarray(canvas)[:, :, None], channels, axis=2)


def image_grid(
  images: UInt8[np.ndarray, "N H W C"], columns: int, captions: Sequence[str] = ()
) -> UInt8[np.ndarray, "A B C"]:
  """Tile images row by row on white, enlarged by whole pixels to sides of at least 32.

  Args:
    images: the images.
    columns: number of columns.
    captions: text above each image; a row with the captions of the row above has none.
  """
  return grid_of(images, len(images), columns, captions)


def grid_of(
  images: Iterable[UInt8[np.ndarray, "H W C"]],
  num_images: int,
  columns: int,
  captions: Sequence[str] = (),
) -> UInt8[np.ndarray, "A B C"]:
  """Tile `num_images` images (at least one) like `image_grid`, with one in memory at a time."""
  gap, grid, tops = 2, None, np.zeros(0, int)
  num_rows = math.ceil(num_images / columns)
  is_captioned = _captioned_rows(captions, num_rows, columns)
  widest = max((min(text_width(c), ROOM) for c in set(captions)),
               default=0)  # fmt: skip
  for i, image in enumerate(images):
    zoom = max(1, math.ceil(32 / min(image.shape[:2])), math.ceil(widest / image.shape[1]))
    image = image.repeat(zoom, axis=0).repeat(zoom, axis=1)
    tall, wide, channels = image.shape[0] + gap, image.shape[1] + gap, image.shape[2]
    if grid is None:
      heights = tall + LINE * is_captioned
      tops = gap + np.cumsum(heights) - tall
      shape = (int(heights.sum()) + gap, columns * wide + gap, channels)
      grid = np.full(shape, 255, np.uint8)
    row, left = i // columns, gap + i % columns * wide
    grid[tops[row] : tops[row] + image.shape[0], left : left + image.shape[1]] = image
    if is_captioned[row] and i < len(captions):
      text = draw_caption(captions[i], image.shape[1], channels)
      grid[tops[row] - LINE : tops[row], left : left + image.shape[1]] = text
  assert grid is not None
  return grid


def _captioned_rows(captions: Sequence[str], num_rows: int, columns: int) -> np.ndarray:
  """Return for each row whether it has captions that differ from those of the row above."""
  rows = [list(captions[r * columns : (r + 1) * columns]) for r in range(num_rows)]
  above = [[""] * columns, *rows]
  return np.array([row != old[: len(row)] for row, old in zip(rows, above[:-1], strict=True)])


def grid_columns(num_images: int, num_classes: int) -> int:
  """Return the number of columns: one per class if the classes are few, else nearly square."""
  return num_classes if 2 <= num_classes <= 16 else math.ceil(math.sqrt(num_images))
