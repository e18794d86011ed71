"""Make a run's folder from the weights of another library."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.checkpoints.store import Checkpoints
from diffusion_jax.core import rng
from diffusion_jax.core.config import Override
from diffusion_jax.core.field_types import as_text
from diffusion_jax.core.files import write_json
from diffusion_jax.parallel.sharding import MeshShape, create_mesh, state_shardings
from diffusion_jax.porting.latent_source import all_parameters_of
from diffusion_jax.porting.layout import Sections, Source
from diffusion_jax.porting.whole_folder import check_new, whole_folder
from diffusion_jax.runs.experiment import Experiment, build_experiment
from diffusion_jax.runs.provenance import write_environment
from diffusion_jax.runs.stored import write_config
from diffusion_jax.training.step import make_init
from diffusion_jax.training.train_state import TrainState
from diffusion_jax.types import GenerativeModel, Params

ORIGIN = "imported.json"
"""File of a run's folder with the source of imported weights."""


FROM_BASE = ("data", "optimizer", "ema", "training", "eval", "checkpoint", "logging")
"""Sections that a file of weights does not determine."""


def experiment_of(source: Source, base: Sections, overrides: Sequence[Override]) -> Experiment:
  """Return the experiment of imported weights.

  Args:
    source: the weights.
    base: a config, of which FROM_BASE are taken.
    overrides: fields given by the user.

  Raises:
    UserError: the sections do not make a config.
  """
  merged: dict[str, Any] = {"data": {"name": "unknown"}, "optimizer": {"name": "adam"}}
  merged |= {"ema": {"decay": 0.9999, "warmup": False}}
  merged |= {name: dict(base[name]) for name in FROM_BASE if name in base}
  merged |= {name: dict(section) for name, section in source.described.sections.items()}
  return build_experiment(merged, overrides)


def assumptions(source: Source, experiment: Experiment) -> list[str]:
  """Return a line for each value that the source does not tell, unless the user gave it."""
  config, told = experiment.to_dict(), source.described.sections
  flags = {"image_size": source.described.spec.height, "architecture": source.layout.name}
  lines = []
  for name in source.described.assumed:
    section, _, field = name.rpartition(".")
    if not section:
      lines.append(f"{name}={flags[name]}, which the file does not tell")
    elif field in config[section]:
      value = config[section][field]
      if value == told.get(section, {}).get(field):
        lines.append(f"`{name}={as_text(value)}`, which the file does not tell")
  return lines


def is_imported(workdir: Path) -> bool:
  """Return whether a run began with weights of another library."""
  return (workdir / ORIGIN).is_file()


def write_run(out: Path, source: Source, experiment: Experiment) -> int:
  """Write a run's folder with one checkpoint, of step 0; return the number of parameters.

  The folder appears whole or not at all. The averaged weights are the imported ones.

  Raises:
    UserError: the folder exists, cannot be written, or the model has other parameters.
  """
  check_new(out)
  params = all_parameters_of(source, experiment)
  state = _state(params, experiment.create(source.described.spec), experiment)
  with whole_folder(out) as folder:
    _write(folder, source, experiment, state)
  return sum(array.size for array in jax.tree.leaves(params))


def _state(params: Params, model: GenerativeModel, experiment: Experiment) -> TrainState:
  """Return the state before the first step with the imported parameters."""
  init = make_init(model, experiment.optimizers, experiment.training, experiment.ema.names())
  params = jax.tree.map(jnp.asarray, params)
  state = jax.jit(init)(np.uint32(experiment.training.seed), params)
  mesh = create_mesh(MeshShape(), jax.devices()[:1])
  return jax.device_put(state, state_shardings(mesh, state))


def _write(folder: Path, source: Source, experiment: Experiment, state: TrainState) -> None:
  config = experiment.to_dict()
  data = {"name": "unknown", "num": 0, "fingerprint": None, "spec": source.described.spec.to_json()}
  meta = {"config": config, "data": data, "draws": rng.DRAWS, "imported": dict(source.origin)}
  write_config(folder, config)
  write_json(folder / ORIGIN, dict(source.origin))
  write_environment(folder)
  saver = Checkpoints(folder / "checkpoints", None)
  saver.save(0, state, meta)
  saver.wait()
  saver.close()
