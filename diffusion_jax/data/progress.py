"""Progress of an encoding: the part that an interrupted program has left, and its settings."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.core.files import check_own_folder, make_writable, write_whole
from diffusion_jax.data.source import fingerprint
from diffusion_jax.types import UserError

PROGRESS = "progress.json"


def part_folder(out: Path) -> Path:
  """Return the place of an unfinished folder of latents."""
  return out.absolute().with_name(f".{out.absolute().name}.part")


def latents_lock_file(out: Path) -> Path:
  """Return the file that is locked while a folder of latents is made."""
  return out.absolute().with_name(f".{out.absolute().name}.lock")


def check_latents_out(out: Path) -> None:
  """Refuse a folder with something in it, or a place that cannot be written."""
  try:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
      raise UserError(f"--out={out} is there already; choose another or delete it")
  except OSError as error:
    raise UserError(f"--out={out} cannot be written ({error.strerror}); choose another") from error
  make_writable(out.absolute().parent, f"--out={out}")
  check_own_folder(part_folder(out), f"--out={out}")


def left_encoding(out: Path, asked: Mapping[str, Any]) -> dict[str, Any] | None:
  """Return `made_from` of an encoding that the same command has left; None if there is none.

  Args:
    out: of the command.
    asked: what it was told, JSON values.

  Raises:
    UserError: another command has left it, with latents in it.
  """
  part = part_folder(out)
  progress = read_progress(part)
  if progress is None:
    return None
  is_begun = any(progress["done"].values())
  is_same = check_asked(out, part, progress["facts"].get("asked", {}), asked, is_begun, "latents")
  return progress["facts"]["made_from"] if is_same else None


def check_asked(
  out: Path, part: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any], is_begun: bool,
  what: str = "images",
) -> bool:  # fmt: skip
  """Compare what the command that left an unfinished output was told with what this one is.

  Args:
    out: of the command.
    part: the unfinished output.
    theirs, ours: flags and fields of the config by name.
    is_begun: whether anything is finished in it, which would be lost.
    what: is made.

  Returns:
    Whether they are the same.

  Raises:
    UserError: they differ, and it is begun.
  """
  ours = json.loads(json.dumps(ours))
  other = [n for n in {**theirs, **ours} if theirs.get(n) != ours.get(n)]
  if other and is_begun:
    changes = "; ".join(f"{n}: {theirs.get(n)} -> {ours.get(n)}" for n in other)
    raise UserError(
      f"--out={out}: a command that was cut off has left a part of other {what} there "
      f"({changes}); repeat that command, delete {part}, or choose another --out"
    )
  return not other


def read_progress(part: Path) -> dict[str, Any] | None:
  """The "facts" of an unfinished folder and the images "done" of each split; None without one."""
  try:
    found = json.loads((part / PROGRESS).read_text())
    is_whole = all(isinstance(found[n], dict) for n in ("facts", "done"))
    return found if is_whole and "made_from" in found["facts"] else None
  except (OSError, ValueError, TypeError, KeyError):
    return None


def begin_encoding(out: Path, encoded: Any) -> dict[str, int]:
  """Make the unfinished folder, or go on with one of the same images, weights and batches.

  Returns:
    Split -> images that are encoded already.

  Raises:
    UserError: the place cannot be written.
  """
  part, facts = part_folder(out), json.loads(json.dumps(facts_of(encoded)))
  found = read_progress(part)
  if found is not None and found["facts"] == facts:
    done = {split: int(found["done"].get(split, 0)) for split in encoded.sources}
    print(f"goes on after {sum(done.values()):,} images")
    return done
  if found is not None and any(found["done"].values()):
    print(f"{part} holds a part made from other weights or images: starting over")
  try:
    shutil.rmtree(part, ignore_errors=True)
    part.unlink(missing_ok=True)  # a file, or a link
    part.mkdir(parents=True)
    for split, source in encoded.sources.items():
      shape = (len(source), *encoded.shape)
      np.lib.format.open_memmap(part / f"{split}.npy", "w+", np.float32, shape)
      np.lib.format.open_memmap(part / f"{split}_labels.npy", "w+", np.int32, (len(source),))
    write_progress(part, facts, {})
  except OSError as error:
    raise UserError(f"--out={out} cannot be written ({error.strerror}); choose another") from error
  return dict.fromkeys(encoded.sources, 0)


def facts_of(encoded: Any) -> dict[str, Any]:
  """All that decides the latents of an `Encoded`; JSON values."""
  return {
    "splits": {split: fingerprint(source) for split, source in encoded.sources.items()},
    "shape": encoded.shape,
    "weights": hashlib.sha256(np.ascontiguousarray(encoded.weights).tobytes()).hexdigest(),
    "autoencoder": {name: dict(section) for name, section in encoded.autoencoder.items()},
    "made_from": dict(encoded.made_from),
    "batch_size": encoded.batch_size,
    "asked": dict(encoded.asked),
  }


def write_progress(part: Path, facts: Mapping[str, Any], done: Mapping[str, int]) -> None:
  """Records in one move how many images of each split are on disk."""
  write_whole(part / PROGRESS, json.dumps({"facts": facts, "done": done}))
