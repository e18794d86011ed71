"""List the pictures of a folder and the files that are skipped, the same for every program."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from diffusion_jax.core.files import printable
from diffusion_jax.data.archives import Member, archive_splits, find_archive
from diffusion_jax.data.side_labels import Labels
from diffusion_jax.data.walking import (
  DANGLING,
  Walk,
  count_in_words,
  is_hidden,
  kind_of_entry,
  some,
  suffixes,
)
from diffusion_jax.types import UserError

EXAMPLES = ".png, .jpg, .webp, .bmp, .gif, .tif"


class Listing(NamedTuple):
  """The pictures of a folder or an archive.

  Attributes:
    root: the folder or archive.
    names: paths relative to it with "/", sorted within each folder.
    labels: class of each picture; 0 if there are no sub-folders.
    classes: names of the sub-folders with pictures, in natural order.
    notes: sentences about skipped files, and about the interpretation of the tree.
    skipped: reason -> number of skipped files.
    members: name -> file in the archive; None for a folder.
  """

  root: str
  names: Sequence[str]
  labels: Sequence[int]
  classes: list[str]
  notes: tuple[str, ...]
  skipped: Mapping[str, int] = MappingProxyType({})
  members: Mapping[str, Member] | None = None

  def path(self, index: int) -> str:
    """Return the path of a picture, for messages."""
    return os.path.join(self.root, self.names[index])

  def file(self, index: int) -> str | Member:
    """Return a picture's file, which `reading.opened` opens."""
    return self.path(index) if self.members is None else self.members[self.names[index]]

  def files(self) -> list[str | Member]:
    """Return the files of all pictures."""
    return [self.file(index) for index in range(len(self.names))]

  def keep(self, places: Iterable[int]) -> "Listing":
    """Return the same for a subset of the pictures; class numbers do not change."""
    places = list(places)
    names, labels = [self.names[i] for i in places], [self.labels[i] for i in places]
    return self._replace(names=names, labels=labels)


def list_folder(
  root: Path, where: str, classes: list[str] | None = None, strict: bool = True
) -> Listing:
  """List the pictures below a folder, or in an archive, whose sub-folders are the classes.

  Links are followed. A picture in `root/cat/any/depth` is of class cat. Labels in a dataset.json
  (EDM) or in .cls and .json files (WebDataset) replace those of the folders.

  Args:
    root: the folder or archive.
    where: flag that named it, for messages.
    classes: classes of the training split, to label another split; None: the classes found.
    strict: raise an error for dangling links, unreadable folders, and pictures beside classes;
      otherwise they are skipped, unless most pictures are beside the classes.

  Raises:
    UserError: no such folder, no pictures, other classes, or see `strict`.
  """
  walk = _walk(root, where, strict)
  if walk.labels is not None:
    return _labelled(walk, walk.labels, root, where, classes)
  names, skipped = walk.names, walk.skipped()
  strays = [name for name in names if "/" not in name]
  if strays and len(strays) < len(names):
    if strict or 2 * len(strays) >= len(names):
      first = printable(min((n.partition("/")[0] for n in names if "/" in n), key=in_natural_order))
      raise UserError(
        f"{where} holds classes ({first}, ...) and {printable(strays[0])}; move it into one"
      )
    names = [name for name in names if "/" in name]
    skipped["beside the folders of the classes"] = len(strays)
  tops = [name.partition("/")[0] if "/" in name else "" for name in names]
  found = sorted({top for top in tops if top}, key=in_natural_order)
  if classes is not None and set(found) - set(classes):
    other = printable(min(set(found) - set(classes)))
    raise UserError(f"{where} has class {other}, which the training pictures do not have")
  if classes and not found:
    raise UserError(f"{where} has no sub-folders, but path has the classes {some(classes)}")
  numbers = {name: i for i, name in enumerate(found if classes is None else classes)}
  labels = [numbers[top] if top else 0 for top in tops]
  notes = (*walk.notes(), *_depth_notes(names), *_empty_notes(walk.tops - set(found)))
  return Listing(str(root), names, labels, list(numbers), notes, skipped, walk.members)


