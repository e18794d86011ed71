"""Keep jobs of other machines out of a run in a bucket, which has no locks."""

import contextlib
import hashlib
import json
import secrets
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from diffusion_jax.core import bucket_files, buckets, files
from diffusion_jax.core.bucket_files import bucket_errors
from diffusion_jax.types import UserError

BEAT_SEC = 10.0
"""Seconds between two signs of life of a job."""

NOTE = ".lease.json"
"""File of a run in a bucket, which the job that uses it changes as a sign of life."""

DEAD_AFTER_SEC = 45.0
"""Seconds without a sign of life after which a job counts as dead."""


@contextlib.contextmanager
def leased(folder: Path, doing: str) -> Iterator[None]:
  """Keep jobs of other machines out of a folder in a bucket; other folders need nothing.

  The job has a file there that it changes every few seconds. If it dies the changes end, and
  another job takes the folder after `DEAD_AFTER_SEC`; one on the same machine at once, because the
  lock of the copy tells that the job is dead.

  Args:
    folder: folder whose lock on this machine the caller holds.
    doing: activity of the job, for the second job's message.

  Raises:
    UserError: a job on another machine uses the folder.
  """
  copy = buckets.find_copy(folder)
  if copy is None:
    yield
    return
  where = buckets.with_addresses(str(folder.absolute()))
  note = f"{where}/{NOTE}"
  own = copy.home / f"lease_{hashlib.sha256(note.encode()).hexdigest()[:8]}"
  with bucket_errors(f"{where} cannot be used here"):
    held = bucket_files.read_file(note)
    if held is not None and not (own.exists() and own.read_text() in held.decode()):
      _wait(where, note, held)
      buckets.refresh_copy(folder)
    token = secrets.token_hex(8)
    files.write_whole(own, token)
    _beat(note, token, doing, 0)
    if token not in (bucket_files.read_file(note) or b"").decode():
      raise UserError(f"`workdir={where}`: another job has begun there at the same time; stop one")
  ended = threading.Event()
  thread = threading.Thread(target=_keep, args=(ended, note, token, doing), daemon=True)
  thread.start()
  try:
    yield
  finally:
    ended.set()
    thread.join(BEAT_SEC)
    buckets.upload_changes()
    with contextlib.suppress(Exception):
      bucket_files.delete_file(note)


def is_alive(run: str) -> bool:
  """Return whether the job that uses a run in a bucket has given a sign of life lately."""
  age = bucket_files.age_sec(f"{run}/{NOTE}")
  return age is not None and age < DEAD_AFTER_SEC


def _wait(where: str, note: str, held: bytes) -> None:
  """Wait until the job that has left a note counts as dead.

  Raises:
    UserError: it lives.
  """
  print(f"{where}: waiting to see whether the job of another machine lives", flush=True)
  deadline = time.monotonic() + DEAD_AFTER_SEC
  while time.monotonic() < deadline:
    time.sleep(DEAD_AFTER_SEC / 20)
    now = bucket_files.read_file(note)
    if now is None:
      return
    if now != held:
      doing = json.loads(now)["doing"]
      raise UserError(
        f"`workdir={where}`: a job of another machine is already {doing} there; stop it or choose "
        "another `workdir`"
      )


def _beat(note: str, token: str, doing: str, beats: int) -> None:
  text = json.dumps({"token": token, "doing": doing, "beats": beats})
  bucket_files.write_file(note, text.encode())


def _keep(ended: threading.Event, note: str, token: str, doing: str) -> None:
  beats = 0
  while not ended.wait(BEAT_SEC):
    beats += 1
    with contextlib.suppress(Exception):  # the uploads say what fails
      _beat(note, token, doing, beats)
