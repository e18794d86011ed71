"""Whole files of a bucket, through `etils.epath`: list, read, write and delete them.

Nothing else is asked of a bucket: not all kinds can append, rename or lock.
"""

import contextlib
import datetime
import functools
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from diffusion_jax.core import files, storage
from diffusion_jax.types import UserError

S = TypeVar("S")
T = TypeVar("T")

THREADS = 8
"""Number of files that are asked for or transferred at once."""

LIBRARIES = {"gs": "gcsfs", "s3": "s3fs", "az": "adlfs"}
"""Kinds of addresses, and the library that `etils.epath` needs for each."""

PIECE = 1 << 24
"""Number of bytes that are read at once."""

MARK = "commit_success.txt"
"""File by which a checkpoint in a bucket counts as whole; Orbax writes it there too."""

STEP_FILE = re.compile(rf"((?:.*/)?\d+)/(?:(?:state|meta)/|_CHECKPOINT_METADATA$|{MARK}$)")
"""File of a checkpoint; the group is the folder of the step."""

PART_MARK = re.compile(rf"(?:.*/)?\d+/(?:state|meta)/{MARK}$")
"""Mark of a part of a checkpoint, which Orbax reads before that part."""

Sign = tuple[int, str]
"""Size and version of a file in a bucket; the content may differ if they do."""

Here = tuple[int, int]
"""Size of a file on this machine, and the time of its last change."""


def remote(url: str) -> Any:
  """Return the `epath.Path` of an address."""
  from etils import epath  # paths of this machine do without it

  _prepare_libraries()
  return epath.Path(url)


@functools.cache
def _prepare_libraries() -> None:
  """Make the libraries look at the bucket each time, and print nothing about their retries."""
  from fsspec.config import conf

  for library in ("gcs", "gs", "s3", "az", "abfs"):
    conf.setdefault(library, {})["use_listings_cache"] = False
  logging.getLogger("gcsfs").setLevel(logging.CRITICAL)


def check_address(text: str) -> None:
  """Raise an error for an address that cannot be served.

  Raises:
    UserError: the address is of another kind, or names no folder in a bucket.
  """
  if not files.BUCKET.match(text):
    files.user_path(text)
  parts = text.rstrip("/").split("/")
  if len(parts) < 4 or not all(parts[2:]) or {".", ".."} & set(parts):
    raise UserError(f"{text}: give the path of a file or folder in a bucket, as gs://bucket/run")


def _system(path: Any) -> Any:
  """Return the file system of fsspec behind a path, None if TensorFlow serves it."""
  backend = path._backend
  return backend.fs(os.fspath(path)) if hasattr(backend, "fs") else None


@contextlib.contextmanager
def bucket_errors(what: str) -> Iterator[None]:
  """Give the reason in one line if a bucket cannot be used, as without the network.

  Args:
    what: the address and what cannot be done with it.

  Raises:
    UserError: the block failed.
  """
  try:
    yield
  except UserError:
    raise
  except Exception as error:
    lacks = any(isinstance(one, ImportError) for one in storage.chain(error))
    library = LIBRARIES.get(what.partition("://")[0], "gcsfs")
    reason = f"its library is missing: pip install {library}" if lacks else explain(error)
    raise UserError(
      f"{what} ({reason}); repair that, or give a path on this machine, e.g. where "
      "the bucket is mounted"
    ) from error


def explain(error: BaseException) -> str:
  """Return the reason why a bucket could not be used, in one line: the end of a long one."""
  *_, first = storage.chain(error)
  text = re.sub(r"\s+", " ", re.sub(r"\[[a-z_ ]+=.*", "", str(first), flags=re.S)).strip()
  if isinstance(first, FileNotFoundError) and first.errno is None:  # its text is an address alone
    text = f"no such bucket or file: {text}"
  return f"...{text[-200:]}" if len(text) > 200 else text or type(first).__name__


def list_files(url: str) -> dict[str, Sign]:
  """Return the files at an address: by their path below it, or "" for a file itself.

  Hidden files, checkpoints whose upload has not ended, and marks of their parts are left out.
  """
  top = remote(url)
  if not top.is_dir():
    return {"": sign_of(top)} if top.exists() else {}
  system = _system(top)
  found = _walk(top) if system is None else _find(system, url)
  shown = {n: s for n, s in found.items() if not re.search(r"(^|/)\.", n)}
  return without_parts({n: s for n, s in shown.items() if not PART_MARK.match(n)})


def _find(system: Any, url: str) -> dict[str, Sign]:
  """Return the files below an address by the listing of fsspec, one request for many files."""
  above = f"{system._strip_protocol(url)}/"
  return {
    name.removeprefix(above): _sign(about)
    for name, about in system.find(url, detail=True).items()
    if name.startswith(above) and about.get("type") != "directory" and not name.endswith("/")
  }


def _walk(top: Any) -> dict[str, Sign]:
  """Return the files below a path by asking for each."""
  found: dict[str, Sign] = {}
  todo = [(top, "")]
  while todo:
    inside = [
      (child, f"{above}{child.name}")
      for folder, above in todo
      for child in folder.iterdir()
      if child != folder
    ]
    known = at_once(lambda entry: entry[0].stat(), inside)
    both = list(zip(inside, known, strict=True))
    todo = [(child, f"{name}/") for (child, name), about in both if about.is_directory]
    found |= {n: _sign_by_time(a) for (_, n), a in both if not a.is_directory}
  return found


