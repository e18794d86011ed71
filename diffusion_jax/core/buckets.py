"""Runs and files in a bucket, such as gs://bucket/run: each has a copy on this machine.

A bucket takes and gives whole files; it appends to none, renames none and locks none. Programs
therefore use the copy, an ordinary folder in the user's cache. It gets what the bucket has when a
program begins; what the program changes is uploaded every half minute and at the end. An upload
that a crash prevented is made up for when the next program uses the copy.
"""

import atexit
import contextlib
import dataclasses
import hashlib
import json
import os
import re
import secrets
import shutil
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from diffusion_jax.core import bucket_files, files, progress, storage
from diffusion_jax.core.bucket_files import Here, Sign, bucket_errors, is_mark
from diffusion_jax.types import UserError

EVERY_SEC = 30.0
"""Seconds between two uploads."""

PASSING = re.compile(r"^\.|\.orbax-checkpoint-tmp")
"""Names of what is not uploaded: hidden files (locks, parts) and unfinished checkpoints."""

Known = dict[str, tuple[Here, Sign]]
"""File -> its signs here and in the bucket when both had the same content."""


@dataclasses.dataclass(frozen=True)
class Copy:
  """The copy of one file or folder of a bucket.

  Attributes:
    url: its address, e.g. gs://bucket/runs/a.
    home: folder of the copy and of what is known about it.
  """

  url: str
  home: Path

  @property
  def above(self) -> str:
    """Address of the folder above."""
    return self.url.rpartition("/")[0]

  @property
  def root(self) -> Path:
    """Folder in the place of the folder above; it holds only the copy and what is made beside."""
    return self.home / "files"

  @property
  def path(self) -> Path:
    """The copy itself."""
    return self.root / self.url.rpartition("/")[2]

  def list_remote(self) -> dict[str, Sign]:
    """Return the files of the bucket, by their paths below the folder above."""
    found = bucket_files.list_files(self.url)
    return {f"{self.path.name}/{name}".rstrip("/"): sign for name, sign in found.items()}

  def list_here(self) -> dict[str, Here]:
    """Return the files of the copy, by their paths below the folder above.

    A checkpoint here has no mark, because it was renamed when it was whole; the entry of its mark
    stands for the one in the bucket.
    """
    found: dict[str, Here] = {}
    for folder, folders, names in os.walk(self.root):
      folders[:] = [name for name in folders if not PASSING.search(name)]
      for path in (Path(folder, name) for name in names if not PASSING.search(name)):
        with contextlib.suppress(FileNotFoundError):
          about = path.stat()
          found[path.relative_to(self.root).as_posix()] = (about.st_size, about.st_mtime_ns)
    whole = [name for name in found if name.endswith("/meta/metadata")]
    return found | dict.fromkeys(_marks_of(whole), (0, 0))

  def known(self) -> Known:
    """Return what was the same here and in the bucket after the last transfer."""
    try:
      stored = json.loads((self.home / "known.json").read_text())
    except (OSError, ValueError):
      return {}
    return {name: (tuple(here), tuple(there)) for name, (here, there) in stored.items()}

  def store_known(self, known: Known) -> None:
    """Remember what is the same here and in the bucket."""
    files.write_json(self.home / "known.json", known)

  def transferring(self) -> contextlib.AbstractContextManager[Any]:
    """Hold the lock of transfers: the processes of a machine transfer one after the other."""
    return files.locked(self.home / "transfer", patience_sec=3600.0)


class _Uploads:
  """The copies that this process uses, and the thread that uploads their changes."""

  def __init__(self):
    self.copies: dict[str, Copy] = {}
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
  url = url.rstrip("/")
  if url in _uploads.copies:
    _uploads.start()
    return _uploads.copies[url].path
  if not re.fullmatch(r"[a-z0-9]+://[^/]+(/[^/]+)+", url) or {".", ".."} & set(url.split("/")):
    raise UserError(f"{url}: give the path of a file or folder in a bucket, as gs://bucket/run")
  digest = hashlib.sha256(url.encode()).hexdigest()[:16]
  copy = Copy(url, files.cache_folder() / "buckets" / digest)
  copy.root.mkdir(parents=True, exist_ok=True)
  lock = files.open_own(copy.home / "in_use")
  is_alone = files.lock_with_others(lock)
  with copy.transferring(), bucket_errors(f"{url} cannot be used here"):
    _download(copy, is_alone)
  _uploads.copies[url] = copy
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
      _download(copy, is_alone=False)


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
  _check_times(copy, [sign])


def _check_times(copy: Copy, signs: Iterable[Sign]) -> None:
  if not all(version for _, version in signs):
    raise UserError(
      f"{copy.url}: a bucket of this kind does not tell whether a file was changed; give a path on "
      "this machine, e.g. where the bucket is mounted"
    )


