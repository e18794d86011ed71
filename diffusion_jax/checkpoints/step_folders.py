"""List, move and delete the folders of saved steps, without reading them."""

import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from etils import epath

from diffusion_jax.core import bucket_files, storage
from diffusion_jax.types import UserError

Place = Path | epath.Path
"""Folder on this machine or in a bucket."""

PARTS = ("state", "meta")
"""Folders within the folder of a step."""


def absolute(folder: Place) -> Place:
  """Return a folder's absolute path, or its address in a bucket, which is absolute."""
  return folder.absolute() if isinstance(folder, Path) else folder


def explain_write(error: BaseException, folder: Place) -> str | None:
  """Describe a failure to write a folder in one line, or return None; see `core.storage`."""
  if isinstance(folder, Path):
    return storage.explain_storage(error, folder)
  reason = bucket_files.explain(error)
  return f"{folder} cannot be written ({reason}); the same command continues"


class Damage(NamedTuple):
  """A step that could not be restored, and the reason."""

  step: int
  reason: str


class Unreadable(UserError):
  """Raised if no step, or not the requested one, can be read.

  Args:
    directory: folder of the checkpoints.
    damaged: steps that were tried, newest first, at least one.
    advice: next action for the user.
  """

  def __init__(self, directory: Place, damaged: Sequence[Damage], advice: str):
    (step, reason), *older = damaged
    also = f", nor can {_listed(d.step for d in older)}" if older else ""
    super().__init__(f"{directory}: checkpoint {step} cannot be read ({reason}){also}; {advice}")
    self.damaged = damaged


def _listed(steps: Iterable[int], most: int = 5) -> str:
  """Return "5, 4, 3 and 2 older ones"."""
  numbers = list(steps)
  more = f" and {len(numbers) - most} older ones" if len(numbers) > most else ""
  return ", ".join(map(str, numbers[:most])) + more


def saved_steps(directory: Place) -> list[int]:
  """Return the steps that have a folder, in ascending order, without reading the folders.

  A bucket has folders of unfinished steps too; those lack the mark of a whole one.
  """
  if not directory.is_dir():
    return []
  folders = [p for p in directory.iterdir() if re.fullmatch("0|[1-9][0-9]*", p.name) and p.is_dir()]
  if not isinstance(directory, Path):
    folders = [p for p in folders if (p / bucket_files.MARK).exists()]
  return sorted(int(p.name) for p in folders)


def quarantine(directory: Place, damaged: tuple[Damage, ...]) -> list[Place]:
  """Move damaged steps to checkpoints_damaged/ next to the folder, to make room for new ones."""
  aside = directory.with_name(directory.name + "_damaged")
  moved = []
  for damage in damaged:
    aside.mkdir(exist_ok=True)
    i = 0
    while (target := aside / f"{damage.step}{f'.{i}' * bool(i)}").exists():
      i += 1
    if isinstance(directory, Path):
      shutil.move(directory / str(damage.step), target)
    else:
      bucket_files.move_folder(directory / str(damage.step), target)
    moved.append(target)
  return moved


def delete_after(directory: Place, step: int) -> list[int]:
  """Delete the checkpoints after a step; if interrupted, each one is either whole or gone."""
  later = [s for s in saved_steps(directory) if s > step]
  for gone in later:
    if not isinstance(directory, Path):
      bucket_files.delete_mark(f"{directory}/{gone}/{bucket_files.MARK}")
      (directory / str(gone)).rmtree(missing_ok=True)
      continue
    aside = directory / f".deleted_{gone}"
    shutil.rmtree(aside, ignore_errors=True)
    shutil.rmtree((directory / str(gone)).rename(aside), ignore_errors=True)
  return later
