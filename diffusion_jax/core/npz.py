"""Read arrays from .npz files of any origin, or reject a file in one line; hash arrays."""

import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from diffusion_jax.types import UserError

HOW_TO_WRITE = "write one with np.savez(FILE, images=images)"
MAKE_AGAIN = "copy it again, or make a new one"
KINDS = {
  b"\x93NUMPY": "is a single array (.npy), not an .npz",
  b"\x80": "is a Python pickle, which is not read",
  b"\x89HDF": "is an HDF5 file, not an .npz",
  b"\x1f\x8b": "is compressed by gzip, not an .npz",
}
"""First bytes of files that are not .npz, and what to call them."""

STATISTICS = re.compile(r"(\w+_)?(mu|sigma|cov|covariance)(_\w+|\d+)?", re.IGNORECASE)
"""Names of arrays that are means or covariances of features: mu, sigma, mu_s, sigma_s, ..."""


def read_npz(
  path: Path, where: str, wanted: Callable[[str], bool] = lambda _: True, cure: str = ""
) -> dict[str, np.ndarray]:
  """Return the arrays of an .npz by name; never executes anything in it.

  Args:
    path: path of the file, with any suffix.
    where: source of the path, for messages: "--samples=a.npz".
    wanted: name -> true if this array is to be read.
    cure: advice if the file cannot be read; empty: an .npz of images is needed.

  Raises:
    UserError: the file is missing, damaged or of another kind, or a wanted array has objects.
  """
  _check_kind(path, where, cure)
  try:
    with np.load(path, allow_pickle=False) as file:
      names = [name for name in file.files if wanted(name)]
      return {name: _read_one(file, name, where) for name in names}
  except UserError:
    raise
  except Exception as error:  # many types: from the archive, the decompressor or the header
    raise UserError(f"{where} is damaged or cut short; {cure or MAKE_AGAIN}") from error


def names(path: Path, where: str, cure: str = "") -> Sequence[str]:
  """Return the names of an .npz file's arrays; the arguments are those of `read_npz`.

  Raises:
    UserError: as in `read_npz`.
  """
  _check_kind(path, where, cure)
  try:
    with np.load(path, allow_pickle=False) as file:
      return list(file.files)
  except Exception as error:
    raise UserError(f"{where} is damaged or cut short; {cure or MAKE_AGAIN}") from error


def statistics_names(there: Sequence[str]) -> list[str]:
  """Return the names among these that say that a file holds statistics of features."""
  return sorted(name for name in there if STATISTICS.fullmatch(name.rpartition("/")[2]))


def listed_names(there: Sequence[str]) -> str:
  """List the names of arrays, or return "no arrays"."""
  return f"the arrays {', '.join(sorted(there))}" if there else "no arrays"


def _read_one(file: np.lib.npyio.NpzFile, name: str, where: str) -> np.ndarray:
  try:
    array = file[name]
  except ValueError as error:
    if "allow_pickle" in str(error):
      raise UserError(
        f"{where}: the array {name} has Python objects, which are refused; store it as numbers, "
        "all images of one size"
      ) from error
    raise
  if not isinstance(array, np.ndarray):
    raise UserError(f"{where}: {name} is no array; {HOW_TO_WRITE}")
  return array


def _check_kind(path: Path, where: str, cure: str = "") -> None:
  """Raise an error that names the kind of a file that is no .npz, from its first bytes."""
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


def arrays_digest(arrays: Mapping[str, np.ndarray]) -> str:
  """Return the SHA-256 of arrays with their names, types and shapes, in any order."""
  sha = hashlib.sha256()
  for name in sorted(arrays):
    array = np.ascontiguousarray(arrays[name])
    sha.update(f"{name} {array.dtype.str} {array.shape} ".encode())
    sha.update(array.data)
  return sha.hexdigest()
