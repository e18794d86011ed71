"""Training from Python: `diffusion_jax.train("ddpm_digits", training=dict(num_steps=20))`."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusion_jax.core.config import load_file
from diffusion_jax.core.files import run_folder
from diffusion_jax.core.synonyms import hint_for_field
from diffusion_jax.core.wording import one_line
from diffusion_jax.inference.run import Run, folder_text, load_run
from diffusion_jax.runs import experiment as experiments
from diffusion_jax.runs import own_data
from diffusion_jax.runs.command_line import enable_compilation_cache
from diffusion_jax.runs.data_argument import folder_for_data, naming_data
from diffusion_jax.runs.experiment import Experiment
from diffusion_jax.runs.jax_settings import jax_as_written
from diffusion_jax.runs.signals import stop_requests
from diffusion_jax.runs.workdir import choose_workdir, lock, prepare_workdir
from diffusion_jax.train_loop import own_run
from diffusion_jax.train_loop.loop import train_run
from diffusion_jax.train_loop.setup import prepare_job, with_origin
from diffusion_jax.types import UserError


def train(
  config: str | os.PathLike[str] | Mapping[str, Any] | None = None,
  *,
  data: str | Path | None = None,
  workdir: str | Path | None = None,
  fresh: bool = False,
  init_from: str | Path | None = None,
  init_partial: bool = False,
  **sections: Any,
) -> Run:
  """Train a model, or continue its run, as the command line does, in this process.

  Compiled programs are kept in the user's cache: it sets `jax_compilation_cache_dir`.

  Args:
    config: name of a shipped config, path of a config file, or the sections themselves.
    data: a folder, an archive, an .npz or a name, as in `train --data`; in place of a config.
    workdir: the run's folder; None: `runs/NAME` of the config or the data.
    fresh: start over; the old run is moved aside.
    init_from: folder of a run whose averaged weights a new run begins with, or FOLDER@STEP.
    init_partial: load the weights that fit, also if others do not; the others stay random.
    sections: changes per section, as a mapping of fields (`training=dict(num_steps=20)`; another
      `name` starts from that entry's defaults) or as a built part (`sampler=samplers.Heun()`).

  Returns:
    The trained run, with its averaged weights.

  Raises:
    UserError: a config, data or folder that cannot be trained.
    StoppedEarly: a signal stopped it after its state was saved; the same call continues.
  """
  config = os.fspath(config) if isinstance(config, os.PathLike) else config
  check_arguments(config, data, fresh, init_from, init_partial)
  with jax_as_written():
    enable_compilation_cache()
    if (config is None) == (data is None):
      raise UserError("give a config, or data=FOLDER from which one is chosen: one of the two")
    if workdir is None and isinstance(config, Mapping):
      raise UserError("workdir is missing: a config of sections needs the folder of its run")
    folder = (
      _default_folder(config, data, sections)
      if workdir is None
      else run_folder(folder_text(workdir), "workdir")
    )
    chosen = None if data is None else _choose(str(data), folder, fresh, sections)
    experiment = make_experiment(chosen.raw if chosen else config or {}, sections)
    with stop_requests() as stop_requested:
      with naming_data(None if data is None else str(data)):
        job = prepare_job(experiment, folder)
      origin = None if init_from is None else os.fspath(init_from)
      job = with_origin(job, origin, init_partial, fresh)
      prepare_workdir(folder, fresh)
      with lock(folder):
        if chosen:
          own_data.store_choice(folder, chosen)
        train_run(job, stop_requested, None)
    return load_run(folder)


def check_arguments(
  config: Any, data: Any, fresh: Any, init_from: Any = None, init_partial: Any = False
) -> None:
  """Raise a UserError for arguments of `train` of another type."""
  if config is not None and not isinstance(config, str | Mapping):
    what = "the name of a shipped config, the path of a file, or a mapping of sections"
    raise UserError(f"config={one_line(config)}: must be {what}")
  if data is not None and not isinstance(data, str | os.PathLike):
    raise UserError(
      f"data is {type(data).__name__}: must be a path or a name; save arrays first, "
      "np.savez('data.npz', images=x, labels=y)"
    )
  if init_from is not None and not isinstance(init_from, str | os.PathLike):
    raise UserError(f"init_from={one_line(init_from)}: must be the folder of a run")
  for name, value in (("fresh", fresh), ("init_partial", init_partial)):
    if not isinstance(value, bool):  # "no" would count as true, and move the run aside
      raise UserError(f"{name}={one_line(value)}: must be True or False")
  if init_partial and init_from is None:
    raise UserError("init_partial=True: needs init_from, the run whose weights are loaded")


def _choose(data: str, folder: Path, fresh: bool, sections: Mapping[str, Any]) -> own_data.Chosen:
  """Return the config for data, whose choices follow the changed sections."""
  recipe = make_experiment(own_data.recipe_of(data), sections)
  fields = []
  for name, part in sections.items():
    names = [f.name for f in dataclasses.fields(part)] if dataclasses.is_dataclass(part) else part
    fields += [(name, field) for field in names]
  return own_run.choose_for_run(data, folder, fresh, recipe, fields)


def _default_folder(config: Any, data: str | Path | None, sections: Mapping[str, Any]) -> Path:
  if data is None:
    return choose_workdir(str(config), make_experiment(config, sections))
  return folder_for_data(str(data))


def make_experiment(config: str | Mapping[str, Any], sections: Mapping[str, Any]) -> Experiment:
  """Return the experiment of a config with changed sections; see `train`."""
  raw = load_file(config).to_dict() if isinstance(config, str) else dict(config)
  built = {name: part for name, part in sections.items() if dataclasses.is_dataclass(part)}
  if strange := [name for name in raw if not isinstance(name, str)]:
    raise UserError(f"config: the section {strange[0]!r} must be a text")
  for name, fields in sections.items():
    if name in built:
      continue
    hint = hint_for_field("", name, str(fields), ())
    if hint and name not in experiments.section_names():
      raise UserError(f"{name}={one_line(fields)}: there is no such argument or section; {hint}")
    if not isinstance(fields, Mapping):
      raise UserError(f"{name}={one_line(fields)}: must be a mapping of fields, or a built part")
    if strange := [field for field in fields if not isinstance(field, str)]:
      raise UserError(f"{name}: the field {strange[0]!r} must be a text")
    old = dict(raw.get(name, {}))
    kept = old if fields.get("name", old.get("name")) == old.get("name") else {}
    raw[name] = kept | dict(fields)
  return experiments.build_experiment(raw).replace(**built)
