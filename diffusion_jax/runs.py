"""A run's folder, its exit codes, and how a binary starts and stops."""

import argparse
import contextlib
import fcntl
import json
import logging
import math
import os
import platform
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

import jax

from diffusion_jax import experiment as experiments
from diffusion_jax.config import Override, load_file, parse_override
from diffusion_jax.experiment import Experiment
from diffusion_jax.log import write_json
from diffusion_jax.meter import NonFinite
from diffusion_jax.types import UserError

DONE, FAILED, USER_ERROR, STOPPED_EARLY = 0, 1, 2, 75


class StoppedEarly(Exception):
  """The run was asked to stop; its state is saved."""


class Parser(argparse.ArgumentParser):
  """argparse whose errors are UserErrors, and that leaves --config.* to our own parser."""

  def __init__(self, prog: str, description: str | None):
    super().__init__(prog, description=description, allow_abbrev=False)

  def error(self, message: str) -> NoReturn:
    raise UserError(f"{message}; try python -m diffusion_jax.{self.prog} --help")

  def parse(self, argv: Sequence[str]) -> tuple[argparse.Namespace, list[Override]]:
    """Splits --config.section.field=value from the program's own flags."""
    overrides = [parse_override(a) for a in argv if a.startswith("--config.")]
    return self.parse_args([a for a in argv if not a.startswith("--config.")]), overrides


def run_main(main: Callable[[list[str]], int | None]) -> NoReturn:
  """Runs a binary's main and exits with the code that its outcome has.

  0 done; 2 the user must change something, one line and no traceback; 75 stopped early, the same
  command continues; 1 anything else, with its traceback.
  """
  logging.getLogger("absl").setLevel(logging.ERROR)  # orbax reports every file that it writes
  try:
    code = main(sys.argv[1:]) or DONE
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    code = USER_ERROR
  except StoppedEarly as stopped:
    print(stopped, flush=True)
    code = STOPPED_EARLY
  except KeyboardInterrupt:
    print("stopped at once; the same command goes on from the last checkpoint", file=sys.stderr)
    code = STOPPED_EARLY
  except Exception:
    traceback.print_exc()
    code = FAILED
  sys.stdout.flush()
  sys.stderr.flush()
  sys.exit(code)


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[], str | None]]:
  """SIGTERM and Ctrl-C set a flag instead of killing; a second one kills as usual.

  Yields:
    A function that returns the name of the signal that asked to stop, or None.
  """
  asked: list[str] = []

  def handle(number, frame):
    del frame
    asked.append(signal.Signals(number).name)
    print(f"\n{asked[0]}: saving, then stopping (again to stop at once)", flush=True)
    signal.signal(number, before[number])

  before = {n: signal.signal(n, handle) for n in (signal.SIGTERM, signal.SIGINT)}
  try:
    yield lambda: asked[0] if asked else None
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


def enable_compilation_cache() -> None:
  """Keeps compiled programs under the user's cache, unless JAX_COMPILATION_CACHE_DIR says where."""
  if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    jax.config.update("jax_compilation_cache_dir", str(Path(cache) / "diffusion_jax" / "xla"))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def load_experiment(config: str, overrides: Sequence[Override]) -> Experiment:
  """The experiment of a config file."""
  return experiments.load(load_file(config).to_dict(), overrides)


def stored_experiment(workdir: Path, overrides: Sequence[Override]) -> Experiment:
  """The experiment of a run's folder, with overrides.

  Raises:
    UserError: the folder is missing or holds no run.
  """
  return experiments.load(stored_config(workdir), overrides)


def stored_config(workdir: Path) -> dict[str, Any]:
  """Content of config.json."""
  path = workdir / "config.json"
  if not path.is_file():
    runs = sorted(str(p.parent) for p in Path("runs").glob("*/config.json"))
    listed = f" Runs here: {', '.join(runs)}." if runs else ""
    raise UserError(f"--workdir={workdir}: no run there (config.json is missing).{listed}")
  try:
    return json.loads(path.read_text())
  except ValueError as error:
    raise UserError(f"{path}: not JSON ({error}); restore it or start over with --fresh") from error


def default_workdir(config: str) -> Path:
  """runs/<the config file's stem>."""
  return Path("runs") / Path(config.partition(":")[0]).stem


def prepare_workdir(workdir: Path, fresh: bool) -> None:
  """Makes the run's folder; with `fresh` an older run is moved aside, never deleted.

  Raises:
    UserError: the folder cannot be made or written.
  """
  try:
    if fresh and workdir.exists() and any(workdir.iterdir()):
      aside = _free_name(workdir)
      workdir.rename(aside)
      print(f"moved the old run to {aside}")
    workdir.mkdir(parents=True, exist_ok=True)
    probe = workdir / f".write_test_{os.getpid()}"
    probe.touch()
    probe.unlink()
  except OSError as error:
    raise UserError(
      f"--workdir={workdir} cannot be written ({error.strerror}); choose another --workdir"
    ) from error


