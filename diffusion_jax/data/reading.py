"""Read picture files: their headers, their pixels, and one list of all unreadable ones."""

import contextlib
import functools
import hashlib
import io
import json
import os
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Generic, Literal, NamedTuple, TypeVar

from PIL import Image, UnidentifiedImageError
from PIL import __version__ as pillow_version

from diffusion_jax.core import files, progress
from diffusion_jax.core.files import printable
from diffusion_jax.data.archives import Member
from diffusion_jax.data.source import is_transparent, num_threads, orientation
from diffusion_jax.parallel import watchdog
from diffusion_jax.types import UserError

T = TypeVar("T")
Unreadable = Literal["refuse", "skip"]
"""Treatment of unreadable pictures."""

MAX_NAMED = 10
"""Number of pictures listed in a message; a file lists the others."""

CHUNK = 1024
TOLD_FROM = 10_000
"""Number of pictures above which a message announces a complete read, because it is slow."""


# Set once for all threads: Pillow's warnings either come back as errors or do not matter.
warnings.filterwarnings("ignore", module=r"PIL\..*")


class Broken(Exception):
  """A picture that cannot be read; the message gives the reason.

  Args:
    reason: the reason in words.
    by_system: True if the operating system refused access; the file may be intact.
  """

  def __init__(self, reason: str, by_system: bool = False):
    super().__init__(reason)
    self.by_system = by_system


@contextlib.contextmanager
def opened(file: str | Path | io.BytesIO | Member) -> Iterator[Image.Image]:
  """Open a picture of a folder, of an archive or in memory; at first only its header is read.

  Raises:
    Broken: for any error of Pillow, here or inside the block. For damaged files its decoders raise
      a dozen types of error.
  """
  try:
    with Image.open(io.BytesIO(file.read()) if isinstance(file, Member) else file) as image:
      yield image
  except (Broken, UserError, MemoryError):
    raise
  except UnidentifiedImageError as error:
    is_empty = isinstance(file, str) and not os.path.getsize(file)
    raise Broken("an empty file" if is_empty else "no picture of a known format") from error
  except Exception as error:
    refusal = getattr(error, "strerror", None)
    reason = refusal or str(error).partition("\n")[0] or type(error).__name__
    raise Broken(reason, by_system=refusal is not None) from error


class Header(NamedTuple):
  """Facts in the header of a picture, before its pixels are decoded.

  Attributes:
    height, width: size in pixels after turning it upright.
    is_grey: True if it has one channel.
    is_transparent: True if it has an alpha channel or a transparent colour.
    is_animated: True if it has several frames; only the first one is read.
  """

  height: int
  width: int
  is_grey: bool
  is_transparent: bool
  is_animated: bool

  @property
  def size(self) -> tuple[int, int]:
    return self.height, self.width


def file_content(file: str | Member) -> bytes:
  """Return the bytes of a picture's file.

  Raises:
    Broken: it cannot be read.
  """
  try:
    return file.read() if isinstance(file, Member) else Path(file).read_bytes()
  except OSError as error:
    raise Broken(error.strerror or str(error), by_system=True) from error
  except Exception as error:  # of a damaged archive
    raise Broken(str(error) or type(error).__name__) from error


def read_header(file: str | Path | io.BytesIO | Member) -> Header | Broken:
  """Return the header of a file, or the reason why it cannot be read."""
  try:
    with opened(file) as image:
      is_turned = orientation(image) >= 5  # by 90 degrees
      height, width = (image.width, image.height) if is_turned else (image.height, image.width)
      # the further pictures of an MPO are previews of its first
      animated = image.format != "MPO" and getattr(image, "is_animated", False)
      return Header(height, width, image.mode in ("L", "1"), is_transparent(image), animated)
  except Broken as error:
    return error


def read_headers(files: Sequence[str | Member]) -> list[Header | Broken]:
  """Return the headers of many files, in their order; those of unchanged files are read once."""
  return _in_threads(_header_once, files, "reading headers")


def _header_once(file: str | Member) -> Header | Broken:
  try:
    return _cached_header(file, _state(file))
  except Broken as error:
    return error


