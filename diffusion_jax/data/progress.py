"""Progress of an encoding: the part that an interrupted program has left, and its settings."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.data.source import fingerprint

PROGRESS = "progress.json"


def part_folder(out: Path) -> Path:
  """Return the place of an unfinished folder of latents."""
  return out.absolute().with_name(f".{out.absolute().name}.part")


def left_over(out: Path) -> dict[str, Any] | None:
  """Return `made_from` of an interrupted encoding; None if there is none."""
  progress = read_progress(part_folder(out))
  return None if progress is None else progress["facts"]["made_from"]


def read_progress(part: Path) -> dict[str, Any] | None:
  """The "facts" of an unfinished folder and the images "done" of each split; None without one."""
  try:
    found = json.loads((part / PROGRESS).read_text())
    return found if {"facts", "done"} <= set(found) and "made_from" in found["facts"] else None
  except (OSError, ValueError, TypeError):
    return None


def facts_of(encoded: Any) -> dict[str, Any]:
  """All that decides the latents of an `Encoded`; JSON values."""
  return {
    "splits": {split: fingerprint(source) for split, source in encoded.sources.items()},
    "shape": encoded.shape,
    "weights": hashlib.sha256(np.ascontiguousarray(encoded.weights).tobytes()).hexdigest(),
    "autoencoder": {name: dict(section) for name, section in encoded.autoencoder.items()},
    "made_from": dict(encoded.made_from),
    "batch_size": encoded.batch_size,
  }


def write_progress(part: Path, facts: Mapping[str, Any], done: Mapping[str, int]) -> None:
  """Records in one move how many images of each split are on disk."""
  new = part / f".{PROGRESS}.part"
  new.write_text(json.dumps({"facts": facts, "done": done}))
  os.replace(new, part / PROGRESS)
