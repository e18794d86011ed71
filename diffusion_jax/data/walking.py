"""Walk through a folder or an archive: the pictures in it, and the files that are skipped."""

import collections
import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from diffusion_jax.core import progress
from diffusion_jax.core.files import printable
from diffusion_jax.data.archives import Archive, Member, find_archive
from diffusion_jax.data.reading import Broken, opened
from diffusion_jax.data.side_labels import INDEX, Labels, labels_beside, labels_of_index
from diffusion_jax.types import UserError

NOT_DECODED = {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}
"""Formats that Pillow recognises but cannot decode without other programs."""

MAX_NAMED = 10
"""Number of names of each kind in a message."""

NO_CLASSES = {"__macosx", "thumbs.db", "desktop.ini"}
"""Names that operating systems leave in folders; ignored, as all names starting with a dot."""


class Walk:
  """Contents of a folder tree or an archive: pictures, and the skipped files.

  Links to files and folders are followed, except for links back to a folder above.

  Args:
    root: the folder, or an archive, see `archives.find_archive`.

  Attributes:
    names: paths of the pictures relative to the root.
    tops: the folders in the root.
    others: suffixes of files that are not pictures, with counts.
    labels: picture -> label from files beside them, {} if these say unlabelled; None: no such
      files, and the folders are the classes.
    members: picture -> file in the archive; None for a folder.
  """

  def __init__(self, root: str):
    self._root = root
    self.names: list[str] = []
    self.tops: set[str] = set()
    self.others: collections.Counter[str] = collections.Counter()
    self._hidden: list[str] = []
    self._special: list[str] = []
    self._loops: list[str] = []
    self._dangling: list[str] = []
    self._closed: list[str] = []
    self._seen: set[tuple[int, int]] = set()
    self._num_again = 0
    self._num_labels = 0
    self.labels: Labels | None = None
    self.members: Mapping[str, Member] | None = None
    if (found := find_archive(Path(root))) is None:
      with progress.phase("listing files", unit="pictures") as self._phase:
        self._enter(root, "", (), False)
      self._read_index(os.path.join(root, INDEX))
    else:
      self._enter_archive(*found)

  def _enter_archive(self, archive: Archive, inside: str) -> None:
    own = {n[len(inside) :]: m for n, m in archive.members.items() if n.startswith(inside)}
    others = []
    for name, member in own.items():
      top, _, rest = name.partition("/")
      if any(map(is_hidden, name.split("/"))):
        self._hidden.append(name)
        continue
      if rest:
        self.tops.add(top)
      suffix = os.path.splitext(name)[1].lower()
      if suffix in suffixes() or (not suffix and _is_picture(member)):
        self.names.append(name)
      else:
        others.append(name)
    self.members = {name: own[name] for name in self.names}
    read = lambda name: own[name].read()  # noqa: E731
    self.labels = labels_of_index(read(INDEX)) if INDEX in own else None
    if self.labels is None:
      self.labels = labels_beside(self.names, others, read)
    self._count_others(others)

  def _count_others(self, others: Sequence[str]) -> None:
    for name in others:
      suffix = os.path.splitext(name)[1].lower()
      if self.labels is not None and (suffix in (".cls", ".json")):
        self._num_labels += 1
      else:
        self.others[suffix or "no suffix"] += 1

  def _read_index(self, file: str) -> None:
    """Take the labels of a folder in EDM's layout."""
    if os.path.isfile(file):
      with open(file, "rb") as opened_file:
        self.labels = labels_of_index(opened_file.read())
    if self.labels is not None:
      self.others.subtract([".json"])
      self._num_labels = 1
      self.others += collections.Counter()  # drop a count of zero

  def _enter(self, folder: str, prefix: str, above: tuple, again: bool) -> None:
    try:
      about = os.stat(folder)
      with os.scandir(folder) as scanned:
        entries = sorted(scanned, key=lambda entry: entry.name)
    except OSError:
      self._closed.append(prefix or folder)
      return
    identity = (about.st_dev, about.st_ino)
    if identity in above:
      self._loops.append(prefix)
      return
    again = again or identity in self._seen
    self._seen.add(identity)
    for entry in entries:
      name = prefix + entry.name
      if is_hidden(entry.name):
        self._hidden.append(name)
      elif (kind := kind_of_entry(entry)) == "folder":
        if not prefix:
          self.tops.add(entry.name)
        self._enter(entry.path, f"{name}/", (*above, identity), again)
      elif kind == "file":
        self._take(entry, name, again)
      else:
        (self._dangling if kind == "dangling" else self._special).append(name)

  def _take(self, entry: os.DirEntry, name: str, again: bool) -> None:
    suffix = os.path.splitext(entry.name)[1].lower()
    if suffix in suffixes() or (not suffix and _is_picture(entry.path)):
      self.names.append(name)
      self._phase.advance()
      self._num_again += again
    else:
      self.others[suffix or "no suffix"] += 1

  def check(self, where: str) -> None:
    """Raise a UserError if a part of the folder cannot be reached.

    Raises:
      UserError: the number of such links and folders, and the first of each.
    """
    faults = [count_in_words(self._dangling, *DANGLING)] if self._dangling else []
    if self._closed:
      faults.append(count_in_words(self._closed, "folder cannot be read", "folders cannot be read"))
    if faults:
      raise UserError(f"{where}: {'; '.join(faults)}; repair them, or move them away")

  def skipped(self) -> dict[str, int]:
    """Return reason -> number of skipped files, those in hidden folders included."""
    kinds = some([suffix for suffix, _ in self.others.most_common(3)])
    counts = {
      f"not pictures ({kinds}{', ...' if len(self.others) > 3 else ''})": self.others.total(),
      "labels": self._num_labels,
      "hidden or of the system": self._num_hidden(),
      "not regular files": len(self._special),
      "links that lead nowhere": len(self._dangling),
    }
    return {reason: num for reason, num in counts.items() if num}

  def _num_hidden(self) -> int:
    return sum(map(self._count_hidden, self._hidden))

  def _count_hidden(self, name: str) -> int:
    path = os.path.join(self._root, name)
    if self.members is not None or not os.path.isdir(path) or os.path.islink(path):
      return 1
    return sum(len(names) for _, _, names in os.walk(path))

  def notes(self) -> list[str]:
    """Return sentences on the skipped files and the reasons."""
    counts = []
    if count := self.others.total():
      kinds = some([suffix for suffix, _ in self.others.most_common(MAX_NAMED)])
      counts.append((count, f"not {'a picture' if count == 1 else 'pictures'} ({kinds})"))
    if count := len(self._special):
      counts.append((count, f"not {'a regular file' if count == 1 else 'regular files'}"))
    if count := self._num_hidden():
      counts.append((count, f"hidden or of the system ({some(self._hidden)})"))
    if count := len(self._loops):
      counts.append((count, f"linked back to a folder above ({some(self._loops)})"))
    notes = [left_out(counts)] if counts else []
    if self._num_again:
      notes.append(f"{self._num_again:,} pictures appear twice, through links")
    return notes