def at_once(function: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
  """Yield a function's values for all items, in their order; they are computed in threads.

  After an error, what has not begun is left out.
  """
  items = list(items)
  with ThreadPoolExecutor(THREADS) as pool:
    try:
      pending = [pool.submit(function, item) for item in items]
    except RuntimeError:  # Python ends, and starts no more threads
      yield from map(function, items)
      return
    try:
      for one in pending:
        yield one.result()
    finally:
      for one in pending:
        one.cancel()


def without_parts(found: Mapping[str, T]) -> dict[str, T]:
  """Return the entries of files, without those of checkpoints whose mark is missing."""
  steps = {name: STEP_FILE.match(name) for name in found}
  return {n: x for n, x in found.items() if (s := steps[n]) is None or f"{s[1]}/{MARK}" in found}


def is_mark(name: str) -> bool:
  """Return whether a file is the one by which its checkpoint counts as whole."""
  return name.endswith(f"/{MARK}") and STEP_FILE.match(name) is not None


def sign_of(path: Any) -> Sign:
  """Return the size and version of a file in a bucket."""
  system = _system(path)
  return _sign_by_time(path.stat()) if system is None else _sign(system.info(os.fspath(path)))


def _sign(about: Mapping[str, Any]) -> Sign:
  """Return the sign of a file that fsspec describes; without any version it is empty."""
  names = ("generation", "etag", "ETag", "mtime", "LastModified", "last_modified")
  version = next((about[name] for name in names if about.get(name)), "")
  return int(about.get("size") or 0), str(version)


def _sign_by_time(about: Any) -> Sign:
  return int(about.length or 0), str(about.mtime or "")


def move_folder(source: Any, target: Any) -> None:
  """Move a folder of a bucket by copying its files, and then deleting them."""
  system = _system(source)
  if system is None:
    source.rename(target)
  else:
    system.mv(os.fspath(source), os.fspath(target), recursive=True)


def age_sec(url: str) -> float | None:
  """Return the seconds since a file was written, None if it is not there or has no time."""
  path = remote(url)
  system = _system(path)
  try:
    if system is None:
      written = path.stat().mtime
    else:
      about = system.info(os.fspath(path))
      times = (about.get(n) for n in ("mtime", "LastModified", "last_modified"))
      written = next((t for t in times if t), None)
  except FileNotFoundError:
    return None
  if isinstance(written, datetime.datetime):
    written = written.timestamp()
  return time.time() - written if written else None


def read_file(url: str) -> bytes | None:
  """Return the content of a file, None if it is not there."""
  try:
    with remote(url).open("rb") as file:
      return file.read()
  except FileNotFoundError:
    return None


def folder_names(url: str) -> list[str]:
  """Return the names of the folders in a folder; none if it is not there.

  Raises:
    UserError: the bucket cannot be used on this machine.
  """
  with bucket_errors(f"{url} cannot be read"):
    top = remote(url.rstrip("/"))
    found = list(top.iterdir()) if top.is_dir() else []
    return sorted(path.name for path in found if path != top and path.is_dir())


def begins(url: str, path: Path) -> bool:
  """Return whether a file on this machine begins with the content of one in a bucket."""
  with remote(url).open("rb") as theirs, path.open("rb") as ours:
    while piece := theirs.read(PIECE):
      if ours.read(len(piece)) != piece:
        return False
  return True


def write_file(url: str, content: bytes) -> None:
  """Write a whole file."""
  with remote(url).open("wb") as file:
    file.write(content)


def fetch_file(url: str, target: Path, count: Callable[[int], None] = lambda num: None) -> Here:
  """Download a file; return the size and time of the new one.

  Args:
    url: its address.
    target: the file to write.
    count: called with the number of bytes of each piece that has arrived.
  """
  target.parent.mkdir(parents=True, exist_ok=True)
  with files.atomic_write(target) as file, remote(url).open("rb") as source:
    while piece := source.read(PIECE):
      file.write(piece)
      count(len(piece))
  about = target.stat()
  return about.st_size, about.st_mtime_ns


def send_file(source: Path, url: str) -> Sign | None:
  """Upload a file; return its sign in the bucket, None if it was deleted meanwhile."""
  path = remote(url)
  system = _system(path)
  try:
    if system is not None:
      system.put_file(str(source), os.fspath(path))
      return sign_of(path)
    content = source.open("rb")
  except FileNotFoundError:
    if source.exists():
      raise
    return None
  with content, path.open("wb") as file:
    shutil.copyfileobj(content, file, PIECE)
  return sign_of(path)


def send_mark(url: str) -> Sign:
  """Write the mark of a checkpoint, after those of its parts; return its sign in the bucket."""
  folder = url.removesuffix(f"/{MARK}")
  for place in (f"{folder}/state/{MARK}", f"{folder}/meta/{MARK}", url):
    write_file(place, b"whole\n")
  return sign_of(remote(url))


def delete_mark(url: str) -> None:
  """Delete the mark of a checkpoint, before those of its parts."""
  folder = url.removesuffix(f"/{MARK}")
  for place in (url, f"{folder}/state/{MARK}", f"{folder}/meta/{MARK}"):
    delete_file(place)


def delete_file(url: str) -> None:
  """Delete a file, if it is there."""
  path = remote(url)
  system = _system(path)
  with contextlib.suppress(FileNotFoundError):
    path.unlink() if system is None else system.rm_file(os.fspath(path))
