"""Pictures in files: what their headers say, and one list of all that cannot be read."""

import contextlib
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

from diffusion_jax.core import files
from diffusion_jax.core.files import printable
from diffusion_jax.data.source import is_transparent, num_threads, orientation
from diffusion_jax.parallel import watchdog
from diffusion_jax.types import UserError

T = TypeVar("T")
Unreadable = Literal["refuse", "skip"]
"""Treatment of pictures that cannot be read."""

MAX_NAMED = 10
"""Pictures that a message names; a file lists the others."""

CHUNK = 1024
TOLD_FROM = 10_000
"""Pictures from which on it is said that all are being read, because it takes a while."""


# Once and for every thread: what Pillow warns of is met as an error, or does not matter.
warnings.filterwarnings("ignore", module=r"PIL\..*")


class Broken(Exception):
  """A picture that cannot be read; its text says why.

  Args:
    reason: in words.
    by_system: the system refused it, which another time it may not; the file itself may be whole.
  """

  def __init__(self, reason: str, by_system: bool = False):
    super().__init__(reason)
    self.by_system = by_system


@contextlib.contextmanager
def opened(file: str | Path | io.BytesIO) -> Iterator[Image.Image]:
  """Open a picture, of which only the header is read at first.

  Raises:
    Broken: for whatever Pillow raises here or inside the block. Its formats raise errors of a dozen
      types for damaged files.
  """
  try:
    with Image.open(file) as image:
      yield image
  except (Broken, UserError, MemoryError):
    raise
  except UnidentifiedImageError as error:
    raise Broken("no picture of a known format") from error
  except Exception as error:
    refusal = getattr(error, "strerror", None)
    reason = refusal or str(error).partition("\n")[0] or type(error).__name__
    raise Broken(reason, by_system=refusal is not None) from error


class Header(NamedTuple):
  """Facts in the header of a picture, before its pixels are decoded.

  Attributes:
    height, width: once it is turned upright.
    is_grey: it has one channel.
    is_transparent: it has an alpha channel or a colour that is clear.
    is_animated: further frames follow the first, which is the one that is read.
  """

  height: int
  width: int
  is_grey: bool
  is_transparent: bool
  is_animated: bool

  @property
  def size(self) -> tuple[int, int]:
    return self.height, self.width


def read_header(file: str | Path) -> Header | Broken:
  """Return what a file's header says, or why it cannot be read."""
  try:
    with opened(file) as image:
      is_turned = orientation(image) >= 5  # by a quarter
      height, width = (image.width, image.height) if is_turned else (image.height, image.width)
      # the further pictures of an MPO are previews of its first
      animated = image.format != "MPO" and getattr(image, "is_animated", False)
      return Header(height, width, image.mode in ("L", "1"), is_transparent(image), animated)
  except Broken as error:
    return error


def read_headers(files: Sequence[str]) -> list[Header | Broken]:
  """The headers of many files, in their order."""
  return _in_threads(read_header, files)


def _in_threads(function: Callable[[str], T], files: Sequence[str]) -> list[T]:
  """Return the status of each file, asked by threads: storage may be slow to answer."""
  found: list[T] = []
  with ThreadPoolExecutor(num_threads()) as pool:
    for first in range(0, len(files), CHUNK):
      found += pool.map(function, files[first : first + CHUNK])
      watchdog.beat()
  return found


def header_notes(headers: Iterable[Header]) -> list[str]:
  """Sentences on what is done to pictures on the way in."""
  headers, notes = list(headers), []
  if num := sum(h.is_transparent for h in headers):
    notes.append(f"{num:,} {_pictures(num)} with transparency, laid on white")
  if num := sum(h.is_animated for h in headers):
    notes.append(f"{num:,} {_pictures(num)} of several frames, of which the first is taken")
  return notes


def _pictures(num: int) -> str:
  return "picture" if num == 1 else "pictures"


