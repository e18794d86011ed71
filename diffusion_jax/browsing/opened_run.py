"""A run that a page shows: its weights by step, its pictures, and what it can do."""

import contextlib
import dataclasses
import functools
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from diffusion_jax.checkpoints import store
from diffusion_jax.core.buckets import checkpoint_folder
from diffusion_jax.core.config import Override
from diffusion_jax.core.pixels import from_levels
from diffusion_jax.data import load_held_out
from diffusion_jax.generative.base import CAPABILITIES
from diffusion_jax.generative.diffusion_model import DiffusionModel
from diffusion_jax.generative.latent_diffusion import LatentDiffusionModel
from diffusion_jax.inference import restore
from diffusion_jax.inference.condition_fields import check_same_fields, fields_source
from diffusion_jax.inference.draw import first_examples
from diffusion_jax.parallel import sharding
from diffusion_jax.runs.stored import trained_experiment
from diffusion_jax.samplers import SAMPLERS, LinearSampler
from diffusion_jax.types import Params, UserError

KEPT_STEPS = 4
"""Number of steps whose weights stay in memory."""

FEW_STEPS = (20, 2)
"""Numbers of steps of which a sampler must allow one, to be offered."""

NO_LATENTS = "only models with an encoder, such as VAEs, have latents"
NO_NOISE = "only diffusion models have noise levels, samplers and guidance"


@dataclasses.dataclass(frozen=True, eq=False)
class Pictures:
  """Images that a page edits.

  Attributes:
    images: [N H W C], about [-1, 1].
    labels: their classes [N]; None for a model without classes.
    fields: their named arrays.
  """

  images: np.ndarray
  labels: np.ndarray | None
  fields: dict[str, np.ndarray]


