"""Pictures in zip and tar files, read in place as if the archive were a folder."""

import bz2
import functools
import glob
import gzip
import hashlib
import itertools
import lzma
import os
import re
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from diffusion_jax.core import files, progress
from diffusion_jax.types import UserError

PACKED: Mapping[str, Callable[..., Any]] = {
  ".tar.gz": gzip.open,
  ".tgz": gzip.open,
  ".tar.bz2": bz2.open,
  ".tar.xz": lzma.open,
}
SUFFIXES = (".zip", ".tar", *PACKED)
MAX_FOLDERS = 8
"""Number of folders of an archive that a message names."""

MAX_MEMBER_BYTES = 1 << 30
"""Largest picture in an archive; a small archive may claim to hold far more."""

SPLIT_WORDS = {"train": ("train", "training"), "test": ("test", "val", "valid", "validation")}


class Member(NamedTuple):
  """One file in an archive.

  Attributes:
    read: returns its content; raises OSError or an error of the archive's format.
    state: size, mtime and ctime of the archive file, and the position in it.
  """

  read: Callable[[], bytes]
  state: tuple[int, int, int]


class Archive(NamedTuple):
  """One archive, or several that belong together, as a folder.

  Attributes:
    where: path for messages.
    members: name with "/" -> file.
    top: the one folder that held everything, which the names leave out.
  """

  where: str
  members: Mapping[str, Member]
  top: str = ""


def is_archive(name: str) -> bool:
  """Return True for the name of a zip or tar file."""
  return name.lower().endswith(SUFFIXES)


def find_archive(path: Path, where: str = "") -> tuple[Archive, str] | None:
  """Return the archive at a path, and the folder in it with "/" at its end ("": all of it).

  A path is an archive, a folder of tar files, a pattern such as train-{000..146}.tar, or one of
  these followed by a folder in it: photos.zip/train.

  Args:
    path: where to look.
    where: flag that named it, for messages; "": the path.

  Raises:
    UserError: the archive cannot be read, or has no such folder.
  """
  if shards := _by_pattern(str(path)):
    return open_archive(shards, where), ""
  for base in (path, *path.parents):
    if base.is_file():
      inside = path.relative_to(base).as_posix()
      if not is_archive(base.name):
        return None
      archive = open_archive([base], where)
      return archive, _folder_within(archive, inside, where or str(path))
    if base.is_dir():
      return _in_folder_of_tars(base, path.relative_to(base).as_posix(), where)
  return None


def _folder_within(archive: Archive, inside: str, where: str) -> str:
  """Return a folder of an archive with "/" at its end, "" for all of it."""
  if inside in (".", archive.top):
    return ""
  for folder in (f"{inside}/", f"{inside}/".removeprefix(f"{archive.top}/")):
    if any(name.startswith(folder) for name in archive.members):
      return folder
  found = {str(folder) for name in archive.members for folder in PurePosixPath(name).parents}
  nearest = sorted(found - {"."}, key=lambda name: (name.count("/"), name))
  names = [files.printable(name) for name in nearest[:MAX_FOLDERS]]
  has = f"it has {', '.join(names)}{', ...' * (len(nearest) > MAX_FOLDERS)}"
  has = has if nearest else "it has no folders"
  raise UserError(
    f"{where}: {os.path.basename(archive.where)} has no folder {files.printable(inside)}; {has}"
  )


def archive_splits(path: Path, where: str = "") -> list[str] | None:
  """Return the names in the top folder of an archive that hold files; None for no archive."""
  if (found := find_archive(path, where)) is None:
    return None
  if path.is_dir():
    named = {split for tar in tars_in(path) if (split := _split_of(tar.name))}
    return sorted(named) if len(named) == 2 else []
  archive, inside = found
  tops = {name[len(inside) :].partition("/")[::2] for name in archive.members}
  return sorted({top + "/" * bool(rest) for top, rest in tops})


def tars_in(folder: Path) -> list[Path]:
  """Return the tar files of a folder that has nothing else but descriptions; else nothing."""
  try:
    found = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
  except OSError:
    return []
  tars = [p for p in found if is_archive(p.name) and p.suffix != ".zip"]
  rest = [p for p in found if p not in tars]
  return tars if all(p.suffix in (".json", ".txt", ".md", ".idx") for p in rest) else []


def _in_folder_of_tars(folder: Path, inside: str, where: str) -> tuple[Archive, str] | None:
  tars = tars_in(folder)
  if inside != ".":
    tars = [tar for tar in tars if _split_of(tar.name) == inside]
  return (open_archive(tars, where), "") if tars else None


def _split_of(name: str) -> str | None:
  """Return train or test if a word in a tar's name says so."""
  words = re.split(r"[^a-z]+", name.lower())
  return next((s for s, known in SPLIT_WORDS.items() if any(w in known for w in words)), None)


