"""Paths from users, the user's cache, atomic files and locks."""

import contextlib
import errno
import fcntl
import functools
import json
import os
import re
import secrets
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from diffusion_jax.core.printing import printable as printable
from diffusion_jax.types import UserError

SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|(gs|s3|az|hdfs):")
BUCKET = re.compile(r"(gs|s3|az)://")
"""Addresses that are served, through `etils.epath`."""

PATTERN = set("[]*?\\")
"""Characters that Orbax treats as a pattern when it looks for a checkpoint's files."""

NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL}
"""Errors of file systems without locks, such as Lustre and some NFS mounts."""


def user_path(text: str | os.PathLike[str]) -> Path:
  """Return a local path with ~ expanded.

  Raises:
    UserError: an address such as gs://bucket/run, or the home of an unknown user.
  """
  given = os.fspath(text)
  if mistyped := re.match(r"(gs|s3|az):/*", given) if not BUCKET.match(given) else None:
    raise UserError(f"{given}: write {mistyped[1]}://{given[mistyped.end() :]} for a bucket")
  if SCHEME.match(given):
    raise UserError(
      f"{given}: addresses are not supported; give a path on this machine, e.g. where a bucket "
      "is mounted"
    )
  try:
    return Path(given).expanduser()
  except RuntimeError as error:
    raise UserError(f"{given}: that home folder is not known; give a path without ~") from error


def bucket_path(text: str | os.PathLike[str]) -> Path:
  """Return a local path as `user_path` does, or the copy of a file or folder in a bucket.

  Raises:
    UserError: as `user_path`, or a bucket that cannot be used on this machine.
  """
  given = os.fspath(text)
  if not BUCKET.match(given):
    return user_path(given)
  from diffusion_jax.core import buckets  # local paths do without it

  return buckets.copy_of_bucket(given)


def path_text(text: str) -> str:
  """Return a flag's text as it is, if `bucket_path` takes it: a path, or a word in its place."""
  bucket_path(text)
  return text


def flag_path(flag: str, read_path: Callable[[str], Any] = user_path) -> Callable[[str], Any]:
  """Return the parser of a flag's path: as `read_path`, but an empty text is an error.

  Raises:
    UserError: from the parser, if the text is empty, as with an unset shell variable.
  """

  def read(text: str) -> Any:
    if not text:
      raise UserError(f"{flag}= is empty; give a path or leave it out")
    return read_path(text)

  return read


def run_folder(text: str, flag: str = "") -> Path:
  """Return the folder of a run.

  Args:
    text: the folder's path.
    flag: flag that named it, for messages; empty: the argument `workdir`.

  Raises:
    UserError: the text is empty (e.g. an unset shell variable), an address, or a path whose
      checkpoints could not be read again.
  """
  what = f"{flag}={text}" if flag else f"`workdir={text}`"
  if not text:
    raise UserError(f"{what} is empty; give a folder or leave it out")
  path = bucket_path(text)
  strange = sorted(PATTERN & set(f"{path.absolute()}{text}"))
  if strange:
    raise UserError(
      f"{what}: checkpoints below a folder with {' '.join(strange)} in its path cannot be "
      "read again; choose another folder"
    )
  return path


def make_writable(folder: Path, what: str, advice: str = "choose another") -> None:
  """Create a folder if it is missing, and test that a file can be written into it.

  Args:
    folder: folder to check.
    what: flag with its value, for the message: "--out=a.npz".
    advice: next action for the user.

  Raises:
    UserError: the folder cannot be created or written.
  """
  try:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
      pass
  except OSError as error:
    raise UserError(f"{what} cannot be written ({error.strerror}); {advice}") from error
  _check_bucket(folder)


def _check_bucket(folder: Path) -> None:
  from diffusion_jax.core import buckets

  buckets.check_bucket(folder)


def check_file(path: Path, flag: str = "--out") -> None:
  """Raise an error if a file could not be written, before there is anything to write.

  Raises:
    UserError: the path is a folder, or its folder cannot be created or written.
  """
  if path.is_dir():
    raise UserError(f"{flag}={path} cannot be written (it is a folder); choose another")
  make_writable(path.parent, f"{flag}={path}")


def check_own_folder(folder: Path, what: str) -> None:
  """Raise an error if a link or a file is in the place of a program's own folder.

  Args:
    folder: folder that exists or is to be created.
    what: flag with its value, for the message.

  Raises:
    UserError: the path is a link or a file, or the name is too long.
  """
  try:
    is_free = not os.path.lexists(folder) or stat.S_ISDIR(folder.lstat().st_mode)
  except OSError as error:
    raise UserError(f"{what} cannot be written ({error.strerror}); choose another") from error
  if not is_free:
    raise UserError(f"{what}: {folder} is in the way; delete it")


def free_name(path: Path) -> Path:
  """Return the first of path.old1, path.old2, ... that does not exist."""
  i = 1
  while os.path.lexists(candidate := path.with_name(f"{path.name}.old{i}")):
    i += 1
  return candidate


def home() -> Path:
  """Return the user's home, or a temporary folder for a user without a home."""
  try:
    return Path.home()
  except RuntimeError:  # no HOME and no user entry, as in some containers
    return _of_temporary_files()


def cache_folder() -> Path:
  """Return this package's folder in the user's cache, or a temporary folder instead.

  The cache is $XDG_CACHE_HOME or ~/.cache. If neither can be written, the temporary folder is
  announced once on stderr.
  """
  folder = Path(os.environ.get("XDG_CACHE_HOME") or home() / ".cache").expanduser()
  folder /= "diffusion_jax"
  return folder if _can_be_written(folder) else _of_temporary_files()


