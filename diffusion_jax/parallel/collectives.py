"""Collectives over a job's processes: gather, broadcast, agree, and run in order.

All processes must call a collective at the same point of the program.
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from diffusion_jax.core import buckets
from diffusion_jax.core.files import write_whole
from diffusion_jax.parallel import watchdog
from diffusion_jax.types import UserError

T = TypeVar("T")

FETCH_SEC = 24 * 3600.0
"""Seconds that data may take to be downloaded by the slowest process of a job."""


def is_first() -> bool:
  """Return whether this is process 0, which writes the shared files."""
  return jax.process_index() == 0


def all_gather_objects(value: Any) -> list[Any]:
  """Return the JSON value of each process, in the order of the processes.

  A collective: all processes must call it at the same point.
  """
  if jax.process_count() == 1:
    return [value]
  text = json.dumps(value).encode()
  length = int(_gather(np.array([len(text)], np.int32)).max())
  gathered = _gather(np.frombuffer(text.ljust(length), np.uint8))
  watchdog.beat()
  return [json.loads(bytes(row)) for row in gathered]


def _gather(row: np.ndarray) -> np.ndarray:
  """Gather one row per process, [P, ...]."""
  return np.asarray(multihost_utils.process_allgather(row)).reshape(-1, *row.shape)


def broadcast_object(value: Any) -> Any:
  """Return the JSON value of process 0 on every process; a collective."""
  return all_gather_objects(value if is_first() else None)[0]


class Barrier:
  """Wrap a barrier, and keep the error with which a thread of this process arrives.

  A thread that fails may still reach the barrier while it unwinds, and then other processes wait
  for it in vain.

  Args:
    meet: (key, timeout_ms) -> None, which returns when all processes have called it.
  """

  def __init__(self, meet: Callable[..., None]):
    self._meet = meet
    self.error: BaseException | None = None

  def __call__(self, *, key: str, timeout_ms: int) -> None:
    """Wait at the barrier; if called in a `finally`, first store the exception being raised."""
    self.error = self.error or sys.exc_info()[1]
    self._meet(key=key, timeout_ms=timeout_ms)


def all_true(value: bool) -> bool:
  """Return whether `value` is true on every process; a collective."""
  return all(all_gather_objects(bool(value)))


def agree(function: Callable[[], T]) -> T:
  """Run a function on every process; if it fails on one, raise its message on all of them.

  Otherwise the remaining processes would wait for one that has already failed. A collective,
  and the function must contain no collective itself.

  Raises:
    UserError: the function raised an error on at least one process.
  """
  result, error = None, None
  try:
    result = function()
  except Exception as raised:
    error = raised
  text = buckets.with_addresses(str(error))  # the others have copies of their own
  says = all_gather_objects(None if error is None else [type(error).__name__, text])
  failed = [(process, text) for process, text in enumerate(says) if text]
  if error is not None and not isinstance(error, UserError):
    raise error
  if failed:
    process, (kind, text) = failed[0]
    others = f"process {process}: " if jax.process_count() > 1 and error is None else ""
    if error is not None:
      raise error
    raise UserError(f"{others}{text if kind == 'UserError' else f'{kind}: {text}'}")
  return result  # pyright: ignore[reportReturnType]


def on_process_0(function: Callable[[], Any]) -> None:
  """Run a function on process 0 only; if it fails there, raise its message on all processes."""
  agree(lambda: function() if is_first() else None)


def first_says(function: Callable[[], Any]) -> Any:
  """Run a function on process 0 only; return its JSON result on all processes.

  Raises:
    UserError: the function raised an error on process 0.
  """
  return broadcast_object(agree(lambda: function() if is_first() else None))


def process_0_first(function: Callable[[], T]) -> T:
  """Run a function on process 0, then on the others, which find what process 0 has stored."""
  if jax.process_count() == 1:
    return function()
  results: list[T] = []
  agree(lambda: results.append(function()) if is_first() else None)
  agree(lambda: None if is_first() else results.append(function()))
  return results[0]


def fetch_at_once(fetch: Callable[[], Any]) -> None:
  """Run a download to the machine of each process on all of them, however long it lasts."""
  if jax.process_count() == 1:
    return
  with watchdog.allow(FETCH_SEC):
    agree(fetch)


def share_file(path: Path) -> None:
  """Copy a file of process 0 to the other processes, each of which has its own storage."""
  if jax.process_count() == 1:
    return
  data = path.read_bytes() if is_first() else b""
  size = broadcast_object(len(data))
  buffer = np.frombuffer(data.ljust(size, b"\0"), np.uint8)
  content = np.asarray(multihost_utils.broadcast_one_to_all(buffer)).tobytes()
  if not is_first() and not (path.is_file() and path.read_bytes() == content):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content)
  watchdog.beat()


def check_shared(folder: Path) -> None:
  """Raise an error if the processes do not share a folder.

  Raises:
    UserError: a process cannot see a file that process 0 wrote there.
  """
  if jax.process_count() == 1:
    return
  place = agree(lambda: buckets.shared_place(folder))
  probe = place / f".shared_{broadcast_object(os.urandom(8).hex())}"
  on_process_0(lambda: probe.write_bytes(b"1"))
  seen = all_gather_objects(_appears(probe))
  if is_first():
    probe.unlink(missing_ok=True)
  blind = [process for process, there in enumerate(seen) if not there]
  if blind:
    raise UserError(
      f"`workdir={folder}`: process {', '.join(map(str, blind))} does not see the files "
      "of process 0 there; use a folder that all hosts share"
    )


def _appears(path: Any, patience_sec: float = 10.0) -> bool:
  """Return whether a file exists, after waiting: network file systems show it with a delay."""
  deadline = time.monotonic() + patience_sec
  while not path.exists() and time.monotonic() < deadline:
    with contextlib.suppress(OSError):
      os.listdir(path.parent)  # makes a network file system look again
    time.sleep(0.1)
  return path.exists()