def _labelled(
  walk: Walk, labels: Labels, root: Path, where: str, classes: list[str] | None
) -> Listing:
  """Return the pictures with the labels of files beside them."""
  if lacking := [name for name in walk.names if labels and name not in labels]:
    raise UserError(f"{where}: {printable(lacking[0])} has no label in dataset.json; add it")
  own = [labels[name] for name in walk.names] if labels else []
  numbers = [label for label in own if isinstance(label, int)]
  if min(numbers, default=0) < 0 or max(numbers, default=0) >= MAX_CLASSES:
    raise UserError(f"{where}: labels must be numbers from 0 to {MAX_CLASSES - 1:,}")
  names = [str(i) for i in range(max(numbers, default=-1) + 1)]
  names = names or sorted(map(str, set(own)), key=in_natural_order)
  if classes is not None and set(names) - set(classes):
    other = printable(min(set(names) - set(classes)))
    raise UserError(f"{where} has class {other}, which the training pictures do not have")
  names = names if classes is None else classes
  number = {name: i for i, name in enumerate(names)}
  chosen = [number[str(label)] for label in own] or [0] * len(walk.names)
  notes, skipped = tuple(walk.notes()), walk.skipped()
  return Listing(str(root), walk.names, chosen, list(names), notes, skipped, walk.members)


MAX_CLASSES = 1 << 16
"""Largest number of classes; each class needs a row of the label embedding."""


def find_pictures(root: Path, where: str) -> Listing:
  """List every picture below a folder or in an archive; there are no classes.

  Raises:
    UserError: no such folder, no pictures, dangling links, or unreadable folders.
  """
  walk = _walk(root, where)
  num, notes = len(walk.names), tuple(walk.notes())
  return Listing(str(root), walk.names, [0] * num, [], notes, walk.skipped(), walk.members)


def _walk(root: Path, where: str, strict: bool = True) -> "Walk":
  if find_archive(root, where) is None and not root.is_dir():
    raise UserError(f"{where}: no such folder; give a folder of pictures, or a .zip or .tar")
  walk = Walk(str(root))
  if strict:
    walk.check(where)
  if not walk.names:
    there = "".join(f"; {note}" for note in walk.notes())
    raise UserError(f"{where}: no pictures there; it needs files such as {EXAMPLES}{there}")
  return walk


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
  top = _top(root, where)
  below, files = top["folder"], top["file"]
  tests = [name for name in below if name.lower() in TEST_NAMES]
  train = [name for name in below if name.lower() == "train"]
  if not tests and not train:
    return {}
  if top["dangling"]:
    raise UserError(
      f"{where}: {count_in_words(top['dangling'], *DANGLING)}; repair them, or move them away"
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
      "them: `data.path=ROOT/train` `data.test_path=ROOT/test`"
    )
  return {"train": root / train[0]} | ({"test": root / tests[0]} if tests else {})


def _top(root: Path, where: str) -> dict[str, list[str]]:
  """Return kind -> sorted names of a folder's contents, without hidden ones."""
  kinds: dict[str, list[str]] = {"folder": [], "file": [], "dangling": [], "special": []}
  if (inside := archive_splits(root, where)) is not None:
    for name in inside:
      if not is_hidden(name.rstrip("/")):
        kinds["folder" if name.endswith("/") or root.is_dir() else "file"].append(name.rstrip("/"))
  elif root.is_dir():
    _scan(root, kinds)
  return {kind: sorted(names) for kind, names in kinds.items()}


def _scan(root: Path, kinds: dict[str, list[str]]) -> None:
  with os.scandir(root) as entries:
    for entry in entries:
      if not is_hidden(entry.name):
        kinds[kind_of_entry(entry)].append(entry.name)
