"""Previews of a run when due: sample grids, reconstructions and held-out metrics."""

import contextlib
import functools
from collections.abc import Callable, Collection, Iterator

import numpy as np

from diffusion_jax import evaluation, parallel
from diffusion_jax.core import progress
from diffusion_jax.core.picture_grid import grid_columns, image_grid, label_captions
from diffusion_jax.core.pixels import NonFiniteImages, as_pictures, to_uint8
from diffusion_jax.data import class_names
from diffusion_jax.inference.condition_fields import fields_in_turn
from diffusion_jax.inference.draw import (
  Draw,
  captions_in_turn,
  cycle_labels,
  first_examples,
  make_draw,
  make_reconstruct,
  rows_in_turn,
)
from diffusion_jax.parallel.spread import jit_spread
from diffusion_jax.runs.experiment import Experiment
from diffusion_jax.runs.workdir import write_final
from diffusion_jax.train_loop.setup import Job, sampled_classes
from diffusion_jax.training.logger import Logger, has_row, picture_path
from diffusion_jax.training.step import make_eval_step, measured_likelihoods
from diffusion_jax.training.train_state import TrainState
from diffusion_jax.types import Aux, Params

Show = Callable[..., None]  # (logger, step, state, last, existing parts = ())


def make_show(job: Job) -> Show:
  """Return the function that shows the parts due at a step, and all parts at the last step."""
  config, generative = job.experiment, job.generative
  draw = make_draw(generative, job.mesh, config.logging.num_samples)
  measured = measured_likelihoods(generative, config.figure_names(config.eval.training_likelihoods))
  seeded = jit_spread(make_eval_step(generative, measured), job.mesh)
  seed = np.uint32(config.training.seed)
  eval_step = lambda params, aux, batch: seeded(params, aux, batch, seed)  # noqa: E731
  # Computed once, when it is first shown; it is only useful next to a likelihood.
  baseline = functools.cache(lambda: _baseline(job) if measured else None)

  def show(
    logger: Logger, step: int, state: TrainState, last: bool, there: Collection[str] = ()
  ) -> None:
    due = parts_due(job, step, last)
    if not last and due <= set(there):
      return
    params = state.ema
    with said_if_not_finite(logger, step):
      if "samples" in due and "samples" not in there:
        show_samples(job, logger, step, params, draw)
      if "reconstructions" in due and "reconstructions" not in there:
        show_reconstructions(job, logger, step, params)
    if last or ("held_out" in due and "held_out" not in there):
      lines, values = measure_held_out(job, (params, state.aux), eval_step, baseline)
      for line in lines:
        logger.print(f"step {step:,}: held-out {line}")
      if values and "held_out" not in there:
        logger.scalars(step, {f"held_out/{name}": value for name, value in values.items()})
      if last:
        write_final(job.workdir, step, values)

  return show


def parts_due(job: Job, step: int, last: bool) -> set[str]:
  """Return the parts that are due at a step: samples, reconstructions, held_out."""
  config, due = job.experiment, set()
  if last or _due(step, config.logging.sample_every_steps):
    due |= {"samples"} | ({"reconstructions"} if "encode" in job.generative.capabilities else set())
  if last or _due(step, config.eval.every_steps):
    due |= {"held_out"}
  return due


def make_up(job: Job, show: Show, logger: Logger, state: TrainState) -> None:
  """Show the missing parts of a resumed run's first step, whose checkpoint came first.

  The values equal those of an uninterrupted run: they depend on the state only. A collective.

  Args:
    job: parts of the run.
    show: function from `make_show`.
    logger: logger of this start, which has dropped incomplete rows.
    state: state from which the run continues.
  """
  step = int(state.step)
  if step:
    show(logger, step, state, step >= job.num_steps, parallel.broadcast_object(_shown(job, step)))


def _shown(job: Job, step: int) -> list[str]:
  """Return the parts of a step that are on disk."""
  grids = ("samples", "reconstructions")
  there = [name for name in grids if picture_path(job.workdir, step, name).is_file()]
  return there + ["held_out"] * has_row(job.workdir, step, "held_out/")


@contextlib.contextmanager
def said_if_not_finite(logger: Logger, step: int) -> Iterator[None]:
  """Print that images are not finite instead of drawing them, so that the run continues."""
  try:
    yield
  except NonFiniteImages as error:
    logger.print(f"step {step:,}: no picture: {error}")


def is_due(config: Experiment, step: int) -> bool:
  """Return whether anything is shown at a step, apart from the last one."""
  return _due(step, config.logging.sample_every_steps) or _due(step, config.eval.every_steps)


def _due(step: int, every: int | None) -> bool:
  return every is not None and step % every == 0


def _baseline(job: Job) -> float | None:
  if job.test is None:
    return None
  return evaluation.baseline_bits(job.generative, job.train, job.test)


def show_samples(job: Job, logger: Logger, step: int, params: Params, draw: Draw) -> None:
  """Draw a grid with the EMA weights, always from the same noise and labels."""
  num_images, classes = job.experiment.logging.num_samples, []
  labels = None
  if job.generative.num_classes:
    classes = sampled_classes(job)
    labels = cycle_labels(classes, num_images)
  fields = fields_in_turn(job.generative, job.test or job.train, 0, num_images)
  with progress.phase("drawing samples"):
    images = to_uint8(draw(params, labels, num_images, job.experiment.training.seed, fields=fields))
  captions = [] if labels is None else label_captions(labels, class_names(job.train.about))
  grid = image_grid(images, grid_columns(num_images, len(classes)), captions)
  path = logger.image(step, "samples", grid)
  if path is not None:
    logger.print(f"step {step:,}: samples in {path}")


def show_reconstructions(job: Job, logger: Logger, step: int, params: Params) -> None:
  """Draw a grid of held-out images, each row above its reconstructions."""
  num_images = job.experiment.logging.num_samples
  batch = first_examples(job.test or job.train, num_images)
  with progress.phase("drawing reconstructions"):
    decoded = to_uint8(make_reconstruct(job.generative, job.mesh)(params, batch))
  originals = as_pictures(batch.image, job.train.spec.num_levels)
  columns = grid_columns(num_images, 0)
  images = rows_in_turn([originals, decoded], columns)
  named = label_captions(np.asarray(batch.label), class_names(job.train.about))
  captions = captions_in_turn(named if job.train.spec.num_classes else [], 2, columns)
  path = logger.image(step, "reconstructions", image_grid(images, columns, captions))
  what = "held-out" if job.test else "training"
  if path is not None:
    logger.print(f"step {step:,}: {what} images above their reconstructions in {path}")


def measure_held_out(
  job: Job,
  model: tuple[Params, Aux],
  eval_step: Callable,
  baseline: Callable[[], float | None],
) -> tuple[list[str], dict[str, float]]:
  """Return metrics of the whole test split with the EMA weights: in words, and by name."""
  if job.test is None:
    return [], {}
  size = job.experiment.eval.batch_size
  metrics = evaluation.held_out(eval_step, *model, job.test, job.mesh, size)
  lines = list(evaluation.summary_lines(metrics, job.generative))
  values = evaluation.as_scalars(metrics)
  if (bits := baseline()) is not None:
    values["independent_pixels/bits_per_dim"] = bits
    lines.append(f"independent-pixel baseline {bits:.4f} bits/dim")
  return lines, values
