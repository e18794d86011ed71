"""A split of Hugging Face's `datasets`, whose images are resized while they are downloaded.

The library keeps the resized images in its own cache, as a data set like any other, and nothing of
the download. A stream that is interrupted begins again.
"""

import io
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from diffusion_jax.core import progress
from diffusion_jax.data.reading import Broken, Header, opened, read_header
from diffusion_jax.data.source import fit_image
from diffusion_jax.parallel import watchdog

HEIGHT, WIDTH = "original_height", "original_width"
"""Columns with the size of an image before it was resized; 0 if it cannot be read."""


class Stream(NamedTuple):
  """A split to download, and the form in which its images are kept.

  Attributes:
    dataset, subset, split, revision: as in `HuggingFace`.
    version: hash of the set as it is now; another one is another download.
    num: number of rows; None: unknown.
    image_key, label_key: columns that are kept; no labels: None.
    image_size, channels: see `fit_image`.
  """

  dataset: str
  subset: str | None
  split: str
  revision: str | None
  version: str
  num: int | None
  image_key: str
  label_key: str | None
  image_size: int
  channels: int


def open_stream(
  library: Any, dataset: str, subset: str | None, split: str, revision: str | None
) -> Any:
  """Return the rows of a split as they arrive, with their images undecoded."""
  rows = library.load_dataset(dataset, subset, split=split, revision=revision, streaming=True)
  rows = rows if rows.features else rows._resolve_features()
  for key, feature in rows.features.items():
    if isinstance(feature, library.Image):
      rows = rows.cast_column(key, library.Image(decode=False))
  return rows


def keep_resized(library: Any, stream: Stream, features: Mapping[str, Any]) -> Any:
  """Return the rows with resized images, read from the cache or downloaded into it.

  Args:
    library: the package `datasets`.
    stream: what is read.
    features: the types of its columns.
  """
  kept = {stream.image_key: library.Image(), HEIGHT: library.Value("int32")}
  kept[WIDTH] = kept[HEIGHT]
  if stream.label_key:
    kept[stream.label_key] = features[stream.label_key]
  shows_bars = not library.are_progress_bars_disabled()
  library.disable_progress_bars()
  try:
    return library.Dataset.from_generator(
      _resized, features=library.Features(kept), gen_kwargs={"stream": tuple(stream)}
    )
  finally:
    if shows_bars:
      library.enable_progress_bars()


def original_headers(rows: Any) -> list[Header | Broken] | None:
  """Return the headers of the images before they were resized; None for rows that never were."""
  if HEIGHT not in rows.features:
    return None
  sizes = zip(rows[HEIGHT], rows[WIDTH], strict=True)
  return [Header(h, w, False, False, False) if h else Broken("unreadable") for h, w in sizes]


def picture_file(cell: Mapping[str, Any] | None) -> str | io.BytesIO:
  """Return the file of an undecoded image, or its bytes.

  Raises:
    Broken: the row has no image, or its file cannot be opened.
  """
  if cell is None or (cell["bytes"] is None and not cell["path"]):
    raise Broken("no image")
  if cell["bytes"] is not None:
    return io.BytesIO(cell["bytes"])
  if "://" not in cell["path"]:
    return cell["path"]
  import fsspec  # pyright: ignore[reportMissingImports]

  try:
    opened_file: Any = fsspec.open(cell["path"], "rb")
    with opened_file as file:
      return io.BytesIO(file.read())
  except OSError as error:
    raise Broken(error.strerror or str(error), by_system=True) from error


def _resized(stream: tuple) -> Iterator[dict[str, Any]]:
  import datasets  # pyright: ignore[reportMissingImports]

  about = Stream(*stream)
  rows = open_stream(datasets, about.dataset, about.subset, about.split, about.revision)
  name = f"downloading {about.dataset} {about.split}"
  with progress.phase(name, about.num, "images") as phase:
    for row in rows:
      cell, size = _shrunk(row[about.image_key], about)
      kept = {about.image_key: cell, HEIGHT: size[0], WIDTH: size[1]}
      if about.label_key:
        kept[about.label_key] = row[about.label_key]
      yield kept
      phase.advance()
      watchdog.beat()


def _shrunk(
  cell: Mapping[str, Any] | None, about: Stream
) -> tuple[Mapping[str, Any] | None, tuple[int, int]]:
  """Return the resized image as a PNG and its former size; an unreadable one as it is, and 0."""
  try:
    file = picture_file(cell)
    header = read_header(file)
    if isinstance(header, Broken):
      raise header
    with opened(file) as image:
      pixels = fit_image(image, about.image_size, about.channels)
  except Broken as broken:
    if broken.by_system:  # of the network or the disk: another start may read it
      raise
    return cell, (0, 0)
  png = io.BytesIO()
  Image.fromarray(np.squeeze(pixels, -1) if about.channels == 1 else pixels).save(png, "PNG")
  return {"bytes": png.getvalue(), "path": None}, header.size
