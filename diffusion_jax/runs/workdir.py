"""Create, move and lock a run's folder, and mark its run as finished."""

import contextlib
import json
import math
import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from diffusion_jax import parallel
from diffusion_jax.checkpoints.step_folders import PARTS, saved_steps
from diffusion_jax.core import buckets, files
from diffusion_jax.core.buckets import checkpoint_folder
from diffusion_jax.core.config import split_argument
from diffusion_jax.core.files import write_json
from diffusion_jax.runs.experiment import Experiment
from diffusion_jax.runs.leases import leased
from diffusion_jax.runs.stored import check_continues, load_experiment, stored_config
from diffusion_jax.types import UserError

LOCK_PATIENCE_SEC = 20.0

LAUNCHERS_FILES = (".out", ".err", ".log", ".sh", ".sbatch", ".slurm", ".py")
"""Suffixes of files that precede a run: logs, scripts and the run's config file."""

LAUNCHERS_FOLDERS = ("log", "logs", "slurm", "wandb", "profile", "lost+found")
"""Folders that launchers, schedulers and file systems make there."""


def default_workdir(config: str) -> Path:
  """Return runs/<stem of the config file>."""
  return files.run_folder(f"runs/{split_argument(config)[0].stem}")


def choose_workdir(config: str, experiment: Experiment) -> Path:
  """Return the default folder of a run: runs/CONFIG, or runs/CONFIG_DATA on other data.

  A run of such data that an older version has put into runs/CONFIG continues there.

  Args:
    config: the config's name or file.
    experiment: the config with its overrides.
  """
  folder = default_workdir(config)
  now, own = _data_word(experiment.to_dict()["data"]), None
  with contextlib.suppress(UserError):
    own = _data_word(load_experiment(config, ()).to_dict()["data"])
  if own in (now, None):
    return folder
  with contextlib.suppress(UserError, OSError, KeyError):
    if _data_word(stored_config(folder)["data"]) == now:
      check_continues(folder, experiment)
      return folder
  return folder.with_name(f"{folder.name}_{now}")


def _data_word(data: Mapping[str, Any]) -> str:
  """Return a word for a data set: its own name, or that of its folder or file, or its kind's."""
  named = data.get("dataset") or Path(str(data.get("path") or "")).name or data["name"]
  return re.sub(r"\W+", "_", str(named)).strip("_") or str(data["name"])


def prepare_workdir(workdir: Path, fresh: bool) -> None:
  """Create the run's folder; with `fresh` an older run is moved away, never deleted.

  A folder that is a link stays one: the run is moved at the link's target, and the new one is
  created there.

  Raises:
    UserError: the folder cannot be created or written, or is in use for something else.
  """
  try:
    folder = Path(os.path.realpath(workdir)) if workdir.is_symlink() else workdir
    if folder.is_dir() and not _holds_run(folder):
      _check_unused(folder)
    elif fresh and folder.exists():
      _move_aside(folder)
  except OSError as error:
    raise UserError(
      f"`workdir={workdir}` cannot be written ({error.strerror}); choose another `workdir`"
    ) from error
  files.make_writable(folder, f"`workdir={workdir}`", "choose another `workdir`")


def _holds_run(folder: Path) -> bool:
  """Return whether a run has begun in a folder; other programs write config.json too."""
  checkpoints = checkpoint_folder(folder)
  steps = [checkpoints / str(step) for step in saved_steps(checkpoints)]
  if (folder / ".lock").exists() or any((s / p).exists() for s in steps for p in PARTS):
    return True
  try:
    return "generative" in json.loads((folder / "config.json").read_text())
  except (OSError, ValueError, TypeError):
    return False


def _check_unused(folder: Path) -> None:
  """Raise an error for a folder of other files, among which a run would be lost.

  Raises:
    UserError: a file is not one that launchers and schedulers put there before a run begins.
  """
  foreign = [p.name for p in folder.iterdir() if not _may_precede_run(p)]
  if foreign:
    shown = ", ".join(sorted(foreign)[:3]) + ", ..." * (len(foreign) > 3)
    raise UserError(
      f"`workdir={folder}`: the folder holds no run but other files ({files.printable(shown)}); "
      f"choose another `workdir`, e.g. `workdir={folder / 'run'}`"
    )


def _may_precede_run(path: Path) -> bool:
  """Return whether a launcher, a scheduler or the file system may put this into a new folder."""
  if path.name.startswith("."):
    return True
  if path.is_dir():
    return path.name in LAUNCHERS_FOLDERS and not path.is_symlink()
  return path.suffix in LAUNCHERS_FILES


def _move_aside(workdir: Path) -> None:
  if not isinstance(checkpoint_folder(workdir), Path):
    raise UserError(
      f"`fresh=True`: a job of several processes cannot move {workdir}, a run in a bucket; choose "
      "another `workdir`"
    )
  if Path.cwd().is_relative_to(workdir.resolve()):
    raise UserError(
      f"`fresh=True`: cannot move {workdir}, the current folder; start from another one"
    )
  aside = files.free_name(workdir)
  with _lock(workdir, "training"):  # do not move a run during its training
    workdir.rename(aside)
  print(f"moved the old run to {aside}")


@contextlib.contextmanager
def lock(workdir: Path, doing: str = "training") -> Iterator[None]:
  """Keep a second job out of the folder; the lock ends with the process, for whatever reason.

  Args:
    workdir: folder of the run.
    doing: activity of the job, for the second job's message.

  Raises:
    UserError: another job holds the lock.
  """
  with contextlib.ExitStack() as stack:
    parallel.on_process_0(lambda: stack.enter_context(_lock(workdir, doing)))
    if jax.process_count() > 1:  # each host has its own copy of a bucket
      parallel.agree(lambda: buckets.refresh_copy(workdir))
    yield


@contextlib.contextmanager
def _lock(workdir: Path, doing: str) -> Iterator[None]:
  # A restarted job may find the previous job's process 0 still ending on another host.
  patience = LOCK_PATIENCE_SEC if jax.process_count() > 1 else 0.0
  with files.open_own(workdir / ".lock") as file:
    lock = _lock_within(patience, file)
    if lock == "not supported":
      print(f"{workdir}: this file system has no locks; start no second job there", flush=True)
    if lock == "held":
      file.seek(0)
      holder = file.read().strip() or "unknown"
      raise UserError(
        f"`workdir={workdir}`: process {holder} is already {doing} there; stop it or choose "
        "another `workdir`"
      )
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    with leased(workdir, doing):
      yield


def _lock_within(seconds: float, file: Any) -> str:
  deadline = time.monotonic() + seconds
  while (lock := files.try_lock(file)) == "held" and time.monotonic() < deadline:
    time.sleep(0.5)
  return lock


def write_final(workdir: Path, step: int, values: Mapping[str, float]) -> None:
  """Write held_out.json, the mark of a finished run: its step and held-out metrics."""
  finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
  if jax.process_index() == 0:
    write_json(workdir / "held_out.json", {"step": step, **finite})


def drop_later_final(workdir: Path, step: int) -> None:
  """Delete held_out.json if it is from a step that the run will repeat."""
  path = workdir / "held_out.json"
  with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
    if json.loads(path.read_text())["step"] > step:
      path.unlink()


def is_finished(workdir: Path, step: int, num_steps: int) -> bool:
  """Return whether the last step is saved and its metrics are written."""
  try:
    return step >= num_steps and json.loads((workdir / "held_out.json").read_text())["step"] == step
  except (OSError, ValueError, KeyError, TypeError):
    return False
