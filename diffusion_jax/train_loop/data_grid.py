"""Draw the grid of training images in a run's folder: what the model sees."""

import contextlib
from pathlib import Path

import numpy as np

from diffusion_jax.core.files import read_png, write_png
from diffusion_jax.core.picture_grid import grid_columns, image_grid, label_captions
from diffusion_jax.core.pixels import as_pictures
from diffusion_jax.data import Source, class_names, trained_classes
from diffusion_jax.train_loop.setup import Job
from diffusion_jax.training.logger import Logger
from diffusion_jax.types import UserError

MAX_READ = 512
"""Number of images that are read; those of a class fill its column."""


def write_data_grid(job: Job) -> None:
  """Write samples/data.png and print its path, unless it exists.

  Unreadable images give no grid; training reports them when it reads them.
  """
  path = data_grid_path(job.workdir)
  if path.exists() or job.train.spec.channels not in (1, 3):
    return
  try:
    write_png(path, data_grid(job.train, job.experiment.logging.num_samples))
  except (UserError, OSError):
    return
  print(f"training images, as the model sees them: {path}", flush=True)


def data_grid_path(workdir: Path) -> Path:
  """Return the path of a run's grid of training images."""
  return workdir / "samples" / "data.png"


def show_data_grid(workdir: Path, logger: Logger, first_step: int) -> None:
  """Send the grid to the trackers at the first start of a run; later starts need not."""
  path = data_grid_path(workdir)
  if first_step == 0 and path.exists():
    with contextlib.suppress(OSError):
      logger.show(0, "data", read_png(path))


def data_grid(source: Source, num_images: int) -> np.ndarray:
  """Return a grid of evenly spaced images, one column per class if the classes are few."""
  index = np.unique(np.linspace(0, len(source) - 1, min(len(source), MAX_READ)).astype(int))
  images, labels = source.gather(index)
  pictures = as_pictures(images, source.spec.num_levels)
  classes = trained_classes(source) if source.spec.num_classes else []
  columns, names = grid_columns(num_images, len(classes)), class_names(source.about)
  if columns == len(classes):
    rows = max(1, num_images // columns)
    positions = [np.flatnonzero(labels == label) for label in classes]
    blank = np.full_like(pictures[0], 255)
    cells = [p[row] if row < len(p) else None for row in range(rows) for p in positions]
    shown = np.stack([blank if cell is None else pictures[cell] for cell in cells])
    captions = label_captions(classes * rows, names)
  else:
    chosen = np.unique(np.linspace(0, len(index) - 1, num_images).astype(int))
    shown, captions = pictures[chosen], label_captions(labels[chosen], names) if classes else []
  return image_grid(shown, columns, captions)