def upload_changes() -> str | None:
  """Upload everything that has changed in the copies; return the line of a failure, or None."""
  failures = []
  for copy in list(_uploads.copies.values()):
    try:
      with copy.transferring():
        _upload(copy)
      _uploads.told.discard(copy.url)
    except Exception as error:
      failures.append(
        f"{copy.url} cannot be written ({bucket_files.explain(error)}); nothing is lost: the files are "
        f"in {copy.home}, and the same command uploads them"
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
  while _uploads.locks:
    _uploads.locks.pop().close()


def _download(copy: Copy, is_alone: bool) -> None:
  """Bring the copy to the content of the bucket, except for files that only changed here.

  Args:
    copy: copy whose lock of transfers the caller holds.
    is_alone: true if no other process uses the copy.
  """
  found = copy.list_remote()
  _check_times(copy, found.values())
  if is_alone:
    _delete_unfinished(copy)
  # A checkpoint that was uploaded in part is not known to the bucket: it must not be deleted here.
  known, here = bucket_files.without_parts(copy.known()), copy.list_here()
  if is_alone:  # the cache has lost what is missing: it was not deleted by a program
    known = {name: signs for name, signs in known.items() if name in here}
  there = {n for n in {*known, *found} if found.get(n) != (known[n][1] if n in known else None)}
  own = {n for n in {*known, *here} if here.get(n) != (known[n][0] if n in known else None)}
  if is_alone and there and own:
    aside = files.free_name(copy.root)
    copy.root.rename(aside)
    copy.root.mkdir()
    print(
      f"{copy.url} was changed elsewhere before changes made here were uploaded; these are kept in "
      f"{aside}",
      flush=True,
    )
    known, there, own = {}, set(found), set()
  wanted = sorted(name for name in there - own if name in found)
  _check_room(copy, sum(found[name][0] for name in wanted))
  known |= {name: ((0, 0), found[name]) for name in wanted if is_mark(name)}
  _fetch(copy, [name for name in wanted if not is_mark(name)], found, known)
  for name in there - own - {*found}:
    _delete_here(copy, name)
    known.pop(name, None)
  copy.store_known(known)
  (copy.home / "downloading.json").unlink(missing_ok=True)
  _reserve_names(copy)


def _delete_here(copy: Copy, name: str) -> None:
  """Delete a file and the folders that it leaves empty, which would look like checkpoints."""
  (copy.root / name).unlink(missing_ok=True)
  with contextlib.suppress(OSError):  # not empty
    for folder in Path(name).parents:
      (copy.root / folder).rmdir()


def _delete_unfinished(copy: Copy) -> None:
  """Delete the files of a download that was killed: they are no changes made here."""
  with contextlib.suppress(OSError, ValueError):
    for name in json.loads((copy.home / "downloading.json").read_text()):
      _delete_here(copy, name)
  copy.root.mkdir(exist_ok=True)


def _fetch(copy: Copy, wanted: list[str], found: dict[str, Sign], known: Known) -> None:
  if not wanted:
    return
  files.write_json(copy.home / "downloading.json", wanted)

  def fetch(name: str) -> Here:
    return bucket_files.fetch_file(f"{copy.above}/{name}", copy.root / name)

  with progress.phase(f"downloading {copy.url}", len(wanted), "files") as shown:
    for i, sign in enumerate(bucket_files.at_once(fetch, wanted)):
      known[wanted[i]] = (sign, found[wanted[i]])
      shown.set(i + 1)


def _check_room(copy: Copy, num_bytes: int) -> None:
  free = shutil.disk_usage(copy.home).free
  if num_bytes > free:
    raise UserError(
      f"{copy.url}: its copy needs {storage.size(num_bytes)}, and {copy.home} has "
      f"{storage.size(free)} left; free space there, or set XDG_CACHE_HOME to another disk"
    )


def _reserve_names(copy: Copy) -> None:
  """Make an empty folder for each run moved aside in the bucket: its name stays taken."""
  above = bucket_files.remote(copy.above)
  for other in above.iterdir() if above.is_dir() else ():
    if re.fullmatch(rf"{re.escape(copy.path.name)}\.old\d+", other.name):
      (copy.root / other.name).mkdir(exist_ok=True)


def _upload(copy: Copy) -> None:
  """Upload what has changed and delete what is gone; checkpoints are whole or not there."""
  known, here = copy.known(), copy.list_here()
  changed = [n for n in here if n not in known or here[n] != known[n][0]]
  gone = [n for n in known if n not in here]
  if not changed and not gone:
    return
  marks = _marks_of([*changed, *gone])  # a checkpoint is not whole while its files change
  changed = [n for n in changed if not is_mark(n)]
  gone = [n for n in gone if not is_mark(n)]
  steps_going = _marks_of(gone)

  def send(name: str) -> Sign | None:
    return bucket_files.send_file(copy.root / name, f"{copy.above}/{name}")

  try:
    for mark in sorted(marks & {*known}):
      bucket_files.delete_mark(f"{copy.above}/{mark}")
      del known[mark]
    for name, sign in zip(changed, bucket_files.at_once(send, changed), strict=True):
      if sign is not None:
        known[name] = (here[name], sign)
    for mark in sorted(marks & {*here} - steps_going):
      known[mark] = (here[mark], bucket_files.send_mark(f"{copy.above}/{mark}"))
    for name in gone:
      bucket_files.delete_file(f"{copy.above}/{name}")
      del known[name]
  finally:
    copy.store_known(known)


def _marks_of(names: Iterable[str]) -> set[str]:
  """Return the marks of the checkpoints that files belong to."""
  steps = (bucket_files.STEP_FILE.match(name) for name in names)
  return {f"{step[1]}/{bucket_files.MARK}" for step in steps if step is not None}