def _free_name(path: Path) -> Path:
  number = 1
  while (candidate := path.with_name(f"{path.name}.old{number}")).exists():
    number += 1
  return candidate


@contextlib.contextmanager
def lock(workdir: Path) -> Iterator[None]:
  """Keeps a second training process out of the folder; ends with the process, however it ends.

  Raises:
    UserError: another process holds it.
  """
  with (workdir / ".lock").open("a+") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
      file.seek(0)
      holder = file.read().strip() or "unknown"
      raise UserError(
        f"--workdir={workdir}: process {holder} is already training there; stop it or choose "
        "another --workdir"
      ) from None
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    yield


def check_continues(workdir: Path, experiment: Experiment) -> list[str]:
  """Compares the config of a run with that of its folder.

  Returns:
    The differences with which it can continue.

  Raises:
    UserError: differences with which it cannot.
  """
  fatal, harmless = experiments.differences(stored_config(workdir), experiment.to_dict())
  if fatal:
    raise UserError(
      f"{workdir} holds a run that this config cannot continue ({'; '.join(fatal)}); use another "
      "--workdir, or --fresh to move the old run aside"
    )
  return harmless


def check_same_data(workdir: Path, saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
  """Refuses to go on with other data than the run began with.

  Args:
    workdir: the run's folder.
    saved, now: name, num and fingerprint of the training split.

  Raises:
    UserError: the fingerprints differ.
  """
  if saved["fingerprint"] != now["fingerprint"]:
    raise UserError(
      f"{workdir} was trained on {saved['name']} ({saved['num']:,} images) with other content than "
      f"{now['name']} ({now['num']:,} images) has now; bring the data back, use another "
      "--workdir, or --fresh to move the old run aside"
    )


def explain_non_finite(error: NonFinite, saved: Sequence[int]) -> UserError:
  """What to say when a run stops for non-finite updates."""
  kept = f"the last good checkpoint is step {saved[-1]:,}" if saved else "no checkpoint was saved"
  return UserError(
    f"{error}, training.max_skipped_in_a_row in a row; {kept}; the same command continues there: "
    "lower --config.optimizer.learning_rate, clip with --config.optimizer.clip_norm, or look at "
    "the data"
  )


def write_config(workdir: Path, config: Mapping[str, Any]) -> None:
  """Writes config.json."""
  if jax.process_index() == 0:
    write_json(workdir / "config.json", config)


def write_final(workdir: Path, step: int, values: Mapping[str, float]) -> None:
  """Writes held_out.json, the mark of a finished run: its step and held-out figures."""
  finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
  if jax.process_index() == 0:
    write_json(workdir / "held_out.json", {"step": step, **finite})


def is_finished(workdir: Path, step: int, num_steps: int) -> bool:
  """Whether nothing is left to do: the last step is saved and its figures are written."""
  try:
    return step >= num_steps and json.loads((workdir / "held_out.json").read_text())["step"] >= step
  except (OSError, ValueError, KeyError):
    return False


def write_environment(workdir: Path) -> None:
  """Adds this start to environment.json: versions, devices, code revision, command."""
  path = workdir / "environment.json"
  try:
    starts = json.loads(path.read_text())["starts"]
  except (OSError, ValueError, KeyError):
    starts = []
  packages = ("diffusion_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
  starts.append(
    {
      "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
      "command": [sys.executable, *sys.orig_argv[1:]],
      "python": platform.python_version(),
      "packages": {name: _version(name) for name in packages},
      "platform": platform.platform(),
      "devices": [str(d) for d in jax.devices()],
      "device_kind": jax.devices()[0].device_kind,
      "num_processes": jax.process_count(),
      "git_revision": git_revision(),
    }
  )
  write_json(path, {"starts": starts})


def _version(name: str) -> str | None:
  try:
    return metadata.version(name)
  except metadata.PackageNotFoundError:
    return None


def git_revision() -> str | None:
  """The checkout's commit, with "-dirty" for uncommitted changes; None outside a checkout."""
  folder = Path(__file__).parent
  command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40"]
  try:
    tracked = subprocess.run(
      ["git", "-C", str(folder), "ls-files", "--error-unmatch", Path(__file__).name],
      capture_output=True, timeout=10, check=False,
    )  # fmt: skip
    if tracked.returncode:
      return None
    return subprocess.run(
      command, capture_output=True, text=True, timeout=10, check=True
    ).stdout.strip()
  except (OSError, subprocess.SubprocessError):
    return None