@functools.lru_cache(maxsize=1 << 17)
def _cached_header(file: str | Member, state: tuple[int, int, int]) -> Header:
  del state
  header = read_header(file)
  if isinstance(header, Broken):
    raise header  # an error is not cached
  return header


File = TypeVar("File")


def _in_threads(function: Callable[[File], T], files: Sequence[File], name: str) -> list[T]:
  """Apply a function to each file in threads, because storage may respond slowly."""
  results: list[T] = []
  shown = progress.phase(name, len(files), "files")
  with ThreadPoolExecutor(num_threads()) as pool, shown as phase:
    for first in range(0, len(files), CHUNK):
      results += pool.map(function, files[first : first + CHUNK])
      phase.set(len(results))
      watchdog.beat()
  return results


def header_notes(headers: Iterable[Header]) -> list[str]:
  """Return sentences on conversions of pictures when they are read."""
  headers, notes = list(headers), []
  if count := sum(h.is_transparent for h in headers):
    notes.append(f"{count:,} {_pictures(count)} with transparency, laid on white")
  if count := sum(h.is_animated for h in headers):
    notes.append(f"{count:,} {_pictures(count)} of several frames, of which the first is taken")
  return notes


def _pictures(count: int) -> str:
  return "picture" if count == 1 else "pictures"


class Reader(Generic[T]):
  """A reader of pictures by position; the error for a broken picture lists all broken ones.

  Args:
    num: number of pictures.
    load: position -> content; raises Broken. Called from several threads.
    name: position -> name for messages.
    where: flag that named the set, for messages, e.g. "`data.path=cats`".
    advice: how to treat unreadable pictures, for messages.
    beside: returns readers of other pictures of the same program, such as the other split, whose
      unreadable pictures are then in the same list.
    memory: file in the user's cache in which `remembered` recorded that all can be read; None if
      they were not checked.
  """

  def __init__(
    self,
    num: int,
    load: Callable[[int], T],
    name: Callable[[int], str],
    where: str,
    advice: str,
    beside: Callable[[], Sequence["Reader"]] = tuple,
    memory: Path | None = None,
  ):
    self._num, self._load, self._name = num, load, name
    self._where, self._advice, self._beside = where, advice, beside
    self.memory = memory
    self._lock, self._refusal, self._is_lasting = threading.Lock(), "", True

  def __call__(self, index: int) -> T:
    try:
      return self._load(index)
    except Broken as error:
      broken = {index: str(error)}
      raise (self._forget(broken) if self.memory else self.refuse(broken)) from error

  @property
  def num_pictures(self) -> int:
    """Number of pictures."""
    return self._num

  def load(self, index: int) -> T:
    """Return the content at a position; raise Broken for it alone."""
    return self._load(index)

  def _forget(self, broken: Mapping[int, str]) -> UserError:
    """Return the error for a picture that became unreadable, and delete the recorded check."""
    assert self.memory
    cure = "start the same command again, which checks all of them again"
    try:
      self.memory.unlink(missing_ok=True)
    except OSError:
      cure = f"delete {self.memory} and {cure}"
    return UserError(
      f"{self._where}: {', '.join(self.lines(broken))} could be read when the pictures were last "
      f"looked through, and now cannot; {cure}"
    )

  def refuse(self, broken: Mapping[int, str]) -> UserError:
    """Return the error that lists every unreadable picture, after reading all of them once.

    Args:
      broken: position -> reason, for the pictures already known.
    """
    with self._lock:  # several threads may find a broken picture at once
      if not self._refusal:
        lines, num_pictures = self.lines({**self.find_broken(), **broken}), self._num
        for other in self._beside():
          lines, num_pictures = lines + other.lines(other.find_broken()), num_pictures + other._num
        self._refusal = self._describe(lines, num_pictures)
    return UserError(self._refusal)

  def find_broken(self) -> dict[int, str]:
    """Decode all pictures; return position -> reason of each unreadable one."""
    if self._num >= TOLD_FROM:
      print(f"{printable(self._where)}: reading all {self._num:,} pictures to list those that are "
            "unreadable", flush=True)  # fmt: skip
    broken: dict[int, str] = {}
    shown = progress.phase("reading pictures", self._num, "pictures")
    with ThreadPoolExecutor(num_threads()) as pool, shown as phase:
      for first in range(0, self._num, CHUNK):
        places = range(first, min(first + CHUNK, self._num))
        reasons = zip(places, pool.map(self._fault, places), strict=True)
        broken |= {index: reason for index, reason in reasons if reason is not None}
        phase.advance(len(places))
        watchdog.beat()
    return broken

  def _fault(self, index: int) -> str | None:
    try:
      self._load(index)
    except Broken as error:
      self._is_lasting = self._is_lasting and not error.by_system
      return str(error)
    return None

  def _describe(self, lines: Sequence[str], num_pictures: int) -> str:
    more = ""
    if len(lines) > MAX_NAMED:
      more = f" and {len(lines) - MAX_NAMED:,} more{_all_in_a_file(lines)}"
    return (
      f"{self._where}: {len(lines):,} of {num_pictures:,} pictures cannot be read: "
      f"{', '.join(lines[:MAX_NAMED])}{more}; {self._advice}"
    )

  def lines(self, broken: Mapping[int, str]) -> list[str]:
    """Return the names of unreadable pictures with their reasons."""
    return [
      f"{printable(self._name(index))} ({printable(broken[index])})" for index in sorted(broken)
    ]

  def remembered(self, root: str, files_read: Sequence[str | Member]) -> dict[int, str]:
    """Find broken pictures, or take them from the user's cache if the files are unchanged.

    Refusals of the operating system (a network file system may refuse for a while) are not cached.

    If a picture turns out to be damaged later (a disk may damage it without a change in size or
    times), the reader deletes the cache, so that the next start checks again.

    Args:
      root: folder or archive of the files.
      files_read: the files, whose states identify them.
    """
    digest = files_digest(f"{self._num} {os.path.abspath(root)}", files_read)
    file = files.cache_folder() / "unreadable" / f"{digest}.json"
    self.memory = file
    try:
      return {int(index): str(reason) for index, reason in json.loads(file.read_text()).items()}
    except (OSError, ValueError, AttributeError):  # not yet cached, or damaged
      broken = self.find_broken()
    if self._is_lasting:
      _write(file, json.dumps(broken))
    return broken


