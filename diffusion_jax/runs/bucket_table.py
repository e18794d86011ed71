"""The runs in a bucket: their small files in the user's cache, for the table of runs."""

import contextlib
import hashlib
import json
import re
import shutil
from pathlib import Path

from diffusion_jax.core import bucket_files, files
from diffusion_jax.core.bucket_files import Sign, bucket_errors
from diffusion_jax.runs import leases

FACTS = re.compile(r"(^|/)(config\.json|held_out\.json|metrics\.jsonl|eval/\d+/metrics\.json)$")
"""Files that the table reads."""


def copy_facts(url: str) -> Path:
  """Return a folder with the files of a bucket's runs that the table reads.

  Of checkpoints it has empty folders. Files that are there from an earlier table, and have not
  changed in the bucket, are not downloaded again.

  Args:
    url: address of a folder with runs, or of a run.

  Raises:
    UserError: the bucket cannot be used on this machine.
  """
  url = url.rstrip("/")
  digest = hashlib.sha256(url.encode()).hexdigest()[:16]
  home = files.cache_folder() / "buckets" / f"table_{digest}"
  folder = home / url.rpartition("/")[2]
  folder.mkdir(parents=True, exist_ok=True)
  with bucket_errors(f"{url} cannot be read"), files.locked(home / "lock", patience_sec=60.0):
    found = bucket_files.list_files(url)
    wanted = {name: sign for name, sign in found.items() if FACTS.search(name)}
    known = _known(home)
    gone = [name for name in known if name not in wanted]
    for name in gone:
      (folder / name).unlink(missing_ok=True)
    changed = [n for n, sign in wanted.items() if known.get(n) != sign or not (folder / n).exists()]
    for _ in bucket_files.at_once(
      lambda name: bucket_files.fetch_file(f"{url}/{name}", folder / name), changed
    ):
      pass
    files.write_json(home / "known.json", wanted)
    _show_steps(folder, {Path(name).parent for name in found if bucket_files.is_mark(name)})
  return folder


def running(url: str, names: list[str]) -> set[str]:
  """Return the names of the runs whose jobs have given a sign of life lately."""
  notes = [f"{url.rstrip('/')}/{name}" for name in names]
  alive = bucket_files.at_once(leases.is_alive, notes)
  return {name for name, is_alive in zip(names, alive, strict=True) if is_alive}


def _known(home: Path) -> dict[str, Sign]:
  with contextlib.suppress(OSError, ValueError):
    stored = json.loads((home / "known.json").read_text())
    return {name: (size, version) for name, (size, version) in stored.items()}
  return {}


def _show_steps(folder: Path, steps: set[Path]) -> None:
  """Make an empty folder for each checkpoint, and remove folders of others."""
  for left in [*folder.glob("checkpoints"), *folder.glob("**/*/checkpoints")]:
    shutil.rmtree(left)
  for step in steps:
    if step.parent.name == "checkpoints":
      (folder / step).mkdir(parents=True, exist_ok=True)
  for empty in sorted((p for p in folder.rglob("*") if p.is_dir()), reverse=True):
    if empty.parent.name != "checkpoints":
      with contextlib.suppress(OSError):  # not empty
        empty.rmdir()
