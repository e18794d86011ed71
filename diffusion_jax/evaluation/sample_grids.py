"""Grids of an evaluation: samples, classes, progression, reconstructions, neighbours."""

import math

import jax
import numpy as np
from jaxtyping import UInt8

from diffusion_jax.core import rng
from diffusion_jax.core.picture_grid import grid_columns, image_grid, label_captions
from diffusion_jax.core.pixels import as_pictures, to_uint8
from diffusion_jax.data import class_names
from diffusion_jax.evaluation import drawing, measure
from diffusion_jax.evaluation.context import EvaluationContext, sampled_fields
from diffusion_jax.evaluation.drawing import CheckpointUnderTest
from diffusion_jax.inference import draw
from diffusion_jax.parallel import sharding
from diffusion_jax.report import Picture
from diffusion_jax.types import Condition

GRID = 64
MAX_CLASSES = 20
PER_CLASS = 10
ROWS = 8
MOMENTS = 10
NEIGHBOURS = 5


def make_pictures(
  context: EvaluationContext, checkpoint: CheckpointUnderTest
) -> dict[str, Picture]:
  """Return name -> picture for everything that the model can show; samples are measured ones."""
  images = _samples(context, checkpoint)
  pictures = {"samples": _grid_of_samples(context, images)}
  if 2 <= len(context.classes) <= len(images):  # otherwise a class has no sample
    pictures["classes"] = _classes(context, images)
  if "trajectory" in context.generative.capabilities:
    pictures["progression"] = _progression(context, checkpoint)
  if "encode" in context.generative.capabilities:
    pictures["reconstructions"] = _reconstructions(context, checkpoint)
  if (nearest := _nearest(context, checkpoint)) is not None:
    pictures["nearest"] = nearest
  return pictures


def _samples(
  context: EvaluationContext, checkpoint: CheckpointUnderTest
) -> UInt8[np.ndarray, "N H W C"]:
  """Return the first samples of the first seed, enough for every grid."""
  wanted = min(max(GRID, len(context.classes) * PER_CLASS), context.num_samples)
  batches, num_drawn = [], 0
  for _, images in drawing.draw_samples(
    context, checkpoint, context.setting, context.seed, context.num_samples
  ):
    batches.append(images)
    num_drawn += len(images)
    if num_drawn >= wanted:
      break
  return np.concatenate(batches)[:wanted]


def _grid_of_samples(context: EvaluationContext, images: np.ndarray) -> Picture:
  images = images[:GRID]
  columns, labels = math.ceil(math.sqrt(len(images))), drawing.labels_of(context, 0, len(images))
  captions = [] if labels is None else label_captions(labels, class_names(context.train.about))
  words = f"The first {len(images)} samples, none left out."
  return Picture(image_grid(images, columns, captions), words)


def _classes(context: EvaluationContext, images: np.ndarray) -> Picture:
  """Draw one row per class, by the label given to the sampler; images are ordered by class."""
  num_classes = len(context.classes)
  shown = [images[i::num_classes][:PER_CLASS] for i in range(min(num_classes, MAX_CLASSES))]
  columns = min(len(row) for row in shown)
  cells = np.concatenate([row[:columns] for row in shown])
  labels, names = context.classes[: len(shown)], class_names(context.train.about)
  named = f"0 to {len(shown) - 1}" if labels[-1] == len(shown) - 1 else ", ".join(map(str, labels))
  if names:
    named = ", ".join(names[label] for label in labels)
  texts = label_captions(labels, names)
  captions = [text for first in texts for text in (first, *[""] * (columns - 1))]
  words = f"One row per class, {named}: the first {columns} samples with that label."
  return Picture(image_grid(cells, columns, captions), words)


def _progression(context: EvaluationContext, checkpoint: CheckpointUnderTest) -> Picture:
  """Draw one row per image: the x0 estimate at evenly spaced steps of the sampler.

  The last one is final.
  """
  fields = sampled_fields(context, 0, ROWS)
  condition = Condition(drawing.labels_of(context, 0, ROWS), fields=fields)

  @jax.jit
  def follow(params, index, condition):
    keys = rng.sample_keys(context.seed, index)
    return context.generative.trajectory(params, keys, condition)

  path = sharding.fetch(follow(checkpoint.params, np.arange(ROWS, dtype=np.uint32), condition))
  steps = np.unique(np.linspace(0, len(path) - 1, min(MOMENTS, len(path))).astype(int))
  cells = to_uint8(path[steps]).swapaxes(0, 1).reshape(-1, *path.shape[2:])
  numbers = ", ".join(str(step + 1) for step in steps)
  words = f"The x0 estimate after steps {numbers} of {len(path)}, one row per image."
  return Picture(image_grid(cells, len(steps)), words)


def _reconstructions(context: EvaluationContext, checkpoint: CheckpointUnderTest) -> Picture:
  source = context.test or context.train
  batch = draw.first_examples(source, 32)
  decoded = draw.make_reconstruct(context.generative, context.mesh)(checkpoint.params, batch)
  originals = as_pictures(np.asarray(batch.image), source.spec.num_levels)
  columns = grid_columns(len(decoded), 0)
  images = draw.rows_in_turn([originals, to_uint8(decoded)], columns)
  what = "held-out" if context.test else "training"
  words = f"Each row of {what} images above their reconstructions."
  is_labelled = bool(source.spec.num_classes)
  names = label_captions(np.asarray(batch.label), class_names(source.about)) if is_labelled else []
  captions = draw.captions_in_turn(names, 2, columns)
  return Picture(image_grid(images, columns, captions), words)


def _nearest(context: EvaluationContext, checkpoint: CheckpointUnderTest) -> Picture | None:
  """Draw rows of a sample and its nearest training images in feature space."""
  wanted = min(NEIGHBOURS, len(context.train))
  nearest = measure.nearest_training_images(context, checkpoint, ROWS, wanted)
  if nearest is None:
    return None
  samples, places = nearest
  images = context.train.gather(places.ravel())[0]
  near = as_pictures(images, context.train.spec.num_levels).reshape(
    *places.shape, *samples.shape[1:]
  )
  blank = np.full_like(samples[:, None], 255)
  cells = np.concatenate([samples[:, None], blank, near], axis=1)
  grid = image_grid(cells.reshape(-1, *samples.shape[1:]), wanted + 2)
  name = context.feature_spaces[0].extractor.name
  return Picture(grid, f"Left: a sample. Right: its {wanted} nearest training images ({name}).")