class OpenedRun:
  """A run with its model; weights and pictures are read when they are first needed.

  Args:
    folder: the run's folder.
    overrides: changes of its config, e.g. of the sampler.
    ema: average to restore, as `load_run` takes it.
    num: number of images that are drawn at once.

  Raises:
    UserError: there is no run, it has no checkpoint or no such average, or one of its parts cannot
      be loaded.
  """

  def __init__(self, folder: Path, overrides: Sequence[Override], ema: str | None, num: int):
    self.folder, self.num = folder, num
    self.average = restore.parse_average(ema)
    self.experiment = trained_experiment(folder, overrides)
    self.checkpoints = checkpoint_folder(folder)
    self.find_steps()
    self.spec = restore.stored_spec(self.checkpoints, None)
    self.model = self.experiment.create(self.spec)
    self.class_names = restore.stored_class_names(self.checkpoints, None)
    self._mesh = sharding.create_mesh(self.experiment.mesh)
    self._weights: dict[int, Params] = {}
    self._lock = threading.RLock()

  def find_steps(self) -> None:
    """List the steps with a checkpoint: a run that still trains saves and deletes them.

    Raises:
      UserError: there is none.
    """
    steps = store.saved_steps(self.checkpoints)
    if not steps:
      raise UserError(
        f"`workdir={self.folder}`: no checkpoint yet; wait for the first one, or train: "
        f"diffusion-jax train --workdir={self.folder}"
      )
    self.steps = steps

  @property
  def null(self) -> int:
    """Return the number of the null class, which is the number of classes."""
    return self.model.num_classes

  @functools.cached_property
  def trained_classes(self) -> list[int]:
    """Return the classes with training images; none for a model without classes."""
    return restore.stored_classes(self.checkpoints, None) if self.null else []

  @property
  def diffusion(self) -> DiffusionModel | None:
    """Return the diffusion model of images or of latents; None for other kinds of models."""
    inner = self.model.inner if isinstance(self.model, LatentDiffusionModel) else self.model
    return inner if isinstance(inner, DiffusionModel) else None

  def with_diffusion(self, inner: DiffusionModel) -> Any:
    """Return the model with another diffusion model in the place of its own."""
    if isinstance(self.model, LatentDiffusionModel):
      return dataclasses.replace(self.model, inner=inner)
    return inner

  def inner_params(self, params: Params) -> Params:
    """Return the parameters of the diffusion model among those of the model."""
    return params["diffusion"] if isinstance(self.model, LatentDiffusionModel) else params

  def params(self, step: int) -> Params:
    """Return the averaged weights of a step on one device, from memory if it has them.

    Raises:
      UserError: the checkpoint cannot be read, or has no such average.
    """
    with self._lock:
      if step not in self._weights:
        restored = restore.restore_weights(self.folder, step, self._mesh, self.model, self.average)
        while len(self._weights) >= KEPT_STEPS:
          del self._weights[next(iter(self._weights))]
        self._weights[step] = jax.device_put(restored.params, jax.local_devices()[0])
      return self._weights[step]

  @property
  def sampler(self) -> Any:
    """Return the run's own sampler; None for a model without one."""
    return self.diffusion.sampler if self.diffusion else None

  @property
  def sampler_name(self) -> str:
    """Return the name of the run's own sampler; empty for a model without one."""
    return str(self.experiment.to_dict()["sampler"]["name"]) if self.diffusion else ""

  @functools.cached_property
  def samplers(self) -> dict[str, Any]:
    """Return the samplers that this model can use, by name; the run's own is the first."""
    if self.diffusion is None:
      return {}
    found = {self.sampler_name: self.sampler}
    for name, cls in SAMPLERS.items():
      if name not in found and self._fits(sampler := self._alike(cls())):
        found[name] = sampler.fit(self.diffusion.learned_variance)
    return found

  def _alike(self, sampler: Any) -> Any:
    """Return another sampler with the run's own clipping, on which its samples depend."""
    if sampler.clip == self.sampler.clip:
      return sampler
    return dataclasses.replace(sampler, clip=self.sampler.clip)

  def _fits(self, sampler: Any) -> bool:
    """Return True if some number of steps fits the process."""
    assert self.diffusion is not None
    if sampler.gives_end_time != self.sampler.gives_end_time:
      return False
    for steps in FEW_STEPS if hasattr(sampler, "steps") else (1,):
      with contextlib.suppress(ValueError):
        self._checked(sampler.fit(self.diffusion.learned_variance), steps)
        return True
    return False

  def _checked(self, sampler: Any, steps: int) -> Any:
    """Return a sampler with a number of steps; a ValueError if the process does not allow it."""
    assert self.diffusion is not None
    if hasattr(sampler, "steps"):
      sampler = dataclasses.replace(sampler, steps=steps)
    process = self.diffusion.process
    sampler.check(process.bind(process.init(jax.random.key(0))))
    return sampler

  def sampler_of(self, name: str, steps: int) -> Any:
    """Return a sampler with a number of steps, checked against the process.

    Raises:
      UserError: it does not fit the process.
    """
    try:
      return self._checked(self.samplers[name], steps)
    except ValueError as error:
      raise UserError(f"sampler: {error}") from error

  @functools.cached_property
  def pictures(self) -> Pictures:
    """Return held-out images.

    Raises:
      UserError: the data are not there, or are other images than the training images.
    """
    try:
      source = load_held_out(self.experiment.data)
      if source.spec.shape != self.spec.shape:
        raise UserError(
          f"the data have images of {source.spec.shape}, the run of {self.spec.shape}"
        )
      check_same_fields(self.model, source, self.spec)
      batch = first_examples(source, self.num)
    except OSError as error:
      raise UserError(f"the data cannot be read ({error})") from error
    rows = np.arange(self.num) % len(batch.index)
    labels = None
    if self.null:
      known = np.isin(batch.label, self.trained_classes)
      labels = np.where(known, batch.label, self.null).astype(np.int32)[rows]
    fields = {name: np.asarray(batch.fields[name])[rows] for name in self.model.fields}
    images = np.asarray(from_levels(batch.image, source.spec.num_levels))[rows]
    return Pictures(images, labels, fields)

  @functools.cached_property
  def drawn_fields(self) -> dict[str, np.ndarray]:
    """Return the named arrays that samples are given, those of held-out images in turn.

    Raises:
      UserError: the data cannot be loaded.
    """
    source = fields_source(self.model, self.experiment.data, self.spec)
    if source is None:
      return {}
    gathered = source.gather_fields(np.arange(self.num) % len(source))
    return {name: np.asarray(gathered[name]) for name in self.model.fields}

  @functools.cached_property
  def refusals(self) -> dict[str, str]:
    """Return why the model cannot do something, by what it is; empty text: it can."""
    can = self.model.capabilities
    linear = self.diffusion and any(isinstance(s, LinearSampler) for s in self.samplers.values())
    unguided = self.diffusion is not None and not self.diffusion.conditioning.droppable
    return {
      "sampler": "" if self.diffusion else NO_NOISE,
      "path": "" if linear else NO_NOISE,
      "guidance": (
        "this model was trained without classes, or without dropping them"
        if unguided else "" if self.diffusion else NO_NOISE
      ),
      "between": "" if linear or "encode" in can else "this model has neither noise nor latents",
      "inpaint": "" if linear and "denoise" in can else _cannot("edit"),
      "noise": "" if "denoise" in can else _cannot("denoise"),
      "latents": "" if "encode" in can else NO_LATENTS,
    }  # fmt: skip


def _cannot(capability: str) -> str:
  return f"this model cannot {CAPABILITIES[capability].partition(';')[0]}"
