"""A run's folder, its exit codes, and how a binary starts and stops."""

import argparse
import contextlib
import errno
import functools
import hashlib
import json
import logging
import math
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax

from diffusion_jax import __version__, parallel
from diffusion_jax.checkpoints import store
from diffusion_jax.core import files, storage
from diffusion_jax.parallel import compilation_cache
from diffusion_jax.runs import signals, streams
from diffusion_jax.runs import experiment as experiments
from diffusion_jax.core.config import Override, load_file, parse_override, split_argument
from diffusion_jax.runs.experiment import Experiment
from diffusion_jax.training.logger import write_json
from diffusion_jax.training.throughput import NonFinite
from diffusion_jax.types import UserError

DONE, FAILED, USER_ERROR, STOPPED_EARLY, INTERRUPTED = 0, 1, 2, 75, 130


LOCK_PATIENCE_SEC = 20.0


class Parser(argparse.ArgumentParser):
  """argparse whose errors are UserErrors, and that leaves --config.* to our own parser."""

  def __init__(self, prog: str, description: str | None):
    super().__init__(prog, description=description, allow_abbrev=False)

  def error(self, message: str) -> NoReturn:
    raise UserError(f"{message}; try python -m diffusion_jax.{self.prog} --help")

  def parse(self, argv: Sequence[str]) -> tuple[argparse.Namespace, list[Override]]:
    """Splits --config.section.field=value from the program's own flags."""
    for action in self._actions:  # of groups too
      action.type = _naming_its_flag(action)
    overrides = [parse_override(a) for a in argv if a.startswith("--config.")]
    return self.parse_args([a for a in argv if not a.startswith("--config.")]), overrides


def _naming_its_flag(action: argparse.Action) -> Any:
  """The type of a flag; a path that is empty, as an unset shell variable, is refused by name."""
  name = action.option_strings[0] if action.option_strings else action.dest
  if action.type is files.run_folder:
    return functools.partial(files.run_folder, flag=name)
  return files.flag_path(name) if action.type is files.user_path else action.type


def run_main(main: Callable[[list[str]], int | None]) -> NoReturn:
  """Runs a binary's main and exits with the code that its outcome has.

  0 done; 2 the user must change something, one line and no traceback; 75 stopped early, the same
  command continues; 1 anything else, with its traceback. Ctrl-C ends it by that signal, which a
  shell counts as 130.
  """
  logging.getLogger("absl").setLevel(logging.ERROR)  # orbax reports every file that it writes
  streams.leave_out_repeats()
  for name, value in AS_WRITTEN.items():
    jax.config.update(name, value)
  out, err = streams.Unbreakable(sys.stdout), streams.Unbreakable(sys.stderr)
  signals.stop_with_launcher(os.environ)
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    with signals.interruptible():
      code = _exit_code(main)
    out.flush()
    err.flush()
    parallel.leave(code)
    if code == INTERRUPTED:
      signals.end_by(signal.SIGINT)
  sys.exit(code)


def _exit_code(main: Callable[[list[str]], int | None]) -> int:
  try:
    return main(sys.argv[1:]) or DONE
  except UserError as error:
    print(f"error: {files.printable(str(error))}", file=sys.stderr)
    return USER_ERROR
  except signals.StoppedEarly as stopped:
    print(stopped)
    return STOPPED_EARLY
  except KeyboardInterrupt:
    print(signals.INTERRUPTED, file=sys.stderr)
    return INTERRUPTED
  except Exception as error:
    if (line := users_part(error)) is not None:
      print(f"error: {files.printable(line)}", file=sys.stderr)
      return USER_ERROR
    traceback.print_exc()
    return FAILED


def users_part(error: Exception) -> str | None:
  """Return the line for an error that only the user can mend, None for any other."""
  first = str(error).strip().partition("\n")[0]
  if isinstance(error, MemoryError):
    return first or "not enough memory"
  if (line := store.explain(error) or storage.explain(error)) is not None:
    return line
  if "RESOURCE_EXHAUSTED" in first:
    return (
      f"the device's memory is too small ({first[:200]}); in this order: a smaller "
      "--config.training.batch_size, --config.training.accumulation_steps=2 or more, "
      "--config.model.remat=block, --config.mesh.fsdp=N on several devices; python -m "
      "diffusion_jax.plan says what fits"
    )
  frames = traceback.extract_tb(error.__traceback__)
  if frames and frames[-1].filename.endswith("xla_bridge.py"):  # where JAX looks for devices
    asked = os.environ.get("JAX_PLATFORMS", "")
    why = f" ({first[:200]})" if first else ""
    return (
      f"JAX_PLATFORMS={asked}: that device cannot be used here{why}; unset JAX_PLATFORMS, or "
      "install what it needs, e.g. pip install 'diffusion_jax[cuda12]'"
    )
  return None


