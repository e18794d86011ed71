"""A folder in the manner of people's photographs: 551 files, of which not all are pictures."""

import io
import os
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("cat", "Übung", "小狗", "my dog's pictures", "écureuil")
NUM_FILES = 551
SKIPPED = {"cut off": 1, "empty": 1, "of more than 8 bits a channel": 2, "not pictures": 6,
           "hidden or of the system": 7, "beside the folders of the classes": 1}  # fmt: skip


def picture(rng: np.random.Generator, width: int, height: int, mode: str = "RGB") -> Image.Image:
  """Return a smooth picture with a little noise."""
  y, x = np.mgrid[0:height, 0:width] / 64
  waves = [np.sin(x * a + y * b + c) for a, b, c in rng.uniform(-2, 2, (3, 3))]
  pixels = 127 + 100 * np.stack(waves, -1) + rng.normal(0, 5, (height, width, 3))
  return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert(mode)


def _turned(image: Image.Image, orientation: int) -> bytes:
  exif = Image.Exif()
  exif[274] = orientation
  file = io.BytesIO()
  image.save(file, "JPEG", exif=exif)
  return file.getvalue()


def _saved(image: Image.Image, kind: str, **options) -> bytes:
  file = io.BytesIO()
  image.save(file, kind, **options)
  return file.getvalue()


def _one(rng: np.random.Generator, number: int) -> tuple[str, bytes]:
  """Return the suffix and content of one picture; twelve kinds take turns."""
  width, height = (int(side) for side in rng.integers(40, 160, 2))
  plain = picture(rng, width, height)
  kinds = [
    lambda: (".jpg", _saved(plain, "JPEG")),
    lambda: (".JPG", _saved(plain, "JPEG", progressive=True)),
    lambda: (".jpeg", _saved(plain.convert("CMYK"), "JPEG")),
    lambda: (".jpg", _turned(plain, 1 + number % 8)),
    lambda: (".webp", _saved(plain, "WEBP")),
    lambda: (".bmp", _saved(plain, "BMP")),
    lambda: (".gif", _saved(plain.convert("P"), "GIF")),
    lambda: (".tiff", _saved(plain, "TIFF")),
    lambda: (".png", _saved(plain.convert("P"), "PNG")),
    lambda: (".png", _saved(plain.convert("RGBA"), "PNG")),
    lambda: (".jpg", _saved(picture(rng, 400, 40), "JPEG")),  # a banner
    lambda: (".png", _saved(picture(rng, 9, 7), "PNG")),  # tiny
  ]
  return kinds[number % len(kinds)]()


def make_photographs(root: Path) -> None:
  """Write the 551 files below a folder."""
  rng = np.random.default_rng(0)
  extra = {
    "cat/deep.png": _saved(Image.fromarray(np.full((50, 50), 40_000, np.uint16)), "PNG"),
    "cat/deep.tif": _saved(Image.fromarray(np.full((50, 50), 40_000, np.uint16)), "TIFF"),
    "cat/cut.jpg": _saved(picture(rng, 90, 90), "JPEG")[:-900],
    "小狗/empty.jpg": b"",
    "stray.jpg": _saved(picture(rng, 60, 60), "JPEG"),
    "cat/.DS_Store": b"\0",
    "cat/._0001.jpg": b"\0",
    "小狗/Thumbs.db": b"\0",
    ".thumbnails/1.png": _saved(picture(rng, 8, 8), "PNG"),
    ".thumbnails/deeper/2.png": _saved(picture(rng, 8, 8), "PNG"),
    "__MACOSX/cat/._1.jpg": b"\0",
    "desktop.ini": b"\0",
    "cat/clip.mov": b"\0",
    "cat/clip2.mp4": b"\0",
    "notes.txt": b"hello",
    "Übung/photo.heic": b"\0",
    "Übung/photo.jpg.xmp": b"\0",
    "Übung/raw.cr2": b"\0",
  }
  for name, content in extra.items():
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(content)
  for number in range(NUM_FILES - len(extra)):
    suffix, content = _one(rng, number)
    file = root / CLASSES[number % len(CLASSES)] / f"IMG_{number:04d} (kopie){suffix}"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
  assert sum(len(names) for _, _, names in os.walk(root)) == NUM_FILES
