"""Load the experiment of a config file or a run's folder, and check that it may continue."""

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
  """Return the experiment of a config file."""
  return experiments.build_experiment(load_file(config).to_dict(), overrides)


def stored_experiment(workdir: Path, overrides: Sequence[Override]) -> Experiment:
  """Return the experiment of a run's folder, with overrides, for the available devices.

  Raises:
    UserError: the folder is missing or has no run.
  """
  here = ("mesh", "distributed")
  config = {name: section for name, section in stored_config(workdir).items() if name not in here}
  return experiments.build_experiment(config, overrides)


def trained_experiment(workdir: Path, overrides: Sequence[Override]) -> Experiment:
  """Return the experiment of a run for programs that use its weights, with overrides.

  Data fields are not checked here; `check_same_data` compares the content.

  Raises:
    UserError: there is no run, or overrides change the meaning of its weights.
  """
  stored, wanted = (stored_experiment(workdir, o).identity() for o in ([], overrides))
  fatal, _ = experiments.differences({**stored, "data": {}}, {**wanted, "data": {}})
  if fatal:
    facts = experiments.SettingFacts(wanted)
    changeable = [n for n in wanted if facts.of_section("may_change", n)]
    of_model = [n for n in changeable if n not in experiments.COMMON]
    usable = ", ".join(["eval", *of_model])
    raise UserError(
      f"{workdir} was trained with other settings ({'; '.join(fatal)}), which its weights depend "
      f"on; omit that override. These may change: {usable}"
    )
  return stored_experiment(workdir, overrides)


def stored_config(workdir: Path) -> dict[str, Any]:
  """Return the content of config.json, or else the config in the newest checkpoint.

  Raises:
    UserError: there is neither.
  """
  path, checkpoints = workdir / "config.json", workdir / "checkpoints"
  try:
    config = json.loads(path.read_text())
    if isinstance(config, dict) and all(isinstance(section, dict) for section in config.values()):
      return experiments.of_today(config)
  except (FileNotFoundError, NotADirectoryError, ValueError):
    pass
  except OSError as error:
    if error.errno != errno.EIO:  # an unreadable disk block is damage
      raise
  if store.saved_steps(checkpoints):  # each checkpoint has the config too
    return experiments.of_today(store.read_meta(checkpoints)["config"])
  if path.is_file():
    raise UserError(f"{path} is damaged; restore it, or start over with `fresh=True`")
  runs = sorted(str(p.parent) for p in Path("runs").glob("*/config.json"))
  listed = f" Runs here: {', '.join(runs)}." if runs else ""
  raise UserError(f"`workdir={workdir}`: no run there (config.json is missing).{listed}")


def check_continues(workdir: Path, experiment: Experiment) -> list[str]:
  """Compare a config with that of the run in a folder.

  Returns:
    The differences with which the run can continue.

  Raises:
    UserError: there are differences with which it cannot.
  """
  stored = stored_config(workdir)
  # A run of an older version lacks newer fields, which have the defaults.
  with contextlib.suppress(UserError):
    stored = experiments.build_experiment(stored).identity()
  fatal, harmless = experiments.differences(stored, experiment.identity())
  if fatal:
    flags = " ".join(experiments.flags_to_keep(stored, experiment.identity()))
    goes_on = f"continue with its own settings ({flags}), " if flags else ""
    raise UserError(
      f"{workdir} holds a run that this config cannot continue ({'; '.join(fatal)}); {goes_on}use "
      "another `workdir`, or `fresh=True` to move the old run aside"
    )
  return harmless


def check_same_data(workdir: Path, saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
  """Raise an error if the training data are not those that the run started with.

  Args:
    workdir: folder of the run.
    saved, now: `data.source_identity` of the training split. If `now` has latents, those are
      compared as well.

  Raises:
    UserError: the fingerprints differ.
  """
  if saved["fingerprint"] != now["fingerprint"]:
    raise UserError(
      f"{workdir}: the data set changed: the run was trained on {_data_words(saved)}, found "
      f"{_data_words(now)}; restore the data, use another `workdir`, or `fresh=True` to move "
      "the old run aside"
    )
  if "latents" in now:
    check_same_data(workdir, saved["latents"], now["latents"])


def _data_words(data: Mapping[str, Any]) -> str:
  return f"{data['name']} ({data['num']:,} images, fingerprint {data['fingerprint']})"


def write_config(workdir: Path, config: Mapping[str, Any]) -> None:
  """Write config.json."""
  if jax.process_index() == 0:
    write_json(workdir / "config.json", config)