class Reader(Generic[T]):
  """Reads the pictures of a set by their places; one that is broken is answered with all that are.

  Args:
    num: pictures.
    load: place -> what is read of it; raises Broken. Called from several threads.
    name: place -> how a message names it.
    where: the set is, for messages: "--config.data.path=cats".
    advice: what to do about pictures that cannot be read.
    beside: gives readers of what the same program reads besides, such as the other split, so that
      its unreadable pictures are named in the same list.
    memory: file of the user's cache in which `remembered` found that all these can be read; None
      where they were not looked through.
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

  def __call__(self, place: int) -> T:
    try:
      return self._load(place)
    except Broken as error:
      broken = {place: str(error)}
      raise (self._forget(broken) if self.memory else self.refuse(broken)) from error

  def _forget(self, broken: Mapping[int, str]) -> UserError:
    """The error of a picture that was whole when all were looked through; drops what they were."""
    assert self.memory
    cure = "start the same command again, which looks through all of them anew"
    try:
      self.memory.unlink(missing_ok=True)
    except OSError:
      cure = f"delete {self.memory} and {cure}"
    return UserError(
      f"{self._where}: {', '.join(self.lines(broken))} could be read when the pictures were last "
      f"looked through, and now cannot; {cure}"
    )

  def refuse(self, broken: Mapping[int, str]) -> UserError:
    """The error that names every unreadable picture, found by reading all of them once.

    Args:
      broken: place -> reason of those that are known already.
    """
    with self._lock:  # several threads may come to a broken picture at once
      if not self._refusal:
        lines, num = self.lines({**self.find_broken(), **broken}), self._num
        for other in self._beside():
          lines, num = lines + other.lines(other.find_broken()), num + other._num
        self._refusal = self._describe(lines, num)
    return UserError(self._refusal)

  def find_broken(self) -> dict[int, str]:
    """Place -> reason of each picture that cannot be read; decodes all of them."""
    if self._num >= TOLD_FROM:
      print(f"{printable(self._where)}: reading all {self._num:,} pictures to list those that are "
            "unreadable", flush=True)  # fmt: skip
    found: dict[int, str] = {}
    with ThreadPoolExecutor(num_threads()) as pool:
      for first in range(0, self._num, CHUNK):
        places = range(first, min(first + CHUNK, self._num))
        reasons = zip(places, pool.map(self._fault, places), strict=True)
        found |= {place: reason for place, reason in reasons if reason is not None}
        watchdog.beat()
    return found

  def _fault(self, place: int) -> str | None:
    try:
      self._load(place)
    except Broken as error:
      self._is_lasting = self._is_lasting and not error.by_system
      return str(error)
    return None

  def _describe(self, lines: Sequence[str], num: int) -> str:
    more = ""
    if len(lines) > MAX_NAMED:
      more = f" and {len(lines) - MAX_NAMED:,} more{_all_in_a_file(lines)}"
    return (
      f"{self._where}: {len(lines):,} of {num:,} pictures cannot be read: "
      f"{', '.join(lines[:MAX_NAMED])}{more}; {self._advice}"
    )

  def lines(self, broken: Mapping[int, str]) -> list[str]:
    """The names of pictures with the reasons why they cannot be read."""
    return [
      f"{printable(self._name(place))} ({printable(broken[place])})" for place in sorted(broken)
    ]

  def remembered(self, root: str, names: Sequence[str]) -> dict[int, str]:
    """Find broken pictures, from the user's cache where the same files have been read before.

    What the system refused, as a network's file system may for a while, is not kept.

    A picture that turns out to be damaged afterwards (a disk may do that without a trace in its
    size and times) makes the reader forget all of it, so that the next start looks anew.

    Args:
      root: the folder that holds the files.
      names: of the files below it.
    """
    head = (pillow_version, self._num, os.path.abspath(root))
    digest = hashlib.sha256(f"{head}\n".encode(errors="surrogateescape"))
    states = file_states([os.path.join(root, name) for name in names])
    for row in zip(names, states, strict=True):
      digest.update(f"{row}\n".encode(errors="surrogateescape"))
    file = files.cache_folder() / "unreadable" / f"{digest.hexdigest()[:24]}.json"
    self.memory = file
    try:
      return {int(place): str(reason) for place, reason in json.loads(file.read_text()).items()}
    except (OSError, ValueError, AttributeError):  # not read before, or damaged
      found = self.find_broken()
    if self._is_lasting:
      _write(file, json.dumps(found))
    return found


def file_states(files: Sequence[str]) -> list[tuple[int, int, int]]:
  """Size and times of the last change, of content and of all, of each file; -1, 0, 0 without it."""
  return _in_threads(_file_state, files)


def _file_state(file: str) -> tuple[int, int, int]:
  try:
    about = os.stat(file)
  except OSError:
    return -1, 0, 0
  return about.st_size, about.st_mtime_ns, about.st_ctime_ns  # a copy keeps the second


def _all_in_a_file(lines: Sequence[str]) -> str:
  text = "\n".join(lines) + "\n"
  digest = hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:12]
  file = files.cache_folder() / "unreadable" / f"{digest}.txt"
  return f" (all in {file})" if _write(file, text) else ""


def _write(file: Path, text: str) -> bool:
  """Return whether the cache took it; without, the work is done again."""
  try:
    file.parent.mkdir(parents=True, exist_ok=True)
    files.write_whole(file, text.encode(errors="surrogateescape"))
  except OSError:
    return False
  return True
