"""Progress of an encoding: the finished part after an interruption, and its settings."""

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
  """Return the folder of unfinished latents."""
  return out.absolute().with_name(f".{out.absolute().name}.part")


def latents_lock_file(out: Path) -> Path:
  """Return the lock file of a folder of latents."""
  return out.absolute().with_name(f".{out.absolute().name}.lock")


def check_latents_out(out: Path) -> None:
  """Raise a UserError if the output folder exists or cannot be written."""
  try:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
      raise UserError(f"--out={out} already exists; choose another or delete it")
  except OSError as error:
    raise UserError(f"--out={out} cannot be written ({error.strerror}); choose another") from error
  make_writable(out.absolute().parent, f"--out={out}")
  check_own_folder(part_folder(out), f"--out={out}")


def left_encoding(out: Path, asked: Mapping[str, Any]) -> dict[str, Any] | None:
  """Return `made_from` of an unfinished encoding of the same command, or None.

  Args:
    out: the output folder of the command.
    asked: settings of the command, as JSON values.

  Raises:
    UserError: it was made by a different command and contains latents.
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
  """Compare the settings of an unfinished output's command with those of this one.

  Args:
    out: the output path of the command.
    part: the unfinished output.
    theirs, ours: flags and config fields by name.
    is_begun: True if the output contains finished work, which would be lost.
    what: kind of output, for the message.

  Returns:
    True if the settings are equal.

  Raises:
    UserError: they differ and the output contains finished work.
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
  """Return "facts" of an unfinished folder and images "done" per split; None without one."""
  try:
    content = json.loads((part / PROGRESS).read_text())
    is_whole = all(isinstance(content[n], dict) for n in ("facts", "done"))
    return content if is_whole and "made_from" in content["facts"] else None
  except (OSError, ValueError, TypeError, KeyError):
    return None


def begin_encoding(out: Path, encoded: Any) -> dict[str, int]:
  """Create the unfinished folder, or continue one of the same images, weights and batches.

  Returns:
    Split -> number of encoded images.

  Raises:
    UserError: the folder cannot be written.
  """
  part, facts = part_folder(out), json.loads(json.dumps(facts_of(encoded)))
  progress = read_progress(part)
  if progress is not None and progress["facts"] == facts:
    done = {split: int(progress["done"].get(split, 0)) for split in encoded.sources}
    print(f"continuing after {sum(done.values()):,} images")
    return done
  if progress is not None and any(progress["done"].values()):
    print(f"{part} has a part made from other weights or images: starting over")
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
  """Return everything that determines the latents of an `Encoded`, as JSON values."""
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
  """Record atomically the number of images per split on disk."""
  write_whole(part / PROGRESS, json.dumps({"facts": facts, "done": done}))
