"""Read standard sets from archives and folders as their authors or torchvision pack them.

CIFAR's python archives are pickles. Nothing in them is executed: `read_pickle` knows dictionaries,
lists, numbers, texts, bytes and arrays, and refuses everything else.
"""

import gzip
import hashlib
import io
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.data.archives import find_archive
from diffusion_jax.types import UserError

MD5 = {
  "data_batch_1": "c99cafc152244af753f735de768cd75f",
  "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
  "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
  "data_batch_4": "634d18415352ddfa80567beed471001a",
  "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
  "test_batch": "40351d587109b95175f43aff81a1287e",
  "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
  "train": "16019d7e3df5f24257cddd939b257f8d",
  "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
  "meta": "7973b15100ade9c7d40fb424638fde48",
}
"""MD5 of each file of CIFAR-10's and CIFAR-100's python archives, from torchvision."""

MAX_PICKLE_BYTES = 1 << 28

GivenFiles = Mapping[str, Callable[[], bytes]]
"""Last part of a file's name -> function that reads it."""


def given_files(source: Path) -> GivenFiles:
  """Return the files of a folder or an archive, at any depth.

  Raises:
    UserError: there is nothing there, or the archive is damaged.
  """
  if (found := find_archive(source)) is not None:
    return {name.rpartition("/")[2]: member.read for name, member in found[0].members.items()}
  if not source.is_dir():
    raise UserError(f"{source}: no such folder or archive; give the downloaded file or its folder")
  return {path.name: path.read_bytes for path in sorted(source.rglob("*")) if path.is_file()}


def read_checked(files: GivenFiles, name: str) -> bytes:
  """Return a file of a python archive, after comparing its MD5 with the published one.

  Raises:
    UserError: it differs.
  """
  content = files[name]()
  found = hashlib.md5(content, usedforsecurity=False).hexdigest()
  if found != MD5[name]:
    raise UserError(f"{name} has MD5 {found}, expected {MD5[name]}; fetch the archive again")
  return content


def read_cifar_batch(content: bytes, label_keys: Mapping[str, str]) -> tuple[np.ndarray, dict]:
  """Return the images [N 32 32 3] and labels of one file of a python archive.

  Args:
    content: the file.
    label_keys: name of a label -> its key in the file, e.g. {"label": "fine_labels"}.

  Raises:
    UserError: it is no such file.
  """
  batch = read_pickle(content)
  try:
    rows = np.asarray(batch["data"])
    labels = {name: np.array(batch[key], np.uint8) for name, key in label_keys.items()}
    images = rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
  except (KeyError, TypeError, ValueError) as error:
    raise UserError(f"this file of CIFAR's has no images or labels ({error})") from error
  if rows.dtype != np.uint8 or any(len(values) != len(rows) for values in labels.values()):
    raise UserError(f"this file of CIFAR's has {rows.dtype} images and as many labels as not")
  return np.ascontiguousarray(images), labels


def read_pickle(content: bytes) -> Any:
  """Return the plain data of a pickle; keys and texts are str.

  Raises:
    UserError: it holds anything but plain data and arrays of numbers.
  """
  if len(content) > MAX_PICKLE_BYTES:
    raise UserError(f"a pickle of {len(content):,} bytes is none of CIFAR's")
  try:
    return _plain(_Inert(io.BytesIO(content), encoding="bytes").load())
  except UserError:
    raise
  except Exception as error:
    raise UserError(f"a pickle cannot be read ({error}); fetch the archive again") from error


class _Dtype:
  """A stand-in for numpy.dtype, which only keeps its letters."""

  def __init__(self, letters: Any, *_: Any):
    self.letters = letters.decode() if isinstance(letters, bytes) else letters

  def __setstate__(self, state: Any) -> None:
    pass  # byte order, of no meaning for the allowed types of one byte


class _Array:
  """A stand-in for numpy.ndarray, which only keeps its bytes and shape."""

  def __setstate__(self, state: Any) -> None:
    _, self.shape, self.dtype, self.is_fortran, self.content = state


def _frombuffer(content: Any, dtype: Any, shape: Any, order: Any) -> _Array:
  array = _Array()
  array.__setstate__((1, shape, dtype, order == "F", bytes(content)))
  return array


def _encode(text: str, encoding: str) -> bytes:
  if encoding not in ("latin1", b"latin1"):
    raise pickle.UnpicklingError(f"text in {encoding!r}")
  return text.encode("latin1")


_ALLOWED: Mapping[tuple[str, str], Any] = {
  ("numpy", "ndarray"): _Array,
  ("numpy", "dtype"): _Dtype,
  ("_codecs", "encode"): _encode,
  **{
    (f"numpy.{core}.multiarray", "_reconstruct"): lambda *_: _Array() for core in ("core", "_core")
  },
  **{(f"numpy.{core}.numeric", "_frombuffer"): _frombuffer for core in ("core", "_core")},
}
"""Names that a pickle may use, each with an inert stand-in."""


class _Inert(pickle.Unpickler):
  def find_class(self, module_name: str, global_name: str) -> Any:
    if (module_name, global_name) not in _ALLOWED:
      raise UserError(
        f"a pickle asks for {module_name}.{global_name}, which is no data; fetch the archive again"
      )
    return _ALLOWED[module_name, global_name]


def _plain(value: Any) -> Any:
  """Return data with texts in place of bytes and NumPy's arrays in place of the stand-ins."""
  if isinstance(value, bytes):
    return value.decode("latin1")
  if isinstance(value, dict):
    return {_plain(key): _plain(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [_plain(item) for item in value]
  if isinstance(value, _Array):
    if value.dtype.letters not in ("u1", "|u1"):
      raise UserError(f"a pickle holds an array of type {value.dtype.letters}; pixels are uint8")
    shape, order = tuple(map(int, value.shape)), "F" if value.is_fortran else "C"
    content = value.content.encode("latin1") if isinstance(value.content, str) else value.content
    return np.frombuffer(content, np.uint8).reshape(shape, order=order)
  if value is None or isinstance(value, bool | int | float | str):
    return value
  raise UserError(f"a pickle holds a {type(value).__name__}, which is no data")


def read_idx(files: GivenFiles, name: str, checksums: Mapping[str, str]) -> bytes:
  """Return one of MNIST's files, which may be packed or not.

  Args:
    files: the given files.
    name: name of the packed file.
    checksums: name -> SHA-256 of the packed files.

  Raises:
    UserError: it is missing, or the packed file differs from the published one.
  """
  if name in files:
    content = files[name]()
    found = hashlib.sha256(content).hexdigest()
    if found != checksums[name]:
      raise UserError(f"{name} has SHA-256 {found}, expected {checksums[name]}; fetch it again")
    return gzip.decompress(content)
  plain = next((n for n in (name[:-3], name[:-3].replace("-idx", ".idx")) if n in files), None)
  if plain is None:
    raise UserError(f"{name} is missing, with and without .gz; give the folder of all four files")
  return files[plain]()