def files_digest(head: str, files_read: Sequence[str | Member]) -> str:
  """Return a hash of a text, the version of Pillow, and the names and states of files."""
  digest = hashlib.sha256(f"{pillow_version} {head}\n".encode(errors="surrogateescape"))
  names = [file if isinstance(file, str) else "" for file in files_read]
  for row in zip(names, file_states(files_read), strict=True):
    digest.update(f"{row}\n".encode(errors="surrogateescape"))
  return digest.hexdigest()[:24]


def file_states(files_read: Sequence[str | Member]) -> list[tuple[int, int, int]]:
  """Return size, mtime and ctime of each file; -1, 0, 0 if it does not exist."""
  return _in_threads(_state, files_read, "looking at files")


def _state(file: str | Member) -> tuple[int, int, int]:
  return file.state if isinstance(file, Member) else _file_state(file)


def _file_state(file: str) -> tuple[int, int, int]:
  try:
    about = os.stat(file)
  except OSError:
    return -1, 0, 0
  return about.st_size, about.st_mtime_ns, about.st_ctime_ns  # copying preserves the mtime


def _all_in_a_file(lines: Sequence[str]) -> str:
  text = "\n".join(lines) + "\n"
  digest = hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:12]
  file = files.cache_folder() / "unreadable" / f"{digest}.txt"
  return f" (all in {file})" if _write(file, text) else ""


def _write(file: Path, text: str) -> bool:
  """Write to the cache and return True on success; without it the work is repeated."""
  try:
    file.parent.mkdir(parents=True, exist_ok=True)
    files.write_whole(file, text.encode(errors="surrogateescape"))
  except OSError:
    return False
  return True
