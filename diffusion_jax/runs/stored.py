"""The experiment of a config file or of a run's folder, and whether a run may go on with it."""

import contextlib
import errno
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from diffusion_jax.checkpoints import store
from diffusion_jax.core.config import Override, load_file
from diffusion_jax.core.files import write_json
from diffusion_jax.runs import experiment as experiments
from diffusion_jax.runs.experiment import Experiment
from diffusion_jax.types import UserError


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


def write_config(workdir: Path, config: Mapping[str, Any]) -> None:
  """Writes config.json."""
  if jax.process_index() == 0:
    write_json(workdir / "config.json", config)
