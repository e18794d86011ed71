"""Grids of an evaluation: samples, classes, progression, reconstructions, neighbours."""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from diffusion_jax.core import rng
from diffusion_jax.core.class_names import name_of
from diffusion_jax.core.picture_grid import grid_columns, image_grid, label_captions
from diffusion_jax.core.pixels import as_pictures, to_uint8
from diffusion_jax.data import class_names
from diffusion_jax.evaluation import drawing, measure
from diffusion_jax.evaluation.context import EvaluationContext, sampled_fields
from diffusion_jax.evaluation.drawing import CheckpointUnderTest
from diffusion_jax.inference import draw
from diffusion_jax.parallel import sharding
from diffusion_jax.parallel.spread import jit_spread
from diffusion_jax.report import Part, Picture, Row
from diffusion_jax.types import Condition

GRID = 64
MAX_CLASSES = 20
PER_CLASS = 4
MAX_PIXELS = 4_000_000
"""Pixels of the real images and the samples by class; larger images are fewer."""
MAX_SEARCHED = 4096
"""Number of training images among which those of each class are searched."""
ROWS = 8
MOMENTS = 10
NEIGHBOURS = 5


def make_pictures(
  context: EvaluationContext, checkpoint: CheckpointUnderTest
) -> dict[str, Picture]:
  """Return name -> picture for everything that the model can show; samples are measured ones."""
  rows = _rows_of_classes(context)
  wanted = sorted(
    {*range(min(GRID, context.num_samples)), *(i for row in rows for i in row.places)}
  )
  images = _samples(context, checkpoint, wanted)
  pictures = {"samples": _grid_of_samples(context, images)}
  name = "classes" if rows[0].label is not None else "real"
  pictures[name] = _beside_real(context, images, rows)
  if "trajectory" in context.generative.capabilities:
    pictures["progression"] = _progression(context, checkpoint)
  if "encode" in context.generative.capabilities:
    pictures["reconstructions"] = _reconstructions(context, checkpoint)
  if (nearest := _nearest(context, checkpoint)) is not None:
    pictures["nearest"] = nearest
  return pictures


class ClassRow(NamedTuple):
  """A class beside whose real images samples are shown.

  Attributes:
    label: number of the class; None: all images, of a model without classes.
    places: numbers of its samples.
  """

  label: int | None
  places: list[int]


