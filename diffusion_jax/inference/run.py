"""A trained run as a Python object: its model and weights, to sample, denoise and measure."""

import contextlib
import dataclasses
import functools
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, UInt8

from diffusion_jax.checkpoints import store
from diffusion_jax.core.buckets import checkpoint_folder
from diffusion_jax.core.class_names import class_numbers
from diffusion_jax.core.files import run_folder
from diffusion_jax.core.pixels import to_uint8
from diffusion_jax.core.wording import one_line
from diffusion_jax.data import Source
from diffusion_jax.generative.base import require
from diffusion_jax.inference import restore
from diffusion_jax.inference.condition_fields import (
  check_shapes,
  fields_in_turn,
  fields_source,
  given_fields,
)
from diffusion_jax.inference.draw import Draw, make_draw
from diffusion_jax.parallel import sharding
from diffusion_jax.parallel.spread import jit_spread
from diffusion_jax.runs.experiment import Experiment
from diffusion_jax.runs.jax_settings import jax_as_written
from diffusion_jax.runs.stored import stored_experiment
from diffusion_jax.training.step import make_init
from diffusion_jax.training.train_state import (
  TrainState,
  count_parameters,
  from_averages,
  holds_averages,
  with_averages,
)
from diffusion_jax.types import (
  UNCONDITIONAL,
  Condition,
  GenerativeModel,
  ImageSpec,
  Params,
  UserError,
)

