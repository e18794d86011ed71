"""Load the experiment of a config file or a run's folder, and check that it may continue."""

import contextlib
import errno
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import jax

from diffusion_jax.checkpoints import store
from diffusion_jax.core.buckets import checkpoint_folder
from diffusion_jax.core.config import Override, load_file
from diffusion_jax.core.files import write_json
from diffusion_jax.core.registry import Registry
from diffusion_jax.generative import GENERATIVES
from diffusion_jax.runs import changes, gone
from diffusion_jax.runs import experiment as experiments
from diffusion_jax.runs.experiment import Experiment
from diffusion_jax.types import UserError


def load_experiment(config: str, overrides: Sequence[Override]) -> Experiment:
  """Return the experiment of a config file."""
  return experiments.build_experiment(load_file(config).to_dict(), overrides)


def stored_experiment(workdir: Path, overrides: Sequence[Override]) -> Experiment:
  """Return the experiment of a run's folder, with overrides, for the available devices.

  Parts that only training needs and that cannot be loaded are replaced by stand-ins, see `gone`.

  Raises:
    UserError: the folder is missing or has no run.
  """
  here = ("mesh", "distributed")
  config = {name: section for name, section in stored_config(workdir).items() if name not in here}
  layout = experiments.layout_of(config, overrides)
  errors = gone.unusable_parts(config, layout, overrides)
  if not errors:
    return experiments.build_experiment(config, overrides)
  others = {name: {"name": next(iter(cast(Registry, layout[name])))} for name in errors}
  experiment = experiments.build_experiment({**config, **others}, overrides)
  checkpoints = checkpoint_folder(workdir)
  leaves = store.read_meta(checkpoints)["leaves"] if store.saved_steps(checkpoints) else {}
  return gone.with_stand_ins(experiment, config, errors, leaves)


