"""Whole files of a bucket, through `etils.epath`: list, read, write and delete them.

Nothing else is asked of a bucket: not all kinds can append, rename or lock.
"""

import contextlib
import os
import re
import shutil
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

STEP_FILE = re.compile(
  r"((?:.*/)?\d+)/(?:(?:state|meta)/|_CHECKPOINT_METADATA$|commit_success\.txt$)"
)
"""File of a checkpoint; the group is the folder of the step."""

LAST = "/meta/metadata"
"""End of the name of a checkpoint's file that is uploaded last, and deleted first."""

Sign = tuple[int, int]
"""Size of a file, and the time of its last change; the content may differ if they do."""


def remote(url: str) -> Any:
  """Return the `epath.Path` of an address."""
  from etils import epath  # paths of this machine do without it

  return epath.Path(url)


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
    reason = "its library is missing: pip install gcsfs" if lacks else storage.reason(error)
    raise UserError(
      f"{what} ({reason}); repair that, or give a path on this machine, e.g. where "
      "the bucket is mounted"
    ) from error


def list_files(url: str) -> dict[str, Sign]:
  """Return the files at an address: by their path below it, or "" for a file itself.

  Hidden files and checkpoints whose upload has not ended are left out.
  """
  top = remote(url)
  _forget_listing(top)
  if not top.is_dir():
    return {"": sign_of(top)} if top.exists() else {}
  found: dict[str, Sign] = {}
  todo = [(top, "")]
  while todo:
    inside = [
      (child, f"{above}{child.name}")
      for folder, above in todo
      for child in folder.iterdir()
      if child != folder and not child.name.startswith(".")
    ]
    known = at_once(lambda entry: entry[0].stat(), inside)
    both = list(zip(inside, known, strict=True))
    todo = [(child, f"{name}/") for (child, name), about in both if about.is_directory]
    found |= {name: _sign(about) for (_, name), about in both if not about.is_directory}
  return without_parts(found)


def at_once(function: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
  """Yield a function's values for all items, in their order; they are computed in threads."""
  items = list(items)
  with ThreadPoolExecutor(THREADS) as pool:
    try:
      pending = [pool.submit(function, item) for item in items]
    except RuntimeError:  # Python ends, and starts no more threads
      yield from map(function, items)
      return
    for one in pending:
      yield one.result()


def without_parts(found: Mapping[str, T]) -> dict[str, T]:
  """Return the entries of files, without those of checkpoints whose last file is missing."""
  steps = {name: STEP_FILE.match(name) for name in found}
  return {n: x for n, x in found.items() if (s := steps[n]) is None or f"{s[1]}{LAST}" in found}


def is_last(name: str) -> bool:
  """Return whether a file is that of its checkpoint by which the checkpoint counts as whole."""
  return name.endswith(LAST) and STEP_FILE.match(name) is not None


def sign_of(path: Any) -> Sign:
  """Return the size and time of a file in a bucket."""
  return _sign(path.stat())


def _sign(about: Any) -> Sign:
  return int(about.length or 0), int(about.mtime or 0)


def _forget_listing(path: Any) -> None:
  """Make a file system that remembers its listings look again."""
  with contextlib.suppress(Exception):
    path._backend.fs(os.fspath(path)).invalidate_cache()


def read_file(url: str) -> bytes | None:
  """Return the content of a file, None if it is not there."""
  path = remote(url)
  _forget_listing(path)
  if not path.exists():
    return None
  with path.open("rb") as file:
    return file.read()


def write_file(url: str, content: bytes) -> None:
  """Write a whole file."""
  with remote(url).open("wb") as file:
    file.write(content)


def fetch_file(url: str, target: Path) -> Sign:
  """Download a file; return the size and time of the new one."""
  target.parent.mkdir(parents=True, exist_ok=True)
  with files.atomic_write(target) as file, remote(url).open("rb") as source:
    shutil.copyfileobj(source, file, 1 << 24)
  about = target.stat()
  return about.st_size, about.st_mtime_ns


def send_file(source: Path, url: str) -> Sign | None:
  """Upload a file; return its size and time in the bucket, None if it was deleted meanwhile."""
  path = remote(url)
  try:
    content = source.open("rb")
  except FileNotFoundError:
    return None
  with content, path.open("wb") as file:
    shutil.copyfileobj(content, file, 1 << 24)
  return sign_of(path)


def delete_file(url: str) -> None:
  """Delete a file, if it is there."""
  with contextlib.suppress(FileNotFoundError):
    remote(url).unlink()
