"""Snapshots of a run's power-function averages, kept for good beside its checkpoints.

One a multiple of ema.snapshot_every_steps and one at the last step, each an atomic unit as a
checkpoint is. From them `inference.restore` puts averages of any width together.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusion_jax import parallel
from diffusion_jax.checkpoints import step_folders
from diffusion_jax.checkpoints.store import Checkpoints
from diffusion_jax.training.ema import EMA
from diffusion_jax.training.train_state import AS_OFFSETS, TrainState, average


class Snapshots:
  """Saves in the background what is due; every process calls every method.

  A resumed run neither loses nor repeats a snapshot: those of steps that it will take again are
  deleted, and the one of its first step is made up for if it was not whole on disk.

  Args:
    directory: workdir/ema_snapshots; it is made if the run takes any.
    ema: the run's averages.
    num_steps: of the run.
    state: that the run goes on from.
    meta: JSON values saved beside each; "updates" and the mark AS_OFFSETS are added.
  """

  def __init__(
    self, directory: Path, ema: EMA, num_steps: int, state: TrainState, meta: Mapping[str, Any]
  ):
    self._every, self._num_steps, self._meta = ema.snapshot_every_steps, num_steps, meta
    self._names = [name for name in ema.names() if name.startswith("profile:")]
    first = int(state.step)
    parallel.first_does(lambda: step_folders.delete_after(directory, first))
    self._saver = None if self._every is None else Checkpoints(directory, None)
    if first:  # its checkpoint may have been whole before its snapshot was
      self.save(first, state)

  def is_due(self, step: int) -> bool:
    """Whether a snapshot is taken at a step."""
    return self._every is not None and (step == self._num_steps or step % self._every == 0)

  def save(self, step: int, state: TrainState, before_checkpoint: bool = False) -> None:
    """Saves the averages if one is due at this step and is not there.

    Args:
      step: batches consumed.
      state: after them.
      before_checkpoint: a checkpoint follows: first wait for the snapshots of earlier steps, which
        a run that goes on from it would not take again.

    Raises:
      CheckpointError: this save, or the one before, failed.
    """
    if self._saver is None:
      return
    self._saver.check()
    if before_checkpoint:
      self.wait()
    if self.is_due(step):
      content = {name: average(state.params, state.offsets[name]) for name in self._names}
      counts = {"step": state.step, "num_skipped": state.num_skipped}
      updates = int(state.step) - int(state.num_skipped)
      meta = {**self._meta, "updates": updates, **AS_OFFSETS}
      self._saver.save(step, {**counts, "averages": content}, meta)
    if step == self._num_steps:
      self.wait()  # once the run is marked as finished, no later start makes up for it

  def wait(self) -> None:
    """Returns once every snapshot is on disk; raises CheckpointError if one cannot be."""
    if self._saver is not None:
      self._saver.wait()

  def close(self) -> None:
    """Waits for the last save."""
    if self._saver is not None:
      self._saver.close()
