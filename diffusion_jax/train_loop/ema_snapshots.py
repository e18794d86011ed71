"""Snapshots of a run's power-function averages, kept permanently next to its checkpoints.

There is one at each multiple of ema.snapshot_every_steps and one at the last step, each an atomic
unit like a checkpoint. `inference.restore` combines them into averages of any width.
"""

from collections.abc import Mapping
from typing import Any

from diffusion_jax import parallel
from diffusion_jax.checkpoints import step_folders
from diffusion_jax.checkpoints.step_folders import Place
from diffusion_jax.checkpoints.store import Checkpoints
from diffusion_jax.training.ema import EMA
from diffusion_jax.training.train_state import AS_OFFSETS, TrainState, average


class Snapshots:
  """Save due snapshots in the background; every process must call every method.

  A resumed run neither loses nor repeats a snapshot. Snapshots of steps that it will take again are
  deleted. The snapshot of its first step is made again if it was incomplete on disk.

  Args:
    directory: workdir/ema_snapshots; created if the run takes any.
    ema: averages of the run.
    num_steps: number of steps of the run.
    state: state from which the run continues.
    meta: JSON values saved with each; "updates" and the mark AS_OFFSETS are added.
  """

  def __init__(
    self, directory: Place, ema: EMA, num_steps: int, state: TrainState, meta: Mapping[str, Any]
  ):
    self._every, self._num_steps, self._meta = ema.snapshot_every_steps, num_steps, meta
    self._names = [name for name in ema.names() if name.startswith("profile:")]
    first = int(state.step)
    parallel.on_process_0(lambda: step_folders.delete_after(directory, first))
    self._saver = None if self._every is None else Checkpoints(directory, None)
    if first:  # its checkpoint may be complete without its snapshot
      self.save(first, state)

  def is_due(self, step: int) -> bool:
    """Return whether a snapshot is due at a step."""
    return self._every is not None and (step == self._num_steps or step % self._every == 0)

  def save(self, step: int, state: TrainState, before_checkpoint: bool = False) -> None:
    """Save the averages if a snapshot is due at this step and missing.

    Args:
      step: batches consumed.
      state: state after these batches.
      before_checkpoint: true if a checkpoint follows; first wait for earlier steps' snapshots,
        which a run resumed from that checkpoint would not take again.

    Raises:
      CheckpointError: this save or the previous one failed.
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
      self.wait()  # after the run is marked finished, no later start repeats it

  def wait(self) -> None:
    """Wait until every snapshot is on disk; raise CheckpointError if one fails."""
    if self._saver is not None:
      self._saver.wait()

  def close(self) -> None:
    """Wait for the last save."""
    if self._saver is not None:
      self._saver.close()