def _by_pattern(text: str) -> list[Path]:
  """Return the files of a pattern with {000..146}, *, ? or []; nothing for a plain path."""
  if not re.search(r"\{\d+\.\.\d+\}|[*?\[]", text) or os.path.exists(text):
    return []
  found = itertools.chain.from_iterable(map(glob.glob, _braces(text)))
  return [Path(name) for name in sorted(found) if is_archive(name)]


def _braces(text: str) -> Iterator[str]:
  match = re.search(r"\{(\d+)\.\.(\d+)\}", text)
  if match is None:
    yield text
    return
  first, last = match.groups()
  for number in range(int(first), int(last) + 1):
    yield from _braces(f"{text[: match.start()]}{number:0{len(first)}d}{text[match.end() :]}")


def open_archive(paths: Sequence[Path], where: str = "") -> Archive:
  """List the files of archives; the list is kept in memory while they are unchanged.

  Args:
    paths: the archives.
    where: flag that named them, for messages.

  Raises:
    UserError: an archive is damaged or cannot be read.
  """
  members: dict[str, Member] = {}
  top = ""
  for path in paths:
    try:
      about = path.stat()
      found, top = _members(str(path), (about.st_size, about.st_mtime_ns, about.st_ctime_ns))
    except (OSError, EOFError, lzma.LZMAError, zipfile.BadZipFile, tarfile.TarError) as error:
      named = f"{where or path}: {'this archive' if path.name in where or not where else path.name}"
      raise UserError(f"{named} cannot be read ({error}); fetch it again") from error
    for name, member in found.items():
      folder, _, last = name.rpartition("/")
      own = f"{folder}/{path.stem}_{last}".lstrip("/")  # shards may number their files alike
      members[name if name not in members else own] = member
  if len(paths) > 1:
    return Archive(f"{paths[0]} and {len(paths) - 1:,} more", members)
  return Archive(str(paths[0]), members, top)


@functools.lru_cache(maxsize=4096)
def _members(path: str, state: tuple[int, int, int]) -> tuple[Mapping[str, Member], str]:
  listed = _zip_members if path.lower().endswith(".zip") else _tar_members
  return _without_common_folder(dict(sorted(listed(path, state).items())))


def _zip_members(path: str, state: tuple[int, int, int]) -> dict[str, Member]:
  archive = zipfile.ZipFile(path)
  found = [info for info in archive.infolist() if not info.is_dir()]
  return {
    info.filename: Member(
      functools.partial(_read_zip, archive, info), (*state[:2], info.header_offset)
    )
    for info in found
  }


def _read_zip(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
  if info.file_size > MAX_MEMBER_BYTES:
    raise OSError(f"{info.file_size:,} bytes are too many for a picture")
  return archive.read(info)


def _tar_members(path: str, state: tuple[int, int, int]) -> dict[str, Member]:
  packed = next((s for s in PACKED if path.lower().endswith(s)), None)
  plain = path if packed is None else str(_unpacked(path, state, PACKED[packed]))
  handle = os.open(plain, os.O_RDONLY)
  found = {}
  with (
    tarfile.open(plain, "r:") as archive,
    progress.phase(f"listing {os.path.basename(path)}", unit="files") as phase,
  ):
    while (member := archive.next()) is not None:
      if member.isreg():
        read = functools.partial(_read_tar, handle, member.offset_data, member.size)
        found[member.name.removeprefix("./")] = Member(read, (*state[:2], member.offset_data))
      phase.advance()
  return found


def _read_tar(handle: int, offset: int, size: int) -> bytes:
  if size > MAX_MEMBER_BYTES:
    raise OSError(f"{size:,} bytes are too many for a picture")
  content = os.pread(handle, size, offset)
  if len(content) < size:
    raise OSError("the tar ends within it")
  return content


def _unpacked(path: str, state: tuple[int, int, int], opener: Callable[..., Any]) -> Path:
  """Return the plain tar of a compressed one, from the user's cache or made there."""
  digest = hashlib.sha256(f"{os.path.abspath(path)} {state}".encode(errors="surrogateescape"))
  target = files.cache_folder() / "unpacked" / f"{digest.hexdigest()[:24]}.tar"
  if not target.exists():
    target.parent.mkdir(parents=True, exist_ok=True)
    with (
      progress.phase(f"unpacking {os.path.basename(path)}"),
      opener(path, "rb") as packed,
      files.atomic_write(target) as file,
    ):
      shutil.copyfileobj(packed, file, 1 << 20)
  return target


def _without_common_folder(members: dict[str, Member]) -> tuple[Mapping[str, Member], str]:
  """Return the files without the one folder that holds everything, and its name, "" for none."""
  tops = {name.partition("/")[0] for name in members if not _is_left_by_system(name)}
  deep = any(name.count("/") > 1 for name in members)
  if len(tops) != 1 or not deep or not all("/" in n for n in members if not _is_left_by_system(n)):
    return members, ""
  top = tops.pop()
  return {name.removeprefix(f"{top}/"): member for name, member in members.items()}, top


def _is_left_by_system(name: str) -> bool:
  return name.startswith(("__MACOSX/", "."))