def _can_be_written(folder: Path) -> bool:
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError:
    return False
  return os.access(folder, os.W_OK | os.X_OK)


@functools.cache
def _of_temporary_files() -> Path:
  folder = Path(tempfile.gettempdir()) / f"diffusion_jax-{os.getuid()}"
  try:
    folder.mkdir(mode=0o700, exist_ok=True)
    is_ours = folder.stat().st_uid == os.getuid() and not folder.is_symlink()
  except OSError:
    is_ours = False
  if not is_ours:  # a folder of another user under our name
    folder = Path(tempfile.mkdtemp(prefix="diffusion_jax-"))
  print(f"the user's cache cannot be written; {folder} is used instead (set XDG_CACHE_HOME)",
        file=sys.stderr)  # fmt: skip
  return folder


@contextlib.contextmanager
def naming(path: os.PathLike[str]) -> Iterator[None]:
  """Add the file's name to errors of writing it, because an open file's errors lack it."""
  try:
    yield
  except OSError as error:
    if error.filename is None and error.errno is not None:
      error.filename = str(path)
    raise


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
  """Open a new file for writing that replaces `path` if the block ends without an error.

  Until then the old file stays as it is. The new file is next to it. Its name is unpredictable and
  must not exist yet, so that nothing is written through a link that another user has put there.

  Raises:
    OSError: the folder cannot be written, or the disk is full.
  """
  part = path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}.part")
  handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
  with unfinished(part):
    with naming(path), os.fdopen(handle, "wb") as file:
      yield file
    os.replace(part, path)


_unfinished: set[Path] = set()


@contextlib.contextmanager
def unfinished(part: Path) -> Iterator[None]:
  """Remove a file or folder if the block does not finish, also if Ctrl-C ends the process."""
  _unfinished.add(part)
  try:
    yield
  except BaseException:
    _remove(part)
    raise
  finally:
    _unfinished.discard(part)


def remove_unfinished() -> None:
  """Remove the files of active `unfinished` blocks before the process ends abruptly."""
  for part in list(_unfinished):
    _remove(part)


def _remove(part: Path) -> None:
  with contextlib.suppress(OSError):
    shutil.rmtree(part) if part.is_dir() and not part.is_symlink() else part.unlink()


def write_whole(path: Path, content: str | bytes) -> None:
  """Write a file in one move: readers see the old content or the new, never a part of it."""
  with atomic_write(path) as file:
    file.write(content.encode() if isinstance(content, str) else content)


def open_own(path: Path) -> Any:
  """Open a text file of this package for reading and appending, but never through a link.

  Raises:
    UserError: the file is a link.
    OSError: the file cannot be opened.
  """
  try:
    return open(path, "a+", opener=lambda name, how: os.open(name, how | os.O_NOFOLLOW, 0o666))
  except OSError as error:
    if error.errno != errno.ELOOP:
      raise
    raise UserError(f"{path} is a link, and links are not followed here; delete it") from error


def try_lock(file: Any) -> Literal["taken", "held", "not supported"]:
  """Try to lock an open file without waiting; the lock ends with the process.

  Args:
    file: file object or descriptor.

  Returns:
    "taken"; "held" by another process; or "not supported" by the file system.

  Raises:
    OSError: any other failure.
  """
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError as error:
    if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES):
      return "held"
    if error.errno in NO_LOCKS:
      return "not supported"
    raise
  return "taken"


def lock_with_others(file: Any) -> bool:
  """Lock an open file until it is closed, as others may too; return whether nobody else has."""
  outcome = try_lock(file)
  if outcome != "not supported":
    fcntl.flock(file, fcntl.LOCK_SH)
  return outcome != "held"


@contextlib.contextmanager
def locked(
  path: Path, patience_sec: float = 0.0
) -> Iterator[Literal["taken", "held", "not supported"]]:
  """Hold a lock on a file of this package that exists only during the lock.

  The file is deleted before the lock ends. A process that opened it earlier and locks it later has
  a deleted file, so it opens the file again.

  Args:
    path: path of the file; its folder must exist.
    patience_sec: seconds to wait for a lock that is held.

  Yields:
    The outcome, see `try_lock`; with "held" the block has no lock.

  Raises:
    UserError: the file is a link.
    OSError: the file cannot be created or written.
  """
  deadline = time.monotonic() + patience_sec
  while True:
    with open_own(path) as file:
      outcome = try_lock(file)
      if outcome == "held":
        if time.monotonic() >= deadline:
          yield outcome
          return
        time.sleep(0.5)
      elif outcome == "not supported" or _is_at(path, file):
        with unfinished(path):
          yield outcome
          _remove(path)
        return


def _is_at(path: Path, file: Any) -> bool:
  try:
    return os.path.samestat(path.lstat(), os.fstat(file.fileno()))
  except FileNotFoundError:
    return False


def write_png(path: Path, image: UInt8[np.ndarray, "H W C"]) -> None:
  """Write a grey or colour image in one move: no reader ever sees a part of it."""
  path.parent.mkdir(parents=True, exist_ok=True)
  picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image[:, :, :3])
  with atomic_write(path) as file:
    picture.save(file, format="PNG")


def read_png(path: Path) -> UInt8[np.ndarray, "H W C"]:
  """Return the pixels of a grey or colour picture.

  Raises:
    OSError: it cannot be read, or is no picture.
  """
  with Image.open(path) as picture:
    pixels = np.asarray(picture.convert("L" if picture.mode == "L" else "RGB"))
  return pixels[..., None] if pixels.ndim == 2 else pixels


def write_json(path: Path, value: Any) -> None:
  """Write JSON in one move: the old file stays until the new one is complete."""
  write_whole(path, json.dumps(value, indent=2, allow_nan=False) + "\n")
