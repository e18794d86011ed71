"""Runs and files in a bucket, such as gs://bucket/run: each has a copy on this machine.

A bucket takes and gives whole files; it appends to none, renames none and locks none. Programs
therefore use the copy, an ordinary folder in the user's cache. It gets what the bucket has when a
program begins; what the program changes is uploaded every half minute and at the end. An upload
that a crash prevented is made up for when the next program uses the copy.

In a job of several processes only process 0 uploads, and checkpoints have no copy: each process
writes its part of them into the bucket and reads it there, which only gs:// allows.
"""

import atexit
import contextlib
import dataclasses
import hashlib
import secrets
import sys
import threading
from pathlib import Path
from typing import Any

from etils import epath

from diffusion_jax.core import bucket_files, files
from diffusion_jax.core.bucket_copy import Copy, check_versions, download, upload
from diffusion_jax.core.bucket_files import bucket_errors
from diffusion_jax.types import UserError

EVERY_SEC = 30.0
"""Seconds between two uploads."""

DIRECT = "gs://"
"""Addresses at which Orbax itself saves and reads checkpoints."""


class _Uploads:
  """The copies that this process uses, and the thread that uploads their changes.

  Attributes:
    copies: the copies by their addresses.
    alone: addresses of the copies that no other process used at the beginning.
    is_of_many: true in a job of several processes, or if this may become one.
    is_reader: true for the processes of a job that upload nothing.
  """

  def __init__(self):
    self.copies: dict[str, Copy] = {}
    self.alone: set[str] = set()
    self.is_of_many = self.is_reader = False
    self.locks: list[Any] = []  # open files; their locks say that a process uses the copies
    self.told: set[str] = set()
    self._stop, self._thread = threading.Event(), None

  def start(self) -> None:
    if self._thread is None:
      self._stop.clear()
      self._thread = threading.Thread(target=self._run, daemon=True)
      self._thread.start()
      atexit.register(self.end)

  def _run(self) -> None:
    while not self._stop.wait(EVERY_SEC):
      upload_changes()

  def end(self) -> str | None:
    if self._thread is None:
      return None
    self._stop.set()
    self._thread.join()
    self._thread = None
    atexit.unregister(self.end)
    return upload_changes()


_uploads = _Uploads()


def copy_of_bucket(url: str) -> Path:
  """Return the copy of a file or folder in a bucket, with what the bucket has now.

  Raises:
    UserError: the address cannot be used on this machine.
  """
  bucket_files.check_address(url)
  url = url.rstrip("/")
  if url in _uploads.copies:
    _uploads.start()
    return _uploads.copies[url].path
  digest = hashlib.sha256(url.encode()).hexdigest()[:16]
  home = files.cache_folder() / "buckets" / digest
  copy = Copy(url, home, not (_uploads.is_of_many and url.startswith(DIRECT)))
  copy.root.mkdir(parents=True, exist_ok=True)
  with contextlib.ExitStack() as unused:
    lock = unused.enter_context(files.open_own(copy.home / "in_use"))
    is_alone = files.lock_with_others(lock)
    with copy.transferring(), bucket_errors(f"{url} cannot be used here"):
      download(copy, is_alone)
    unused.pop_all()
  _uploads.copies[url] = copy
  _uploads.alone |= {url} if is_alone else set()
  _uploads.locks.append(lock)
  _uploads.start()
  return copy.path


def find_copy(path: Path) -> Copy | None:
  """Return the copy that a path lies in, None for any other path."""
  if not _uploads.copies:
    return None
  place = path.absolute()
  return next((c for c in _uploads.copies.values() if place.is_relative_to(c.root)), None)


def refresh_copy(path: Path) -> None:
  """Download what others have changed in the bucket; nothing for a path that is no copy."""
  if (copy := find_copy(path)) is not None:
    with copy.transferring(), bucket_errors(f"{copy.url} cannot be read"):
      download(copy, is_alone=False)


def expect_job() -> None:
  """Copy no checkpoints: this process may be one of several, see `joined_job`."""
  _uploads.is_of_many = True


def joined_job(index: int, count: int) -> None:
  """Act as one process of a job, now that it is known; call it before files are written.

  Args:
    index: number of this process.
    count: number of processes; with one, checkpoints are copied after all.
  """
  _uploads.is_of_many, _uploads.is_reader = count > 1, index > 0
  for url, copy in _uploads.copies.items():
    if count == 1 and not copy.has_checkpoints:
      _uploads.copies[url] = copy = dataclasses.replace(copy, has_checkpoints=True)
      with copy.transferring(), bucket_errors(f"{url} cannot be read"):
        download(copy, url in _uploads.alone)


def checkpoint_folder(workdir: Path, name: str = "checkpoints") -> Path | epath.Path:
  """Return the folder in which Orbax saves and reads checkpoints of a run.

  Args:
    workdir: the run's folder.
    name: folder of the checkpoints in it.
  """
  copy = find_copy(workdir)
  return workdir / name if copy is None or copy.has_checkpoints else shared_place(workdir) / name


def shared_place(folder: Path) -> Path | epath.Path:
  """Return a folder that all processes of a job can use: of a copy, the one in the bucket.

  Raises:
    UserError: there is none.
  """
  if (copy := find_copy(folder)) is None:
    return folder
  if copy.has_checkpoints:
    raise UserError(
      f"{copy.url}: a job of several processes saves only to gs:// or into a folder that all hosts "
      "share, such as a mounted bucket"
    )
  return bucket_files.remote(with_addresses(str(folder.absolute())))


def with_addresses(text: str) -> str:
  """Return a text in which the paths of copies are replaced by the addresses in the bucket."""
  for copy in _uploads.copies.values():
    text = text.replace(f"{copy.root}/", f"{copy.above}/")
  return text


def check_bucket(path: Path) -> None:
  """Raise an error if a path is a copy whose bucket cannot be written.

  Raises:
    UserError: it cannot be written, or does not tell when its files were changed.
  """
  if (copy := find_copy(path)) is None:
    return
  probe = f"{copy.above}/.probe_{secrets.token_hex(8)}"
  with bucket_errors(f"{copy.url} cannot be written"):
    bucket_files.write_file(probe, b"1")
    sign = bucket_files.sign_of(bucket_files.remote(probe))
    bucket_files.delete_file(probe)
  check_versions(copy, [sign])


def upload_changes() -> str | None:
  """Upload everything that has changed in the copies; return the line of a failure, or None."""
  failures = []
  for copy in [] if _uploads.is_reader else list(_uploads.copies.values()):
    try:
      with copy.transferring():
        upload(copy)
      _uploads.told.discard(copy.url)
    except Exception as error:
      failures.append(
        f"{copy.url} cannot be written ({bucket_files.explain(error)}); nothing is lost: the files "
        f"are in {copy.home}, and the same command uploads them"
      )
      if copy.url not in _uploads.told:
        _uploads.told.add(copy.url)
        print(failures[-1], file=sys.stderr, flush=True)
  return failures[0] if failures else None


def end_uploads() -> str | None:
  """Upload the last changes before a program ends; return the line of a failure, or None."""
  return _uploads.end()


def forget_copies() -> None:
  """Upload the last changes and forget all copies, as the end of a process does."""
  _uploads.end()
  _uploads.copies.clear()
  _uploads.alone.clear()
  _uploads.is_of_many = _uploads.is_reader = False
  while _uploads.locks:
    _uploads.locks.pop().close()
