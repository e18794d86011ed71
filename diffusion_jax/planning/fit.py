"""Find the largest batch that fits into a device's memory."""

import math
from collections.abc import Callable
from typing import NamedTuple

from diffusion_jax.planning.compiled import DoesNotFit, Measured

ROUND_TO = 8
SHRINK = 0.95
MAX_TRIES = 6


class Fit(NamedTuple):
  """A batch size and the way it was found.

  Attributes:
    batch_size_per_device: the largest batch that fits; None: not known.
    how: explanation, e.g. "by a line through 64 and 128".
  """

  batch_size_per_device: int | None
  how: str


def largest_batch(points: list[tuple[int, int]], available: int, multiple: int = 1) -> Fit:
  """Extend a line through the memory of two batch sizes to the available memory.

  Args:
    points: (images per device, peak bytes) of two batch sizes.
    available: memory of a device, bytes.
    multiple: number of microbatches, which must divide the batch.
  """
  (low, low_bytes), (high, high_bytes) = sorted(points)
  slope = (high_bytes - low_bytes) / (high - low)
  if slope <= 0:
    return Fit(None, f"unknown: the memory does not grow from {low} to {high}")
  size = round_down(math.floor(low + (available - low_bytes) / slope), multiple)
  return Fit(size if size >= multiple else None, f"by a line through {low} and {high}")


def round_down(size: int, multiple: int) -> int:
  """Round down to a multiple of the microbatches, and of 8 too if the result is positive."""
  unit = math.lcm(ROUND_TO, multiple)
  unit = unit if size >= unit else multiple
  return size // unit * unit


def verify(
  guess: Fit, fits: int, multiple: int, compile_at: Callable[[int], Measured | DoesNotFit]
) -> Fit:
  """Compile the guess, and smaller batches until one fits.

  Args:
    guess: estimate from `largest_batch`.
    fits: batch size that is known to fit.
    multiple: number of microbatches.
    compile_at: function that compiles the step for a number of images per device.
  """
  size, refused = guess.batch_size_per_device, []
  for _ in range(MAX_TRIES):
    if size is None or size <= fits:
      break
    if isinstance(compile_at(size), Measured):
      return Fit(size, _verified(guess, refused))
    refused.append(size)
    size = min(round_down(int(size * SHRINK), multiple), round_down(size - 1, multiple))
  return Fit(fits, _verified(guess, refused))


def _verified(guess: Fit, refused: list[int]) -> str:
  did_not = f"; {', '.join(str(n) for n in refused)} did not fit" if refused else ""
  return f"compiled; guessed {guess.how}{did_not}"