def trained_experiment(workdir: Path, overrides: Sequence[Override]) -> Experiment:
  """Return the experiment of a run for programs that use its weights, with overrides.

  Data fields are not checked here; `check_same_data` compares the content. An override of a field
  that may change also replaces a part that can no longer be loaded.

  Raises:
    UserError: there is no run, or overrides change the meaning of its weights.
  """
  facts = experiments.SettingFacts(stored_config(workdir))
  harmless = [o for o in overrides if facts.of_field("may_change", o.section, o.field)]
  stored, wanted = (stored_experiment(workdir, o).identity() for o in (harmless, overrides))
  fatal, _ = changes.differences({**stored, "data": {}}, {**wanted, "data": {}})
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
    UserError: there is neither, or config.json is not the config of the checkpoints.
  """
  path, checkpoints = workdir / "config.json", checkpoint_folder(workdir)
  config, fault = _read_config(path)
  if config is not None:
    _check_unedited(path, config, checkpoints)
    return experiments.of_today(config)
  if store.saved_steps(checkpoints):  # each checkpoint has the config too
    meta = store.read_meta(checkpoints)
    _say_once(f"{path} {fault}: using the copy in checkpoint {meta.get('step', '')}".rstrip())
    return experiments.of_today(meta["config"])
  if path.is_file():
    raise UserError(f"{path} {fault}; restore a copy of it, or train again with `fresh=True`")
  runs = sorted(str(p.parent) for p in Path("runs").glob("*/config.json"))
  listed = f" Runs here: {', '.join(runs)}." if runs else ""
  raise UserError(f"`workdir={workdir}`: no run there (config.json is missing).{listed}")


def _read_config(path: Path) -> tuple[dict[str, Any] | None, str]:
  """Return the sections in a config.json, or None and what is wrong with it."""
  try:
    config = json.loads(path.read_text())
  except (FileNotFoundError, NotADirectoryError):
    return None, "is missing"
  except ValueError:
    return None, "is damaged (it is not JSON)"
  except OSError as error:
    if error.errno != errno.EIO:  # an unreadable disk block is damage
      raise
    return None, "is damaged (it cannot be read)"
  if not isinstance(config, dict) or not all(isinstance(s, dict) for s in config.values()):
    return None, "is damaged (it does not hold the sections of a config)"
  if lacking := _missing_section(config):
    return None, f"is damaged (its section {lacking} is missing or has no name)"
  return config, ""


def _missing_section(config: Mapping[str, Any]) -> str | None:
  """Return the first section that a stored config needs and lacks, or None.

  Any section may be missing that has defaults: older versions did not have it.
  """
  layout = dict(experiments.COMMON)
  with contextlib.suppress(UserError):
    layout |= GENERATIVES.find(str(config.get("generative", {}).get("name")), "").sections
  needed = (name for name, section in layout.items() if isinstance(section, Registry))
  return next((name for name in needed if "name" not in config.get(name, {})), None)


@functools.cache
def _say_once(line: str) -> None:
  """Print a line the first time: a program reads the config more than once."""
  print(line)


def _check_unedited(path: Path, config: Mapping[str, Any], checkpoints: store.Place) -> None:
  """Compare config.json with the configs in the checkpoints; one of them must fit.

  Raises:
    UserError: every checkpoint that can be read has other settings.
  """
  edits: list[str] = []
  for step in reversed(store.saved_steps(checkpoints)):
    try:
      saved = store.read_meta(checkpoints, step)["config"]
    except (UserError, KeyError):  # damaged, or deleted meanwhile
      continue
    if (edit := _edit(config, saved)) is None:
      return
    edits.append(edit)
  if edits:
    raise UserError(
      f"{path} was edited, or is another run's: {edits[0]}, or delete the file: each checkpoint "
      "has a copy"
    )


def _edit(config: Mapping[str, Any], saved: Mapping[str, Any], most: int = 4) -> str | None:
  """Describe the edits to undo in a config.json so that it fits a checkpoint, or return None."""
  ours, theirs = experiments.of_today(config), experiments.of_today(saved)
  if ours == theirs:
    return None
  try:
    theirs = experiments.build_experiment(theirs).identity()
  except UserError:  # a version with other fields: its leaves are compared
    return None
  try:
    ours = experiments.build_experiment(ours).identity()
  except UserError as error:
    return f"{str(error).rstrip('.')}; undo that"
  fatal = [(f"{c.section}.{c.field}", c) for c in changes.fatal_changes(theirs, ours)]
  if not fatal:
    return None
  listed = ", ".join(f"{name}={json.dumps(c.before)}" for name, c in fatal[:most])
  more = f" and {len(fatal) - most} more fields" if len(fatal) > most else ""
  found = ", ".join(f"{name} is {json.dumps(c.after)}" for name, c in fatal[:most])
  return f"{found}; set {listed}{more} again"


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
  fatal, harmless = changes.differences(stored, experiment.identity())
  if fatal:
    flags = " ".join(changes.flags_to_keep(stored, experiment.identity()))
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
    saved, now: `data.source_identity` of the training split with its "spec". If `now` has
      latents, those are compared as well. The data of an imported model are not known: any of
      its shape are the same.

  Raises:
    UserError: the fingerprints differ.
  """
  if saved["fingerprint"] is None:  # an imported model, whose data are not known
    return _check_same_shape(workdir, saved["spec"], now["spec"])
  if saved["fingerprint"] != now["fingerprint"]:
    raise UserError(
      f"{workdir}: the data set changed: the run was trained on {_data_words(saved)}, found "
      f"{_data_words(now)}{_changed_classes(saved, now)}; restore the data, or train anew with "
      "another `workdir`, or with `fresh=True`, which moves the old run aside"
    )
  if "latents" in now:
    check_same_data(workdir, saved["latents"], now["latents"])


def _check_same_shape(workdir: Path, saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
  sides = ("height", "width", "channels")
  wanted, found = (tuple(spec[side] for side in sides) for spec in (saved, now))
  if wanted != found:
    text = " and ".join("x".join(map(str, shape)) for shape in (wanted, found))
    raise UserError(
      f"{workdir}: this model and these data have images of {text} (height, width, channels); "
      "give data of the model's shape"
    )


def _data_words(data: Mapping[str, Any]) -> str:
  return f"{data['name']} ({data['num']:,} images, fingerprint {data['fingerprint']})"


def _changed_classes(saved: Mapping[str, Any], now: Mapping[str, Any], most: int = 5) -> str:
  """Return which class names are new or gone, to begin with a comma; "" if none is."""
  before, after = saved.get("classes", []), now.get("classes", [])
  new, gone = ([n for n in a if n not in b] for a, b in ((after, before), (before, after)))
  listed = lambda names: ", ".join(names[:most]) + ", ..." * (len(names) > most)  # noqa: E731
  words = [f"{listed(names)} {word}" for names, word in ((new, "new"), (gone, "gone")) if names]
  return f", classes: {'; '.join(words)}" if before and after and words else ""


def write_config(workdir: Path, config: Mapping[str, Any]) -> None:
  """Write config.json."""
  if jax.process_index() == 0:
    write_json(workdir / "config.json", config)
