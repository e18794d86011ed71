"""Arrays in .npz files that anybody may have made: read, or refused in one line."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from diffusion_jax.types import UserError

HOW_TO_WRITE = "write one with np.savez(FILE, images=images)"
MAKE_AGAIN = "copy it anew, or make it again"
KINDS = {
  b"\x93NUMPY": "is a single array (.npy), not an .npz",
  b"\x80": "is a Python pickle, which is not read",
  b"\x89HDF": "is an HDF5 file, not an .npz",
  b"\x1f\x8b": "is compressed by gzip, and no .npz",
}
"""First bytes of files that are taken for an .npz, and what they are."""


def read(
  path: Path, where: str, wanted: Callable[[str], bool] = lambda _: True, cure: str = ""
) -> dict[str, np.ndarray]:
  """The arrays of an .npz by name; nothing that it holds is ever executed.

  Args:
    path: of the file, whatever it is called.
    where: it was named, for messages: "--samples=a.npz".
    wanted: name -> whether this array is read.
    cure: what to do about a file that cannot be read; empty: an .npz of images is wanted.

  Raises:
    UserError: it is missing, of another kind, damaged, or a wanted array holds Python objects.
  """
  _check_kind(path, where, cure)
  try:
    with np.load(path, allow_pickle=False) as file:
      names = [name for name in file.files if wanted(name)]
      return {name: _read_one(file, name, where) for name in names}
  except UserError:
    raise
  except Exception as error:  # of a dozen types: the archive's, the decompressor's, the header's
    raise UserError(f"{where} is damaged or cut short; {cure or MAKE_AGAIN}") from error


def names(path: Path, where: str) -> Sequence[str]:
  """The names of an .npz file's arrays.

  Raises:
    UserError: as `read`.
  """
  _check_kind(path, where)
  try:
    with np.load(path, allow_pickle=False) as file:
      return list(file.files)
  except Exception as error:
    raise UserError(f"{where} is damaged or cut short; {MAKE_AGAIN}") from error


def listed(there: Sequence[str]) -> str:
  """The names of arrays, or "no arrays"."""
  return f"the arrays {', '.join(sorted(there))}" if there else "no arrays"


def _read_one(file: np.lib.npyio.NpzFile, name: str, where: str) -> np.ndarray:
  try:
    found = file[name]
  except ValueError as error:
    if "allow_pickle" in str(error):
      raise UserError(
        f"{where}: the array {name} holds Python objects, which are not read; store it as numbers, "
        "all images of one size"
      ) from error
    raise
  if not isinstance(found, np.ndarray):
    raise UserError(f"{where}: {name} is no array; {HOW_TO_WRITE}")
  return found


def _check_kind(path: Path, where: str, cure: str = "") -> None:
  """Tells by its first bytes what a file is that is no .npz."""
  if path.is_dir():
    raise UserError(f"{where} is a folder; give an .npz file")
  if not path.exists():
    raise UserError(f"{where}: no such file; give an .npz file")
  if not path.is_file():
    raise UserError(f"{where} is no regular file; give an .npz file")
  try:
    with path.open("rb") as file:
      start = file.read(8)
  except OSError as error:
    raise UserError(f"{where} cannot be read ({os.strerror(error.errno or 0)})") from error
  if start.startswith(b"PK"):
    return
  kind = next((text for magic, text in KINDS.items() if start.startswith(magic)), None)
  kind = kind or ("is no .npz" if start else "is empty")
  raise UserError(f"{where} {kind}; {cure or HOW_TO_WRITE}")
