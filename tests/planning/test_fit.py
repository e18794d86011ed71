"""The largest batch: the line, the rounding, and the walk down from a guess that does not fit."""

import pytest

from diffusion_jax.planning import DoesNotFit, Fit, Measured, largest_batch, verify
from diffusion_jax.planning.compiled import Memory
from diffusion_jax.planning.fit import round_down
from diffusion_jax.planning.flops import StepFlops
from diffusion_jax.planning.work import Work


def affine(size):
  return 1000 + 7 * size


@pytest.mark.parametrize("limit", range(1100, 4000, 97))
def test_on_a_line_the_answer_is_the_largest_that_fits(limit):
  fit = largest_batch([(64, affine(64)), (32, affine(32))], limit)
  size = fit.batch_size_per_device
  assert affine(size) <= limit
  step = 8 if size >= 8 else 1
  assert affine(size + step) > limit
  assert fit.how == "by a line through 32 and 64"


def test_a_state_that_fills_the_memory_leaves_no_batch():
  assert largest_batch([(4, affine(4)), (8, affine(8))], 1003).batch_size_per_device is None


def test_memory_that_does_not_grow_gives_no_answer():
  fit = largest_batch([(4, 1000), (8, 1000)], 9000)
  assert fit == Fit(None, "unknown: the memory does not grow from 4 to 8")


@pytest.mark.parametrize(
  ("size", "parts", "rounded"),
  [(63, 1, 56), (7, 1, 7), (8, 1, 8), (100, 3, 96), (23, 3, 21), (2, 3, 0), (30, 4, 24)],
)
def test_rounding(size, parts, rounded):
  assert round_down(size, parts) == rounded


def compiler(limit):
  """Compiles what takes at most `limit`, and notes what it was asked for."""
  asked = []

  def compile_at(size):
    asked.append(size)
    if affine(size) > limit:
      return DoesNotFit(size, affine(size), limit)
    memory, flops = Memory(affine(size), 0, 0, 0, 0), StepFlops(1.0, 1.0)
    return Measured(size, size, memory, flops, Work(1.0, 1.0, 0), [], 0.0)

  return compile_at, asked


def test_a_guess_that_fits_is_compiled_once():
  compile_at, asked = compiler(affine(200))
  fit = verify(Fit(200, "by a line"), 64, 1, compile_at)
  assert (fit.batch_size_per_device, asked) == (200, [200])
  assert fit.how == "compiled; guessed by a line"


def test_a_guess_that_does_not_fit_is_lowered_until_it_does():
  compile_at, asked = compiler(affine(180))
  fit = verify(Fit(200, "by a line"), 64, 1, compile_at)
  assert fit.batch_size_per_device == 168
  assert asked == [200, 184, 168]  # each 5% less, rounded down to a multiple of 8
  assert fit.how == "compiled; guessed by a line; 200, 184 did not fit"


def test_the_walk_down_ends_at_what_is_known_to_fit():
  compile_at, asked = compiler(affine(64))
  assert verify(Fit(200, "by a line"), 192, 1, compile_at).batch_size_per_device == 192
  assert asked == [200]
