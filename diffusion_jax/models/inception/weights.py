"""Where the weights of the FID Inception network lie, and how they are checked.

They are published as a PyTorch file. `python -m diffusion_jax.prepare inception` checks its size
and SHA-256 and stores its arrays, under their own names, as an .npz that holds no pickle. The .npz
says which file it was made from and carries a SHA-256 of its arrays: that finds damage, not
forgery.
"""

import hashlib
import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from diffusion_jax.core import files
from diffusion_jax.models.inception.torch_file import read_state_dict
from diffusion_jax.models.inception.torch_port import from_torch, torch_shapes
from diffusion_jax.types import Params, UserError

FILE_NAME = "pt_inception-2015-12-05-6726825d.pth"

URLS = (
  f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{FILE_NAME}",
  "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
  "weights-inception-2015-12-05-6726825d.pth",
)
"""The same file in two places."""

SIZE = 95_628_359
MAX_BYTES = 4 * SIZE  # of a file with these weights, of the same network in float64 too
"""Bytes of the published file."""

SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
"""Of the published file."""

COMMAND = "python -m diffusion_jax.prepare inception"

PUBLISHED = "published"
"""Asks for the published file, where a SHA-256 asks for another one."""

SOURCE, DIGEST = "source_sha256", "arrays_sha256"
"""Names of the two texts in the .npz that are no weights."""


class Weights(NamedTuple):
  """A network's weights and where they are from.

  Attributes:
    params: for `inception.apply`.
    sha256: of the PyTorch file that they were read from.
    is_published: that file is the published one. Features of any other must not be called FID's.
  """

  params: Params
  sha256: str
  is_published: bool


def default_path() -> Path:
  """The .npz in the user's cache ($XDG_CACHE_HOME, or ~/.cache)."""
  return files.cache_folder() / "inception" / Path(FILE_NAME).with_suffix(".npz").name


def load(path: Path | None = None, expected: str | None = PUBLISHED) -> Weights:
  """Reads and checks the weights.

  Args:
    path: the PyTorch file or the .npz made from it; None for `default_path()`.
    expected: PUBLISHED, or the SHA-256 that the PyTorch file must have, or None: any file of the
      same network.

  Raises:
    UserError: the file is missing, truncated, damaged, another one or of another network.
  """
  path = default_path() if path is None else path
  data = _read(path)
  if path.suffix == ".npz":
    state, sha256 = _unpack(data, path)
    check_sum(sha256, str(path), expected)
  else:
    sha256 = check(data, str(path), expected)
    state = read_state_dict(data, str(path))
  return Weights(from_torch(state), sha256, sha256 == SHA256)


def check(data: bytes, where: str, expected: str | None = PUBLISHED) -> str:
  """The SHA-256 of a PyTorch file, after comparing its size and it with what is expected."""
  if expected == PUBLISHED and len(data) != SIZE:
    raise UserError(
      f"{where} has {len(data):,} bytes, the Inception weights have {SIZE:,}: it is truncated or "
      f"another file; {_cure()}"
    )
  sha256 = hashlib.sha256(data).hexdigest()
  check_sum(sha256, where, expected)
  return sha256


def check_sum(sha256: str, where: str, expected: str | None) -> None:
  """Compares a SHA-256 with the expected one.

  Raises:
    UserError: they differ; both are printed.
  """
  wanted = SHA256 if expected == PUBLISHED else expected
  if wanted is not None and sha256 != wanted:
    raise UserError(
      f"Inception weights {where}: SHA-256 {sha256}, expected {wanted}; {_cure()}, or say "
      "--inception_sha256=any for a network of your own, whose figures get another name"
    )


def store(data: bytes, where: str, target: Path) -> None:
  """Converts the published PyTorch file; `target` appears whole or not at all.

  Args:
    data: its bytes.
    where: its name, for messages.
    target: the .npz to write.

  Raises:
    UserError: it is another file, or the target cannot be written.
  """
  sha256 = check(data, where)
  state = read_state_dict(data, where)
  from_torch(state)  # says what is wrong before anything is written
  packed = pack(state, sha256)
  try:
    target.parent.mkdir(parents=True, exist_ok=True)
    files.write_whole(target, packed)
  except OSError as error:
    raise UserError(f"{target} cannot be written ({error}); set XDG_CACHE_HOME") from error


def pack(state: Mapping[str, np.ndarray], sha256: str) -> bytes:
  """The .npz of a state dict that was read from a file with this SHA-256."""
  arrays = {name: np.asarray(state[name]) for name in sorted(torch_shapes())}
  file = io.BytesIO()
  texts = {SOURCE: np.array(sha256), DIGEST: np.array(_digest(arrays))}
  np.savez(file, allow_pickle=False, **texts, **arrays)
  return file.getvalue()


def _unpack(data: bytes, path: Path) -> tuple[dict[str, np.ndarray], str]:
  """The arrays and the SHA-256 of the PyTorch file that they came from."""
  try:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
      if sum(info.file_size for info in archive.infolist()) > MAX_BYTES:
        raise ValueError("it would take more memory than any such weights")
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
      arrays = {name: file[name] for name in file.files}
    source, digest = str(arrays.pop(SOURCE)), str(arrays.pop(DIGEST))
  except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
    raise UserError(f"{path} is no readable .npz of Inception weights; {_cure()}") from error
  if _digest(arrays) != digest:
    raise UserError(f"{path} is damaged: its arrays do not have the SHA-256 {digest}; {_cure()}")
  return arrays, source


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
  sha = hashlib.sha256()
  for name in sorted(arrays):
    array = np.ascontiguousarray(arrays[name])
    sha.update(f"{name} {array.dtype.str} {array.shape} ".encode())
    sha.update(array.data)
  return sha.hexdigest()


def _read(path: Path) -> bytes:
  try:
    with path.open("rb") as file:
      data = file.read(MAX_BYTES + 1)
  except (FileNotFoundError, NotADirectoryError):
    raise UserError(f"Inception weights not found: {path}; {_cure()}") from None
  except OSError as error:
    raise UserError(f"{path} cannot be read ({error.strerror}); {_cure()}") from error
  if len(data) > MAX_BYTES:
    raise UserError(f"{path} has more than {MAX_BYTES:,} bytes: it is another file; {_cure()}")
  return data


def _cure() -> str:
  return (
    f"run {COMMAND}, or without a network {COMMAND} FILE.pth with {URLS[0]} "
    f"({SIZE:,} bytes, SHA-256 {SHA256})"
  )
