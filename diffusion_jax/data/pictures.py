"""Pictures made by any program: a folder of files, or arrays, as they are."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from diffusion_jax.data.folder import SUFFIXES, UNREADABLE, header_size
from diffusion_jax.data.source import ArraySource, DecodedSource, Source, fit_image
from diffusion_jax.types import ImageSpec, UserError

ARRAYS = ("images", "arr_0")
"""Names under which an .npz holds images: ours, and the one of unnamed arrays."""


def load_pictures(path: Path, flag: str) -> Source:
  """Images of a folder (png, jpg, webp, with its sub-folders), an .npz, or a folder of .npz chunks.

  Nothing is resized or dropped.

  Args:
    path: of the folder or file.
    flag: that named it, for messages.

  Raises:
    UserError: nothing there, fewer than two images, mixed sizes, or an unreadable file.
  """
  where = f"{flag}={path}"
  if path.is_dir():
    files = sorted(f for f in path.rglob("*") if f.suffix.lower() in SUFFIXES and f.is_file())
    chunks = [] if files else sorted(path.glob("*.npz"))
    if not files and not chunks:
      raise UserError(f"{where}: no images there; it needs {', '.join(SUFFIXES)} or .npz files")
    source = _from_files(path, files, where) if files else _from_arrays(path, chunks, where)
  elif path.is_file() and path.suffix == ".npz":
    source = _from_arrays(path, [path], where)
  else:
    raise UserError(f"{where}: no such folder or .npz; give a folder of images or a file.npz")
  if len(source) < 2:
    raise UserError(f"{where} holds {len(source)} image; a sample metric needs at least 2")
  return source


def _from_files(root: Path, files: list[Path], where: str) -> Source:
  with ThreadPoolExecutor() as pool:
    sizes = list(pool.map(header_size, files))
  broken = [file for file, size in zip(files, sizes, strict=True) if size is None]
  if broken:
    raise UserError(
      f"{where}: {len(broken)} of {len(files)} images cannot be read, the first is {broken[0]}; "
      "mend them or move them away"
    )
  other = next((i for i, size in enumerate(sizes) if size != sizes[0]), None)
  height, width = sizes[0] or (0, 0)
  if other is not None:
    h, w = sizes[other] or (0, 0)
    raise UserError(
      f"{where}: images of mixed sizes ({files[0].name} is {width}x{height}, {files[other].name} "
      f"is {w}x{h}); give images of one size"
    )
  channels = _channels(files)
  return DecodedSource(
    f"{root.name} given", ImageSpec(height, width, channels, 256, 0), len(files),
    lambda i: (_read(files[i], channels, where), 0),
  )  # fmt: skip


def _channels(files: list[Path]) -> int:
  """1 where every picture is grey, else 3."""
  for file in files:
    with Image.open(file) as image:
      if image.mode not in ("L", "1"):
        return 3
  return 1


def _read(file: Path, channels: int, where: str) -> np.ndarray:
  try:
    with Image.open(file) as image:
      return fit_image(image, None, channels)
  except UNREADABLE as error:
    raise UserError(f"{where}: {file} is not a readable image ({error}); mend it") from error


def _from_arrays(root: Path, files: list[Path], where: str) -> Source:
  parts = [_open(file, where) for file in files]
  other = next((i for i, part in enumerate(parts) if part.shape[1:] != parts[0].shape[1:]), None)
  if other is not None:
    raise UserError(
      f"{where}: images of mixed sizes ({files[0].name} has {parts[0].shape[1:]}, "
      f"{files[other].name} has {parts[other].shape[1:]}); give images of one size"
    )
  return ArraySource(f"{root.stem} given", np.concatenate(parts), None, 256, 0)


def _open(file: Path, where: str) -> np.ndarray:
  try:
    with np.load(file, allow_pickle=False) as arrays:
      names = [name for name in ARRAYS if name in arrays.files]
      images = arrays[names[0]] if names else None
      there = ", ".join(arrays.files)
  except Exception as error:
    raise UserError(f"{where}: {file.name} is not a readable .npz ({error})") from error
  if "mu" in there.split(", "):
    raise UserError(
      f"{where}: {file.name} holds statistics of features (mu, sigma) and no images to measure; "
      "give images, or statistics made by python -m diffusion_jax.stats"
    )
  if images is None:
    raise UserError(f"{where}: {file.name} has {there or 'nothing'}; it needs an array images")
  images = images[..., None] if images.ndim == 3 else images
  if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
    raise UserError(
      f"{where}: {file.name} holds {images.dtype}{list(images.shape)}; it must be uint8 "
      "[N, H, W, 1] or [N, H, W, 3]"
    )
  return images
