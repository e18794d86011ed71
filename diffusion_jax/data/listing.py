"""List the pictures of a folder and the files that are skipped, the same for every program."""

import collections
import functools
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from diffusion_jax.core import progress
from diffusion_jax.core.files import printable
from diffusion_jax.data.reading import Broken, opened
from diffusion_jax.types import UserError

NOT_DECODED = {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}
"""Formats that Pillow recognises but cannot decode without other programs."""

EXAMPLES = ".png, .jpg, .webp, .bmp, .gif, .tif"

MAX_NAMED = 10
"""Number of names of each kind in a message."""

NO_CLASSES = {"__macosx", "thumbs.db", "desktop.ini"}
"""Names that operating systems leave in folders; ignored, as all names starting with a dot."""


class Listing(NamedTuple):
  """The pictures of a folder.

  Attributes:
    root: the folder.
    names: paths relative to it with "/", sorted within each folder.
    labels: class of each picture; 0 if there are no sub-folders.
    classes: names of the sub-folders with pictures, in natural order.
    notes: sentences about skipped files, and about the interpretation of the tree.
  """

  root: str
  names: Sequence[str]
  labels: Sequence[int]
  classes: list[str]
  notes: tuple[str, ...]

  def path(self, index: int) -> str:
    """Return the file of a picture."""
    return os.path.join(self.root, self.names[index])

  def keep(self, places: Iterable[int]) -> "Listing":
    """Return the same for a subset of the pictures; class numbers do not change."""
    places = list(places)
    names, labels = [self.names[i] for i in places], [self.labels[i] for i in places]
    return self._replace(names=names, labels=labels)


def list_folder(root: Path, where: str, classes: list[str] | None = None) -> Listing:
  """List the pictures below a folder whose sub-folders are the classes.

  Links are followed. A picture in `root/cat/any/depth` is of class cat.

  Args:
    root: the folder.
    where: flag that named it, for messages.
    classes: classes of the training split, to label another split; None: the classes found.

  Raises:
    UserError: no such folder, no pictures, dangling links, unreadable folders, pictures beside
      classes, or other classes.
  """
  walk = _walk(root, where)
  tops = [name.partition("/")[0] if "/" in name else "" for name in walk.names]
  folders = sorted({top for top in tops if top}, key=in_natural_order)
  if folders and "" in tops:
    first, stray = printable(folders[0]), printable(walk.names[tops.index("")])
    raise UserError(f"{where} holds classes ({first}, ...) and {stray}; move it into one")
  if classes is not None and set(folders) - set(classes):
    other = printable(min(set(folders) - set(classes)))
    raise UserError(f"{where} has class {other}, which --config.data.path does not have")
  if classes and not folders:
    raise UserError(f"{where} has no sub-folders, but path has the classes {some(classes)}")
  numbers = {name: i for i, name in enumerate(folders if classes is None else classes)}
  labels = [numbers[top] if top else 0 for top in tops]
  notes = (*walk.notes(), *_depth_notes(walk.names), *_empty_notes(walk.tops - set(folders)))
  return Listing(str(root), walk.names, labels, list(numbers), notes)


def find_pictures(root: Path, where: str) -> Listing:
  """List every picture below a folder; sub-folders have no meaning and there are no classes.

  Raises:
    UserError: no such folder, no pictures, dangling links, or unreadable folders.
  """
  walk = _walk(root, where)
  return Listing(str(root), walk.names, [0] * len(walk.names), [], tuple(walk.notes()))


def _walk(root: Path, where: str) -> "Walk":
  if not root.is_dir():
    raise UserError(f"{where}: no such folder; give a folder of pictures")
  walk = Walk(str(root))
  walk.check(where)
  if not walk.names:
    there = "".join(f"; {note}" for note in walk.notes())
    raise UserError(f"{where}: no pictures there; it needs files such as {EXAMPLES}{there}")
  return walk