def _rows_of_classes(context: EvaluationContext) -> list[ClassRow]:
  """Return the shown classes, evenly spaced if they are many; samples have them in turn."""
  num_classes, num = len(context.classes), context.num_samples
  if not num_classes:
    return [ClassRow(None, list(range(min(num, 4 * PER_CLASS))))]
  drawn = min(num_classes, num)  # others have no sample
  chosen = np.unique(np.linspace(0, drawn - 1, min(drawn, MAX_CLASSES)).astype(int)).tolist()
  pixels = 2 * len(chosen) * math.prod(context.train.spec.shape[:2])
  most = min(PER_CLASS, max(2, MAX_PIXELS // pixels))
  return [
    ClassRow(int(context.classes[i]), list(range(i, num, num_classes))[:most]) for i in chosen
  ]


def _samples(
  context: EvaluationContext, checkpoint: CheckpointUnderTest, wanted: list[int]
) -> dict[int, UInt8[np.ndarray, "H W C"]]:
  """Return the samples of the first seed with these numbers."""
  kept, first = {}, 0
  for _, images in drawing.draw_samples(
    context, checkpoint, context.setting, context.seed, context.num_samples
  ):
    kept |= {i: images[i - first] for i in wanted if first <= i < first + len(images)}
    first += len(images)
    if first > wanted[-1]:
      break
  return kept


def _grid_of_samples(context: EvaluationContext, samples: Mapping[int, np.ndarray]) -> Picture:
  num = min(GRID, context.num_samples)
  images = np.stack([samples[i] for i in range(num)])
  columns, labels = math.ceil(math.sqrt(num)), drawing.labels_of(context, 0, num)
  captions = [] if labels is None else label_captions(labels, class_names(context.train.about))
  words = f"The first {num} samples, none left out."
  rows = [Row("", [Part("", images, _names(context, labels))])]
  return Picture(image_grid(images, columns, captions), words, rows)


def _names(context: EvaluationContext, labels: Sequence[int] | np.ndarray | None) -> list[str]:
  """Return the names of classes; without names their numbers."""
  names = class_names(context.train.about)
  return [name_of(int(label), names) for label in labels] if labels is not None else []


def _beside_real(
  context: EvaluationContext, samples: Mapping[int, np.ndarray], rows: list[ClassRow]
) -> Picture:
  """Show training images beside samples of the same class, one row per class."""
  real = _real_images(context, [row.label for row in rows], max(len(r.places) for r in rows))
  names = _names(context, [row.label for row in rows if row.label is not None]) or [""]
  shown, cells = [], []
  for row, name, originals in zip(rows, names, real, strict=True):
    images = np.stack([samples[i] for i in row.places])
    parts = [Part("real", originals), Part("samples", images)]
    shown.append(Row(name, [part for part in parts if len(part.images)]))
    cells.append((originals, images))
  columns = max(max(len(a), len(b)) for a, b in cells)
  grid = np.concatenate([_padded(a, b, columns) for a, b in cells])
  captions = label_captions([row.label for row in rows if row.label is not None],
                            class_names(context.train.about))  # fmt: skip
  texts = [text for first in captions for text in (first, *[""] * 2 * columns)]
  total = len(context.classes)
  some = f"{len(rows)} of {total:,} classes: " if total > len(rows) else ""
  words = f"{some}training images at the left, samples at the right."
  return Picture(image_grid(grid, 2 * columns + 1, texts), words.capitalize(), shown)


def _padded(real: np.ndarray, samples: np.ndarray, columns: int) -> np.ndarray:
  """Return a row of the grid: real images, a gap and samples, on white where there are fewer."""
  row = np.full((2 * columns + 1, *samples.shape[1:]), 255, np.uint8)
  row[: len(real)] = real
  row[columns + 1 : columns + 1 + len(samples)] = samples
  return row


def _real_images(
  context: EvaluationContext, labels: list[int | None], most: int
) -> list[UInt8[np.ndarray, "N H W C"]]:
  """Return up to `most` training images of each class, from an arbitrary but fixed selection."""
  source, batch = context.train, 256
  places = np.random.default_rng(0).permutation(len(source))[:MAX_SEARCHED]
  found: dict[int | None, list[np.ndarray]] = {label: [] for label in labels}
  for first in range(0, len(places), batch):
    images, theirs = source.gather(places[first : first + batch])
    for label, kept in found.items():
      same = np.flatnonzero(theirs == label) if label is not None else np.arange(len(images))
      if len(chosen := same[: most - len(kept)]):
        kept.extend(as_pictures(images[chosen], source.spec.num_levels))
    if all(len(kept) >= most for kept in found.values()):
      break
  empty = np.zeros((0, *source.spec.shape), np.uint8)
  return [np.stack(kept) if kept else empty for kept in found.values()]


def _progression(context: EvaluationContext, checkpoint: CheckpointUnderTest) -> Picture:
  """Draw one row per image: the x0 estimate at evenly spaced steps of the sampler.

  The last one is final.
  """
  fields = sampled_fields(context, 0, ROWS)
  condition = Condition(drawing.labels_of(context, 0, ROWS), fields=fields)

  @functools.partial(jit_spread, mesh=context.mesh)
  def follow(params, index, condition):
    keys = rng.sample_keys(context.seed, index)
    return context.generative.trajectory(params, keys, condition)

  path = sharding.fetch(follow(checkpoint.params, np.arange(ROWS, dtype=np.uint32), condition))
  steps = np.unique(np.linspace(0, len(path) - 1, min(MOMENTS, len(path))).astype(int))
  cells = to_uint8(path[steps]).swapaxes(0, 1).reshape(-1, *path.shape[2:])
  numbers = ", ".join(str(step + 1) for step in steps)
  words = f"The x0 estimate after steps {numbers} of {len(path)}, one row per image."
  names = _names(context, drawing.labels_of(context, 0, ROWS)) or [""] * ROWS
  captions = [f"step {step + 1}" for step in steps]
  rows = [
    Row(n, [Part("", one, captions)]) for n, one in zip(names, np.split(cells, ROWS), strict=True)
  ]
  return Picture(image_grid(cells, len(steps)), words, rows)


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
  labels = list(names) or [""] * len(originals)
  pairs = zip(labels, originals, to_uint8(decoded), strict=True)
  rows = [Row(name, [Part("image, reconstruction", np.stack(pair))]) for name, *pair in pairs]
  return Picture(image_grid(images, columns, captions), words, rows)


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
  rows = [
    Row("", [Part("sample", sample[None]), Part("nearest training images", others)])
    for sample, others in zip(samples, near, strict=True)
  ]
  words = f"Left: a sample. Right: its {wanted} nearest training images ({name})."
  return Picture(grid, words, rows)