AS_WRITTEN = {
  "jax_enable_x64": False,
  "jax_numpy_dtype_promotion": "standard",
  "jax_numpy_rank_promotion": "allow",
}
"""Settings of JAX that the programs were written and tested with, whatever the environment says."""


def join_job(experiment: Experiment) -> None:
  """Becomes one of several processes, if this process was started as one.

  Afterwards only process 0 writes to stdout; each labels what it writes to stderr. Must come before
  anything that uses a device.

  Raises:
    UserError: the job cannot start, see `parallel.start`.
  """
  world = parallel.choose(experiment.distributed, os.environ)
  if world is None:
    return
  if world.process_id is not None:
    streams.label(world.process_id, world.num_processes or 0)
  facts = [sys.argv[1:], experiment.to_dict(), __version__, jax.__version__]
  identity = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
  parallel.start(experiment.distributed, world, identity)
  if world.process_id is None:
    streams.label(jax.process_index(), jax.process_count())


def enable_compilation_cache() -> None:
  """Keep compiled programs under the user's cache, unless JAX's own variables say otherwise."""
  if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
    jax.config.update("jax_compilation_cache_dir", str(files.cache_folder() / "xla"))
  if not os.environ.get("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
  compilation_cache.replace_damaged_entries()


def load_experiment(config: str, overrides: Sequence[Override]) -> Experiment:
  """The experiment of a config file."""
  return experiments.load(load_file(config).to_dict(), overrides)


def stored_experiment(workdir: Path, overrides: Sequence[Override]) -> Experiment:
  """The experiment of a run's folder, with overrides, on the devices and processes at hand.

  Raises:
    UserError: the folder is missing or holds no run.
  """
  here = ("mesh", "distributed")
  config = {name: section for name, section in stored_config(workdir).items() if name not in here}
  return experiments.load(config, overrides)


def trained_experiment(workdir: Path, overrides: Sequence[Override]) -> Experiment:
  """Return the experiment of a run for programs that use its weights, with overrides.

  Data are left to `check_same_data`, which compares what they hold.

  Raises:
    UserError: no run, or overrides that change what its weights mean.
  """
  stored, wanted = (stored_experiment(workdir, o).identity() for o in ([], overrides))
  fatal, _ = experiments.differences({**stored, "data": {}}, {**wanted, "data": {}})
  if fatal:
    changeable = {n for n, fields in experiments.CHANGEABLE.items() if "*" in fields}
    own = [n for n in wanted if n in changeable and n not in experiments.COMMON]
    usable = ", ".join(["eval", *own])
    raise UserError(
      f"{workdir} was trained otherwise ({'; '.join(fatal)}), and its weights mean nothing else; "
      f"leave that override out. What may change: {usable}"
    )
  return stored_experiment(workdir, overrides)


def stored_config(workdir: Path) -> dict[str, Any]:
  """Content of config.json, or what the newest checkpoint says of it.

  Raises:
    UserError: neither is there.
  """
  path, checkpoints = workdir / "config.json", workdir / "checkpoints"
  try:
    config = json.loads(path.read_text())
    if isinstance(config, dict) and all(isinstance(section, dict) for section in config.values()):
      return experiments.of_today(config)
  except (FileNotFoundError, NotADirectoryError, ValueError):
    pass
  except OSError as error:
    if error.errno != errno.EIO:  # a block that cannot be read is damage
      raise
  if store.saved_steps(checkpoints):  # each checkpoint holds the config too
    return experiments.of_today(store.read_meta(checkpoints)["config"])
  if path.is_file():
    raise UserError(f"{path} is damaged; restore it, or start over with --fresh")
  runs = sorted(str(p.parent) for p in Path("runs").glob("*/config.json"))
  listed = f" Runs here: {', '.join(runs)}." if runs else ""
  raise UserError(f"--workdir={workdir}: no run there (config.json is missing).{listed}")


def default_workdir(config: str) -> Path:
  """runs/<the config file's stem>."""
  return files.run_folder(f"runs/{split_argument(config)[0].stem}")


def prepare_workdir(workdir: Path, fresh: bool) -> None:
  """Makes the run's folder; with `fresh` an older run is moved aside, never deleted.

  A folder that is a link stays one: the run is moved aside where it lies, and the new one is made
  in its place.

  Raises:
    UserError: the folder cannot be made or written.
  """
  try:
    place = Path(os.path.realpath(workdir)) if workdir.is_symlink() else workdir
    if fresh and place.exists() and any(place.iterdir()):
      _move_aside(place)
  except OSError as error:
    raise UserError(
      f"--workdir={workdir} cannot be written ({error.strerror}); choose another --workdir"
    ) from error
  files.make_writable(place, f"--workdir={workdir}", "choose another --workdir")


def _move_aside(workdir: Path) -> None:
  if not any((workdir / name).exists() for name in ("config.json", "checkpoints")):
    raise UserError(f"--fresh: {workdir} is not empty and holds no run; choose another --workdir")
  if Path.cwd().is_relative_to(workdir.resolve()):
    raise UserError(f"--fresh: cannot move {workdir}, the current folder; start from another one")
  aside = files.free_name(workdir)
  with _lock(workdir, "training"):  # a run that is being trained is not moved
    workdir.rename(aside)
  print(f"moved the old run to {aside}")


@contextlib.contextmanager
def lock(workdir: Path, doing: str = "training") -> Iterator[None]:
  """Keeps a second job out of the folder; ends with the process, however it ends.

  Args:
    workdir: the folder.
    doing: what the job does, for the message of the second.

  Raises:
    UserError: another job holds it.
  """
  with contextlib.ExitStack() as stack:
    parallel.first_does(lambda: stack.enter_context(_lock(workdir, doing)))
    yield


@contextlib.contextmanager
def _lock(workdir: Path, doing: str) -> Iterator[None]:
  # A job that was started again may find its predecessor's process 0 still dying on another host.
  patience = LOCK_PATIENCE_SEC if jax.process_count() > 1 else 0.0
  with files.open_own(workdir / ".lock") as file:
    lock = _lock_within(patience, file)
    if lock == "not supported":
      print(f"{workdir}: this file system has no locks; start no second job there", flush=True)
    if lock == "held":
      file.seek(0)
      holder = file.read().strip() or "unknown"
      raise UserError(
        f"--workdir={workdir}: process {holder} is already {doing} there; stop it or choose "
        "another --workdir"
      )
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    yield


def _lock_within(seconds: float, file: Any) -> str:
  deadline = time.monotonic() + seconds
  while (lock := files.try_lock(file)) == "held" and time.monotonic() < deadline:
    time.sleep(0.5)
  return lock


def check_continues(workdir: Path, experiment: Experiment) -> list[str]:
  """Compares the config of a run with that of its folder.

  Returns:
    The differences with which it can continue.

  Raises:
    UserError: differences with which it cannot.
  """
  stored = stored_config(workdir)
  # A run of an older version lacks what has been added since: it has the defaults.
  with contextlib.suppress(UserError):
    stored = experiments.load(stored).identity()
  fatal, harmless = experiments.differences(stored, experiment.identity())
  if fatal:
    flags = " ".join(experiments.flags_to_keep(stored, experiment.identity()))
    goes_on = f"go on with what it began with ({flags}), " if flags else ""
    raise UserError(
      f"{workdir} holds a run that this config cannot continue ({'; '.join(fatal)}); {goes_on}use "
      "another --workdir, or --fresh to move the old run aside"
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


def drop_later_final(workdir: Path, step: int) -> None:
  """Deletes held_out.json if a step has left it that the run will take again."""
  path = workdir / "held_out.json"
  with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
    if json.loads(path.read_text())["step"] > step:
      path.unlink()


def is_finished(workdir: Path, step: int, num_steps: int) -> bool:
  """Whether nothing is left to do: the last step is saved and its figures are written."""
  try:
    return step >= num_steps and json.loads((workdir / "held_out.json").read_text())["step"] == step
  except (OSError, ValueError, KeyError, TypeError):
    return False