MAX_INT = 2**31 - 1
"""Largest seed, step and number of images."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Run:
  """A run's folder, its model and the averaged weights of one step.

  Attributes:
    workdir: the run's folder.
    experiment: the run's experiment, built from its config.
    model: pure functions of the parameters.
    params: averaged (EMA) weights, split over the devices as in training.
    step: number of training steps of these weights.
    mesh: the devices.
  """

  workdir: Path
  experiment: Experiment
  model: GenerativeModel
  params: Params
  step: int
  mesh: Mesh

  def __repr__(self) -> str:
    kind = type(self.experiment.sections["generative"]).__name__
    size = count_parameters(self.params)
    return f"Run({str(self.workdir)!r}, {kind} of {size:,} parameters, step {self.step:,})"

  @property
  def config(self) -> dict[str, dict[str, Any]]:
    """Return all sections of the config with all fields, as stored in config.json."""
    return self.experiment.to_dict()

  @functools.cached_property
  def metrics(self) -> dict[str, float]:
    """Return the newest values in metrics.jsonl: "train/loss", "held_out/loss", ..."""
    path, newest = self.workdir / "metrics.jsonl", {}
    for line in path.read_text(errors="replace").splitlines() if path.is_file() else ():
      with contextlib.suppress(ValueError):  # a line that a kill has cut off
        newest |= {n: v for n, v in json.loads(line).items() if n not in ("step", "time")}
    return newest

  @functools.cached_property
  def state(self) -> TrainState:
    """Return the training state of the newest checkpoint: parameters, averages, optimizer."""
    experiment = self.experiment
    init = make_init(self.model, experiment.optimizers, experiment.training, experiment.ema.names())
    shapes = jax.eval_shape(init, np.uint32(0))
    layout = sharding.state_shardings(self.mesh, shapes)

    def target(leaves: Mapping[str, Any]) -> Any:
      if holds_averages(leaves):
        return sharding.as_target(with_averages(shapes), with_averages(layout))
      return sharding.as_target(shapes, layout)

    with jax_as_written():
      state = store.restore_checkpoint(checkpoint_folder(self.workdir), target).state
    return state if isinstance(state, TrainState) else from_averages(state)

  def sample(
    self,
    num: int,
    *,
    labels: Iterable[int | str] | None = None,
    fields: Mapping[str, Any] | None = None,
    sampler: Any = None,
    guidance: Any = None,
    seed: int = 0,
    batch_size: int = 64,
  ) -> UInt8[np.ndarray, "N H W C"]:
    """Draw images; image i depends only on the seed, i and its condition.

    Args:
      num: number of images N.
      labels: classes by number or by name, repeated in order over the images; None: the classes of
        the training images.
      fields: named arrays of a model that takes some, see `generative.fields`: rows [M ...],
        repeated in order over the images, or one array [...] for all. Names that are left out are
        dropped as in training. None: the arrays of the held-out images (of the training images if
        there are no others) in turn, as in the command `sample`.
      sampler: sampler in place of the run's own, e.g. `samplers.Heun(steps=18)`.
      guidance: a `samplers.Guidance` in place of the run's own.
      seed: seed of the noise, at least 0.
      batch_size: images drawn at once.

    Raises:
      UserError: a label or named array that the model does not know, a named array of another
        shape, or a sampler that does not fit the model.
    """
    with jax_as_written():
      _check_integers(1, num=num, batch_size=batch_size)
      _check_integers(0, seed=seed)
      drawn, given = self._labels(num, labels), self._fields(num, fields)
      draw = self._draw(sampler, guidance, min(batch_size, num))
      return to_uint8(draw(self.params, drawn, num, seed, fields=given))

  @functools.cached_property
  def class_names(self) -> list[str]:
    """Return the names of the classes in the order of their numbers; empty if they have none."""
    return restore.stored_class_names(checkpoint_folder(self.workdir), None)

  def denoise(
    self,
    xt: Float[Array | np.ndarray, "B H W C"],
    t: Float[Array | np.ndarray, "B"],
    condition: Condition = UNCONDITIONAL,
  ) -> Float[Array, "B H W C"]:
    """Return the estimate of the data x0 in [-1, 1] from x_t at times t in [0, 1].

    Args:
      xt: noised data.
      t: their times.
      condition: labels [B] and named arrays [B ...]; missing parts are dropped as in training.

    Raises:
      UserError: the model does not denoise, or a named array is unknown, of another shape, or
        missing and was never dropped in training.
    """
    with jax_as_written():
      _check_denoised(xt, t, self._spec)
      if condition.label is not None:
        _check_labels(condition.label, self.model.num_classes, len(xt))
      if condition.fields:
        check_shapes(condition.fields, self.model, self._spec, len(xt))
      return self._denoise(self.params, xt, t, condition)

  @functools.cached_property
  def _denoise(self):
    require(self.model, "denoise")
    return jit_spread(self.model.denoise, self.mesh)

  def _draw(self, sampler: Any, guidance: Any, batch_size: int) -> Draw:
    """Return the compiled function, cached by sampler, guidance and batch size."""
    changes = {n: v for n, v in (("sampler", sampler), ("guidance", guidance)) if v is not None}
    changed = self.experiment.replace(**changes)
    key = (*changes, *(changed.sections[name] for name in changes), batch_size)
    if key not in self._drawn:
      model = changed.create(self._spec) if changes else self.model
      self._drawn[key] = make_draw(model, self.mesh, batch_size)
    return self._drawn[key]

  @functools.cached_property
  def _drawn(self) -> dict[Any, Draw]:
    return {}

  @functools.cached_property
  def _spec(self) -> ImageSpec:
    return restore.stored_spec(checkpoint_folder(self.workdir), None)

  def _fields(self, num: int, fields: Mapping[str, Any] | None) -> dict[str, np.ndarray]:
    if fields is not None:
      return given_fields(fields, self.model, self._spec, num)
    source = self._fields_source
    return fields_in_turn(self.model, source, 0, num) if source else {}

  @functools.cached_property
  def _fields_source(self) -> Source | None:
    return fields_source(self.model, self.experiment.data, self._spec)

  def _labels(self, num: int, labels: Any) -> np.ndarray | None:
    classes = self.model.num_classes
    if not classes:
      if labels is not None:
        raise UserError("labels: this model knows no classes; leave them out")
      return None
    known = restore.stored_classes(checkpoint_folder(self.workdir), None)
    chosen = known if labels is None else labels
    if isinstance(chosen, str):
      raise UserError(f"labels={chosen!r}: must be a list, e.g. [{chosen!r}]")
    chosen = list(chosen) if isinstance(chosen, Iterable) else chosen
    if isinstance(chosen, list) and any(isinstance(label, str) for label in chosen):
      numbers = [int(label) if isinstance(label, np.integer) else label for label in chosen]
      _check_labels_given(numbers)
      chosen = class_numbers(numbers, self.class_names, f"labels={labels!r}")
    wanted = np.asarray(chosen)
    if wanted.ndim != 1 or not len(wanted) or wanted.dtype.kind not in "iu":
      raise UserError(
        f"labels={one_line(labels)}: must be a list of integers or names, at least one"
      )
    if wanted.min() < 0 or wanted.max() >= classes:
      raise UserError(f"labels={wanted.tolist()}: must be between 0 and {classes - 1}")
    return wanted[np.arange(num) % len(wanted)].astype(np.int32)


def load_run(
  workdir: str | Path, *, step: int | Literal["latest"] = "latest", ema: str | float | None = None
) -> Run:
  """Restore a run's model and averaged weights on all devices.

  Args:
    workdir: the run's folder.
    step: step of a checkpoint, or "latest" for the newest readable one.
    ema: average to restore, see `inference.restore.parse_average`; None: that of `ema.decay`.

  Raises:
    UserError: there is no run, no such step or no such average.
  """
  with jax_as_written():
    folder = run_folder(folder_text(workdir), "workdir")
    if step != "latest":
      _check_integers(0, step=step)
    average = restore.parse_average(None if ema is None else str(ema))
    at_step = None if step == "latest" else int(step)
    experiment = stored_experiment(folder, [])
    directory = restore.folder_of(folder, at_step, average)
    model = experiment.create(restore.stored_spec(directory, at_step))
    mesh = sharding.create_mesh(experiment.mesh)
    weights = restore.restore_weights(folder, at_step, mesh, model, average)
    return Run(folder, experiment, model, weights.params, weights.step, mesh)


def folder_text(workdir: Any) -> str:
  """Return the path of a run's folder as a text.

  Raises:
    UserError: it is no path.
  """
  if not isinstance(workdir, str | os.PathLike):
    raise UserError(f"workdir={one_line(workdir)}: must be a path")
  return str(os.fspath(workdir))


def _check_integers(least: int, **values: Any) -> None:
  for name, value in values.items():
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
      raise UserError(f"{name}={one_line(value)}: must be an integer")
    if value < least:
      raise UserError(f"{name}={value}: must be at least {least}")
    if value > MAX_INT:
      raise UserError(f"{name}={value}: must be at most {MAX_INT}")


def _check_labels_given(labels: list[Any]) -> None:
  """Raise an error for an entry of labels that is neither a text nor an integer."""
  for label in labels:
    if not isinstance(label, (str, int)) or isinstance(label, bool):
      raise UserError(f"labels: {label!r} is neither the number nor the name of a class")


def _check_denoised(xt: Any, t: Any, spec: ImageSpec) -> None:
  if np.shape(xt)[1:] != spec.shape or not np.shape(xt):
    wanted = ", ".join(str(size) for size in spec.shape)
    raise UserError(f"xt of shape {list(np.shape(xt))}: must be [B, {wanted}]")
  if np.shape(t) != np.shape(xt)[:1]:
    raise UserError(f"t of shape {list(np.shape(t))}: must be one time per example, [{len(xt)}]")


def _check_labels(labels: Any, num_classes: int, num: int) -> None:
  label = np.asarray(labels)
  if not num_classes:
    raise UserError("condition.label: this model knows no classes; leave it out")
  if label.shape != (num,) or label.dtype.kind not in "iu":
    raise UserError(
      f"condition.label is {label.dtype}{list(label.shape)}: must be one integer per example, "
      f"[{num}]"
    )
  if num and (label.min() < 0 or label.max() > num_classes):
    raise UserError(
      f"condition.label={label.tolist()}: must be between 0 and {num_classes - 1}, or be "
      f"{num_classes} for the null class"
    )
