"""Make a run's folder from the weights of another library."""

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from diffusion_jax.checkpoints.store import Checkpoints
from diffusion_jax.core import rng
from diffusion_jax.core.config import Override
from diffusion_jax.core.files import write_json
from diffusion_jax.core.trees import named_leaves
from diffusion_jax.parallel.sharding import MeshShape, create_mesh, state_shardings
from diffusion_jax.porting.tensors import nested
from diffusion_jax.runs.experiment import Experiment, build_experiment
from diffusion_jax.runs.provenance import write_environment
from diffusion_jax.runs.stored import write_config
from diffusion_jax.training.step import make_init
from diffusion_jax.training.train_state import TrainState
from diffusion_jax.types import GenerativeModel, ImageSpec, UserError

ORIGIN = "imported.json"
"""File of a run's folder with the source of imported weights."""


FROM_BASE = ("data", "optimizer", "ema", "training", "eval", "checkpoint", "logging")
"""Sections that a file of weights does not determine."""


class Weights(NamedTuple):
  """A network of another library, in our terms.

  Attributes:
    sections: sections of a config that the source determines.
    spec: shape of the images; `num_classes` without the null class.
    params: parameters of the network by path, float32.
    origin: JSON values on the source: files with their SHA-256, format, architecture.
  """

  sections: Mapping[str, Mapping[str, Any]]
  spec: ImageSpec
  params: Mapping[str, np.ndarray]
  origin: Mapping[str, Any]


def experiment_of(
  weights: Weights, base: Mapping[str, Mapping[str, Any]], overrides: Sequence[Override]
) -> Experiment:
  """Return the experiment of imported weights.

  Args:
    weights: the weights.
    base: a config, of which FROM_BASE are taken.
    overrides: fields given by the user.

  Raises:
    UserError: the sections do not make a config.
  """
  merged: dict[str, Any] = {"data": {"name": "unknown"}, "optimizer": {"name": "adam"}}
  merged |= {"ema": {"decay": 0.9999, "warmup": False}}
  merged |= {name: dict(base[name]) for name in FROM_BASE if name in base}
  merged |= {name: dict(section) for name, section in weights.sections.items()}
  return build_experiment(merged, overrides)


def write_run(out: Path, weights: Weights, experiment: Experiment) -> int:
  """Write a run's folder with one checkpoint, of step 0; return the number of parameters.

  The folder appears whole or not at all. The averaged weights are the imported ones.

  Raises:
    UserError: the folder exists, cannot be written, or the model has other parameters.
  """
  if out.exists() and (not out.is_dir() or any(out.iterdir())):
    raise UserError(f"--out={out} exists; choose another folder, or move it away")
  model = experiment.create(weights.spec)
  state = _state(model, weights, experiment)
  try:
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
  except OSError as error:
    raise UserError(f"--out={out} cannot be written ({error.strerror}); choose another") from error
  try:
    _write(folder, weights, experiment, state)
    folder.chmod(0o777 & ~_umask())
    if out.exists():
      out.rmdir()
    folder.rename(out)
  except BaseException:
    shutil.rmtree(folder, ignore_errors=True)
    raise
  return sum(array.size for array in weights.params.values())


def _umask() -> int:
  mask = os.umask(0)
  os.umask(mask)
  return mask


def _state(model: GenerativeModel, weights: Weights, experiment: Experiment) -> TrainState:
  """Return the state before the first step with the imported parameters."""
  init = make_init(model, experiment.optimizers, experiment.training, experiment.ema.names())
  shapes = jax.eval_shape(init, np.uint32(0))
  wanted = {n: (x.shape, str(x.dtype)) for n, x in named_leaves(shapes.params).items()}
  found = {n: (x.shape, str(x.dtype)) for n, x in weights.params.items()}
  if wanted != found:
    other = sorted(n for n in {**wanted, **found} if wanted.get(n) != found.get(n))
    raise UserError(
      f"the imported weights do not fit the config: {other[0]} is {found.get(other[0])}, needed "
      f"{wanted.get(other[0])}; leave out overrides of the network"
    )
  state = jax.jit(init)(np.uint32(experiment.training.seed))
  params = jax.tree.map(jax.numpy.asarray, nested(weights.params))
  params = jax.tree.unflatten(jax.tree.structure(state.params), jax.tree.leaves(params))
  mesh = create_mesh(MeshShape(), jax.devices()[:1])
  state = state._replace(params=params)
  return jax.device_put(state, state_shardings(mesh, state))


def _write(folder: Path, weights: Weights, experiment: Experiment, state: TrainState) -> None:
  config = experiment.to_dict()
  data = {"name": "unknown", "num": 0, "fingerprint": None, "spec": weights.spec.to_json()}
  meta = {"config": config, "data": data, "draws": rng.DRAWS, "imported": dict(weights.origin)}
  write_config(folder, config)
  write_json(folder / ORIGIN, dict(weights.origin))
  write_environment(folder)
  saver = Checkpoints(folder / "checkpoints", None)
  saver.save(0, state, meta)
  saver.wait()
  saver.close()
