"""Work in chunks that survive the process: a chunk on disk is not computed again."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from diffusion_jax import parallel
from diffusion_jax.core import files, npz
from diffusion_jax.runs import signals
from diffusion_jax.types import UserError

Arrays = Mapping[str, np.ndarray]


def digest(facts: Any) -> str:
  """Return a short hash of JSON values: equal work has an equal hash, whatever its name."""
  text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
  return hashlib.sha256(text.encode()).hexdigest()[:12]


class Chunks:
  """Numbered chunks of one work, each a file that is either whole or absent.

  Several processes must share the folder: a chunk is read if all of them find it, else all compute
  it together.

  Args:
    folder: folder of the chunks; it is created. Its name should contain the work's `digest`, so
      that other work never finds these chunks.
    facts: description of the work, written next to the chunks for people.
    is_shared: true if all processes see the folder; otherwise only process 0 uses it.

  Attributes:
    num_restored: number of chunks of an earlier process that `get` has read.
    made: numbers of the chunks that `get` has computed.
  """

  def __init__(self, folder: Path, facts: Mapping[str, Any], is_shared: bool = True):
    self.folder, self.num_restored = folder, 0
    self.made: set[int] = set()
    if jax.process_index():
      if is_shared:
        folder.mkdir(parents=True, exist_ok=True)
      return
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(".*.part*"):  # left by a killed process
      left.unlink(missing_ok=True)
    text = json.dumps(facts, indent=2, sort_keys=True) + "\n"
    files.write_whole(folder / "facts.json", text)

  def get(
    self, chunk: int, num_examples: int, compute: Callable[[], Arrays]
  ) -> dict[str, np.ndarray]:
    """Return chunk `chunk`, read from disk if it is intact there, else computed and written.

    Args:
      chunk: number of the chunk.
      num_examples: required number of examples; a longer chunk is cut, a shorter one is computed
        again.
      compute: function that returns arrays with the examples on the leading axis.

    Raises:
      StoppedEarly: a signal has requested a stop; earlier chunks are on disk.
    """
    signals.stop_here()
    stored = self._read(self.folder / f"{chunk:06d}.npz", num_examples)
    if parallel.all_true(stored is not None):
      assert stored is not None
      self.num_restored += chunk not in self.made
      return stored
    self.made.add(chunk)
    arrays = {name: np.asarray(value) for name, value in compute().items()}
    if jax.process_index() == 0:
      self._write(self.folder / f"{chunk:06d}.npz", arrays)
    return {name: value[:num_examples] for name, value in arrays.items()}

  def missing(self, every: Iterable[int]) -> list[int]:
    """Return the numbers of chunks that are not on process 0's disk, in order."""
    is_first = jax.process_index() == 0
    there = sorted(path.stem for path in self.folder.glob("*.npz")) if is_first else []
    there = set(parallel.broadcast_object(there))
    return [chunk for chunk in every if f"{chunk:06d}" not in there]

  def ensure(self, chunk: int, num_examples: int, compute: Callable[[], Arrays]) -> bool:
    """Put chunk `chunk` on process 0's disk; return True if it had to be computed.

    Args:
      chunk, num_examples, compute: as in `get`.

    Raises:
      StoppedEarly: as in `get`.
    """
    signals.stop_here()
    path = self.folder / f"{chunk:06d}.npz"
    there = parallel.broadcast_object(
      jax.process_index() == 0 and self._read(path, num_examples) is not None
    )
    if there:
      return False
    arrays = {name: np.asarray(value)[:num_examples] for name, value in compute().items()}
    if jax.process_index() == 0:
      self._write(path, arrays)
    return True

  def read(self, chunk: int, num_examples: int) -> dict[str, np.ndarray]:
    """Return chunk `chunk`, which must be on this process's disk.

    Raises:
      UserError: the chunk is missing or damaged.
    """
    path = self.folder / f"{chunk:06d}.npz"
    stored = self._read(path, num_examples)
    if stored is None:
      raise UserError(f"{path} cannot be read; the same command makes it again")
    return stored

  def _read(self, path: Path, num_examples: int) -> dict[str, np.ndarray] | None:
    """Return None for a chunk that is missing, short or damaged, by the archive's CRC-32."""
    if not path.is_file():
      return None
    try:
      arrays = npz.read_npz(path, str(path))
    except UserError:
      print(f"{path} is damaged: computed again")
      return None
    if min((len(value) for value in arrays.values()), default=0) < num_examples:
      return None
    return {name: value[:num_examples] for name, value in arrays.items()}

  def _write(self, path: Path, arrays: Arrays) -> None:
    with files.atomic_write(path) as file:
      np.savez(file, allow_pickle=False, **arrays)
      file.flush()
      os.fsync(file.fileno())


def pieces(total: int, size: int) -> list[tuple[int, int, int]]:
  """Return (number, first example, examples) of each chunk of `size` out of `total`."""
  return [(i, first, min(size, total - first)) for i, first in enumerate(range(0, total, size))]


def remove(folder: Path) -> None:
  """Delete the chunks of finished work."""
  if jax.process_index() == 0:
    shutil.rmtree(folder, ignore_errors=True)
