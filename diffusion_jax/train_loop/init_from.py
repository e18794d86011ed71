"""Begin a run with the averaged weights of another one, or with those that fit."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from diffusion_jax import parallel
from diffusion_jax.checkpoints import store
from diffusion_jax.core.buckets import checkpoint_folder
from diffusion_jax.core.files import run_folder, write_json
from diffusion_jax.core.stacking import restacked, unstack_layers
from diffusion_jax.core.trees import named_leaves
from diffusion_jax.inference import restore
from diffusion_jax.runs.stored import trained_experiment
from diffusion_jax.training.train_state import count_parameters
from diffusion_jax.types import GenerativeModel, Params, UserError

RECORD = "init_from.json"
"""File of a run's folder with the run whose weights it began with."""


class Origin(NamedTuple):
  """The weights with which a run begins.

  Attributes:
    workdir, step: the other run and the step of its checkpoint.
    model: the other run's model.
    loaded: names of parameters that are taken over.
    random: names of this model's parameters that keep their random values.
    left: names of the other run's parameters that have no place here.
  """

  workdir: Path
  step: int
  model: GenerativeModel
  loaded: tuple[str, ...]
  random: tuple[str, ...]
  left: tuple[str, ...]

  @property
  def text(self) -> str:
    """Description in the block at the start."""
    text = f"a new run with the averaged weights of step {self.step:,} of {self.workdir}"
    if self.random or self.left:
      total = len(self.loaded) + len(self.random)
      text += f": {len(self.loaded)} of {total} arrays"
      text += f"; random {_listed(self.random)}" if self.random else ""
      text += f"; not used {_listed(self.left)}" if self.left else ""
    return text


def find_origin(text: str, generative: GenerativeModel, is_partial: bool) -> Origin:
  """Return the weights that a new run begins with, before anything is read.

  Args:
    text: folder of a run, or FOLDER@STEP.
    generative: the new run's model.
    is_partial: keep the random values of parameters that have no counterpart.

  Raises:
    UserError: there is no such run or step, or parameters do not fit and `is_partial` is false.
  """
  folder, number = _parse(text)
  workdir = run_folder(folder)
  if not workdir.is_dir():
    raise UserError(f"`init_from={text}`: no such folder; give the folder of a run")
  experiment = trained_experiment(workdir, ())
  checkpoints = checkpoint_folder(workdir)
  steps = parallel.broadcast_object(store.saved_steps(checkpoints))
  if not steps:
    raise UserError(f"`init_from={text}`: {workdir} has no checkpoint yet; train it first")
  step = int(number) if number else steps[-1]
  if step not in steps:
    listed = ", ".join(map(str, steps[-5:]))
    raise UserError(f"`init_from={text}`: no checkpoint of step {step}; there are {listed}")
  model = experiment.create(restore.stored_spec(checkpoints, step))
  there, here = _shapes(model), _shapes(generative)
  loaded = tuple(name for name, shape in here.items() if there.get(name) == shape)
  origin = Origin(
    workdir, step, model, loaded,
    tuple(name for name in here if name not in loaded),
    tuple(name for name in there if name not in loaded),
  )  # fmt: skip
  if not loaded:
    raise UserError(f"`init_from={text}`: none of its {len(there)} arrays fits this model")
  if not is_partial and (origin.random or origin.left):
    raise UserError(_refusal(text, origin, there, here))
  return origin


def _parse(text: str) -> tuple[str, str]:
  """Return the folder and the step's digits, "" for the newest."""
  folder, at, number = text.rpartition("@")
  if not at or "/" in number:  # a folder's name may have an @
    return text, ""
  if not number.isdecimal():
    raise UserError(f"`init_from={text}`: the step after @ must be a number, e.g. {folder}@5000")
  return folder, number


def _refusal(text: str, origin: Origin, there: Mapping, here: Mapping) -> str:
  changed = [name for name in origin.random if name in there]
  parts = [f"{n} is {_side(there[n])} there and {_side(here[n])} here" for n in changed[:2]]
  if lacking := [name for name in origin.random if name not in there]:
    parts.append(f"it has no {_listed(lacking)}")
  if left := [name for name in origin.left if name not in here]:
    parts.append(f"this model has no {_listed(left)}")
  number = len({*origin.random, *origin.left})
  total = len({*there, *here})
  return (
    f"`init_from={text}`: {number} of {total} arrays do not fit: {'; '.join(parts)}; add "
    "`init_partial=True` to load the others, or train the same model"
  )


def _side(shape: tuple[int, ...]) -> str:
  return "x".join(map(str, shape)) or "a number"


def _listed(names: Any, most: int = 3) -> str:
  more = len(names) - most
  return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def _shapes(model: GenerativeModel) -> dict[str, tuple[int, ...]]:
  """Return the shape of each parameter, with layers one by one."""
  params = jax.eval_shape(lambda: model.init(jax.random.key(0))[0])
  return {_own(name): leaf.shape for name, leaf in named_leaves(unstack_layers(params)).items()}


def _own(name: str) -> str:
  """Return a parameter's name in its network; some models have others beside it."""
  return name.removeprefix("network/")


def load_origin(origin: Origin, mesh: Mesh, params: Params) -> Params:
  """Return parameters with those of another run in place of those that have a counterpart.

  Args:
    origin: the other run's weights.
    mesh: the devices.
    params: initial parameters of the new run, with their shardings.
  """
  weights = restore.restore_weights(
    origin.workdir, origin.step, mesh, origin.model, restore.Average()
  )
  there = {_own(n): leaf for n, leaf in named_leaves(unstack_layers(weights.params)).items()}
  apart = unstack_layers(params)
  loaded = set(origin.loaded)
  leaves = [
    there[_own(n)] if _own(n) in loaded else leaf for n, leaf in named_leaves(apart).items()
  ]
  merged = restacked(jax.tree.unflatten(jax.tree.structure(apart), leaves), params)
  return jax.tree.map(lambda new, old: jax.device_put(new, old.sharding), merged, params)


def write_record(origin: Origin, workdir: Path) -> None:
  """Write where a run's first weights come from."""
  number = count_parameters(jax.eval_shape(lambda: origin.model.init(jax.random.key(0))[0]))
  record = {
    "run": str(origin.workdir), "step": origin.step, "parameters": number,
    "loaded": len(origin.loaded), "random": list(origin.random), "not_used": list(origin.left),
  }  # fmt: skip
  write_json(workdir / RECORD, record)


def check_record(text: str, workdir: Path) -> None:
  """Refuse to continue a run with the weights of another run than it began with.

  Raises:
    UserError: the run began otherwise.
  """
  try:
    record = json.loads((workdir / RECORD).read_text())
    began = f"{record['run']}@{record['step']}"
  except (OSError, ValueError, KeyError, TypeError):
    began = ""
  folder, number = _parse(text)
  given = str(run_folder(folder))
  run, _, step = began.rpartition("@")
  if run != given or number not in (step, ""):
    how = f"with the weights of {began}" if began else "with random weights"
    raise UserError(
      f"`init_from={text}`: {workdir} began {how} and has checkpoints; leave `init_from` out to "
      "continue it, or `fresh=True` to move it aside"
    )