class Walk:
  """Contents of a folder tree: pictures, and the skipped files.

  Links to files and folders are followed, except for links back to a folder above.

  Args:
    root: the folder.

  Attributes:
    names: paths of the pictures relative to the root.
    tops: the folders in the root.
    others: suffixes of files that are not pictures, with counts.
  """

  def __init__(self, root: str):
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
    with progress.phase("listing files", unit="pictures") as self._phase:
      self._enter(root, "", (), False)

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
      elif (kind := _kind(entry)) == "folder":
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
    faults = [_counted(self._dangling, *DANGLING)] if self._dangling else []
    if self._closed:
      faults.append(_counted(self._closed, "folder cannot be read", "folders cannot be read"))
    if faults:
      raise UserError(f"{where}: {'; '.join(faults)}; repair them, or move them away")

  def notes(self) -> list[str]:
    """Return sentences on the skipped files and the reasons."""
    counts = []
    if count := self.others.total():
      kinds = some([suffix for suffix, _ in self.others.most_common(MAX_NAMED)])
      counts.append((count, f"not {'a picture' if count == 1 else 'pictures'} ({kinds})"))
    if count := len(self._special):
      counts.append((count, f"not {'a regular file' if count == 1 else 'regular files'}"))
    if count := len(self._hidden):
      counts.append((count, f"hidden or of the system ({some(self._hidden)})"))
    if count := len(self._loops):
      counts.append((count, f"linked back to a folder above ({some(self._loops)})"))
    notes = [left_out(counts)] if counts else []
    if self._num_again:
      notes.append(f"{self._num_again:,} pictures appear twice, through links")
    return notes


DANGLING = ("link leads nowhere", "links lead nowhere")


def _counted(names: Sequence[str], one: str, many: str) -> str:
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


def _kind(entry: os.DirEntry) -> str:
  try:
    if entry.is_dir():
      return "folder"
    if entry.is_file():
      return "file"
    return "dangling" if entry.is_symlink() and not os.path.exists(entry.path) else "special"
  except OSError:  # a link to itself, or through an unreadable folder
    return "dangling"


def _is_picture(path: str) -> bool:
  """Return True if a file without a suffix is a picture, by its first bytes."""
  try:
    with opened(path) as image:
      return image.format not in NOT_DECODED
  except Broken:
    return False


def _depth_notes(names: Iterable[str]) -> list[str]:
  deep = next((name for name in names if name.count("/") > 1), None)
  if deep is None:
    return []
  folder = printable(os.path.dirname(deep))
  first = folder.partition("/")[0]
  return [f"folders within a class are part of it: {folder} is of class {first}"]


def _empty_notes(names: set[str]) -> list[str]:
  if not names:
    return []
  listed = some(sorted(names, key=in_natural_order))
  one = len(names) == 1
  return [f"{len(names):,} {'folder holds' if one else 'folders hold'} no picture and "
          f"{'is no class' if one else 'are no classes'}: {listed}"]  # fmt: skip


def in_natural_order(name: str) -> list[tuple[int, int | str]]:
  """Return a sort key that puts 2 before 10, and numbers before words."""
  runs = re.split(r"([0-9]+)", name)
  return [(0, int(p)) if p.isdecimal() else (1, p) for p in runs if p]


TEST_NAMES = ("test", "val", "valid", "validation")


def split_folders(root: Path, where: str) -> dict[str, Path]:
  """Return the folders of the splits, "train" and perhaps "test"; empty if there are none.

  Args:
    root: folder that may contain them.
    where: flag that named it, for messages.

  Raises:
    UserError: folders named as splits next to other folders or to pictures, two test splits, or no
      training split.
  """
  top = _top(root)
  below, files = top["folder"], top["file"]
  tests = [name for name in below if name.lower() in TEST_NAMES]
  train = [name for name in below if name.lower() == "train"]
  if not tests and not train:
    return {}
  if top["dangling"]:
    raise UserError(
      f"{where}: {_counted(top['dangling'], *DANGLING)}; repair them, or move them away"
    )
  others = [name for name in below if name not in tests and name not in train]
  others += [name for name in files if os.path.splitext(name)[1].lower() in suffixes()]
  named = some(train + tests)
  if others:
    raise UserError(
      f"{where} holds folders named as splits ({named}) and others ({printable(others[0])}): are "
      "they splits or classes? Move the splits, or the classes, into a folder of their own, or "
      "rename them"
    )
  if len(tests) > 1 or len(train) != 1:
    raise UserError(
      f"{where} holds {named}: give one folder train and one of {', '.join(TEST_NAMES)}, or name "
      "them: --config.data.path=ROOT/train --config.data.test_path=ROOT/test"
    )
  return {"train": root / train[0]} | ({"test": root / tests[0]} if tests else {})


def _top(root: Path) -> dict[str, list[str]]:
  """Return kind -> sorted names of a folder's contents, without hidden ones."""
  kinds: dict[str, list[str]] = {"folder": [], "file": [], "dangling": [], "special": []}
  if not root.is_dir():
    return kinds
  with os.scandir(root) as entries:
    for entry in entries:
      if not is_hidden(entry.name):
        kinds[_kind(entry)].append(entry.name)
  return {kind: sorted(names) for kind, names in kinds.items()}
