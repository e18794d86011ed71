"""Find, check and convert the weights of the FID Inception network.

They are published as a PyTorch file. `python -m diffusion_jax.prepare inception` checks its size
and SHA-256 and stores its arrays, under their own names, as an .npz without a pickle. The .npz
records its source file and a SHA-256 of its arrays, which detects damage but not forgery.
"""

import hashlib
import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from diffusion_jax.core import files, npz
from diffusion_jax.models.inception.torch_port import from_torch, torch_shapes
from diffusion_jax.types import Params, UserError
from diffusion_jax.weight_files.torch_file import read_state_dict

FILE_NAME = "pt_inception-2015-12-05-6726825d.pth"

URLS = (
  f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{FILE_NAME}",
  "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
  "weights-inception-2015-12-05-6726825d.pth",
)
"""Two addresses of the same file."""

SIZE = 95_628_359
"""Size of the published file, bytes."""

MAX_BYTES = 4 * SIZE
"""Largest size of a file with these weights, also in float64, bytes."""

SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
"""SHA-256 of the published file."""

COMMAND = "python -m diffusion_jax.prepare inception"

PUBLISHED = "published"
"""Value of `expected` for the published file, in place of a SHA-256."""

SOURCE, DIGEST = "source_sha256", "arrays_sha256"
"""Names of the two texts in the .npz that are no weights."""


class Weights(NamedTuple):
  """A network's weights and their source.

  Attributes:
    params: parameters for `network.apply`.
    sha256: SHA-256 of the PyTorch file that they come from.
    is_published: true if that is the published file; only its features may be called FID's.
  """

  params: Params
  sha256: str
  is_published: bool


def default_weights_path() -> Path:
  """Return the .npz in the user's cache ($XDG_CACHE_HOME, or ~/.cache)."""
  return files.cache_folder() / "inception" / Path(FILE_NAME).with_suffix(".npz").name


def load_weights(path: Path | None = None, expected: str | None = PUBLISHED) -> Weights:
  """Read and check the weights.

  Args:
    path: the PyTorch file or the .npz made from it; None for `default_weights_path()`.
    expected: PUBLISHED, or the required SHA-256 of the PyTorch file, or None: any file of the same
      network.

  Raises:
    UserError: the file is missing, truncated or damaged, or another file or network.
  """
  path = default_weights_path() if path is None else path
  data = _read(path)
  if path.suffix == ".npz":
    state, sha256 = _unpack(data, path)
    check_sum(sha256, str(path), expected)
  else:
    sha256 = check_published(data, str(path), expected)
    state = read_state_dict(data, str(path))
  return Weights(from_torch(state), sha256, sha256 == SHA256)


def check_published(data: bytes, where: str, expected: str | None = PUBLISHED) -> str:
  """Return the SHA-256 of a PyTorch file, after checking it and the size."""
  if expected == PUBLISHED and len(data) != SIZE:
    raise UserError(
      f"{where} has {len(data):,} bytes, the Inception weights have {SIZE:,}: it is truncated or "
      f"another file; {_cure()}"
    )
  sha256 = hashlib.sha256(data).hexdigest()
  check_sum(sha256, where, expected)
  return sha256


def check_sum(sha256: str, where: str, expected: str | None) -> None:
  """Compare a SHA-256 with the expected one.

  Raises:
    UserError: they differ; the message has both.
  """
  wanted = SHA256 if expected == PUBLISHED else expected
  if wanted is not None and sha256 != wanted:
    raise UserError(
      f"Inception weights {where}: SHA-256 {sha256}, expected {wanted}; {_cure()}, or give "
      "--inception_sha256=any for a network of your own, whose figures get another name"
    )


def store(data: bytes, where: str, target: Path) -> None:
  """Convert the published PyTorch file; `target` appears whole or not at all.

  Args:
    data: content of the file.
    where: name of the file, for messages.
    target: path of the .npz to write.

  Raises:
    UserError: it is another file, or the target cannot be written.
  """
  sha256 = check_published(data, where)
  state = read_state_dict(data, where)
  from_torch(state)  # raises before anything is written
  packed = pack(state, sha256)
  try:
    target.parent.mkdir(parents=True, exist_ok=True)
    files.write_whole(target, packed)
  except OSError as error:
    raise UserError(f"{target} cannot be written ({error}); set XDG_CACHE_HOME") from error


def pack(state: Mapping[str, np.ndarray], sha256: str) -> bytes:
  """Return the .npz of a state dict from a file with this SHA-256."""
  arrays = {name: np.asarray(state[name]) for name in sorted(torch_shapes())}
  file = io.BytesIO()
  texts = {SOURCE: np.array(sha256), DIGEST: np.array(npz.arrays_digest(arrays))}
  np.savez(file, allow_pickle=False, **texts, **arrays)
  return file.getvalue()


def _unpack(data: bytes, path: Path) -> tuple[dict[str, np.ndarray], str]:
  """Return the arrays, and the SHA-256 of the PyTorch file that they come from."""
  try:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
      if sum(info.file_size for info in archive.infolist()) > MAX_BYTES:
        raise ValueError("it would need more memory than these weights")
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
      arrays = {name: file[name] for name in file.files}
    source, digest = str(arrays.pop(SOURCE)), str(arrays.pop(DIGEST))
  except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
    raise UserError(f"{path} is no readable .npz of Inception weights; {_cure()}") from error
  if npz.arrays_digest(arrays) != digest:
    raise UserError(f"{path} is damaged: its arrays do not have the SHA-256 {digest}; {_cure()}")
  return arrays, source


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
