"""Save a training run, also before an error or a signal ends it."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

import jax

from diffusion_jax.checkpoints.store import CheckpointError, Checkpoints
from diffusion_jax.runs.signals import StoppedEarly
from diffusion_jax.train_loop.ema_snapshots import Snapshots
from diffusion_jax.training.throughput import NonFinite
from diffusion_jax.training.train_state import TrainState
from diffusion_jax.types import UserError


@contextlib.contextmanager
def saved_on_failure(
  saver: Checkpoints, snapshots: Snapshots, state: TrainState, meta: Mapping[str, Any]
) -> Iterator[None]:
  """Save the progress before an error in the block ends the run.

  After a failed save, delete its files and try once more with the current state. Snapshots of
  earlier steps must be complete first: a run resumed from here would not take them again. With
  several processes nothing is saved: the others may be running, and would not join the save.
  """
  try:
    yield
  except StoppedEarly:
    raise
  except Exception as error:
    if (step := int(state.step)) and jax.process_count() == 1:
      snapshots.wait()
      if isinstance(error, CheckpointError):
        saver.begin_anew()
      saver.save(step, state, meta)
      saver.wait()
    raise


@contextlib.contextmanager
def explained(saver: Checkpoints) -> Iterator[None]:
  """Explain what to do about non-finite updates."""
  try:
    yield
  except NonFinite as error:
    raise explain_non_finite(error, saver.steps()) from error


def took_last_step(state: TrainState) -> bool:
  """Return whether the last update was applied; earlier checkpoints stay otherwise."""
  return not int(state.num_skipped_in_a_row)


def stop_run(saver: Checkpoints, step: int, signal: str) -> NoReturn:
  """End the run when all saves are on disk."""
  saver.wait()
  raise StoppedEarly(f"{signal}: saved step {step:,}; the same command continues")


def explain_non_finite(error: NonFinite, saved: Sequence[int]) -> UserError:
  """Return the error for a run that stops for non-finite updates."""
  kept = f"the last good checkpoint is step {saved[-1]:,}" if saved else "no checkpoint was saved"
  return UserError(
    f"{error}, training.max_skipped_in_a_row in a row; {kept}; the same command resumes there: "
    "lower `optimizer.learning_rate=X`, clip with `optimizer.clip_norm=1`, or check the data"
  )