DANGLING = ("link leads nowhere", "links lead nowhere")


def count_in_words(names: Sequence[str], one: str, many: str) -> str:
  first_name = printable(names[0])
  others = f", the first is {first_name}" if len(names) > 1 else f" ({first_name})"
  return f"{len(names):,} {one if len(names) == 1 else many}{others}"


def left_out(counts: Sequence[tuple[int, str]]) -> str:
  """Return a sentence such as "3 files left out: 2 not pictures (.txt), 1 hidden"."""
  total = sum(count for count, _ in counts)
  reasons = ", ".join(f"{count:,} {reason}" for count, reason in counts)
  return f"{total:,} {'file' if total == 1 else 'files'} left out: {reasons}"


def some(names: Sequence[str]) -> str:
  """Return the first names of a list, and the number of others."""
  more = f" and {len(names) - MAX_NAMED:,} more" if len(names) > MAX_NAMED else ""
  return ", ".join(map(printable, names[:MAX_NAMED])) + more


@functools.cache
def suffixes() -> frozenset[str]:
  """Return the suffixes, with their dot, of every format that Pillow decodes."""
  Image.init()
  formats = (set(Image.OPEN) | {"MPO"}) - NOT_DECODED
  return frozenset(s for s, kind in Image.registered_extensions().items() if kind in formats)


def is_hidden(name: str) -> bool:
  """Return True for a name left by an operating system, neither class nor picture."""
  return name.startswith(".") or name.lower() in NO_CLASSES


def kind_of_entry(entry: os.DirEntry) -> str:
  try:
    if entry.is_dir():
      return "folder"
    if entry.is_file():
      return "file"
    return "dangling" if entry.is_symlink() and not os.path.exists(entry.path) else "special"
  except OSError:  # a link to itself, or through an unreadable folder
    return "dangling"


def _is_picture(file: str | Member) -> bool:
  """Return True if a file without a suffix is a picture, by its first bytes."""
  try:
    with opened(file) as image:
      return image.format not in NOT_DECODED
  except Broken:
    return False
