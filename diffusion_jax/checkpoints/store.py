"""Save and restore checkpoints: state, step, config and checksums as one atomic unit.

A folder has one folder per step. Only a committed step with correct checksums is restored.
"""

import contextlib
import dataclasses
import errno
import functools
import json
import time
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, TypeVar

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as preservation

from diffusion_jax import parallel
from diffusion_jax.checkpoints import leaves, step_folders
from diffusion_jax.checkpoints.step_folders import Damage, Place, Unreadable, saved_steps
from diffusion_jax.core import files, progress, stacking, storage
from diffusion_jax.core.parts import Part
from diffusion_jax.core.settings import HOW_IT_RUNS, Facts
from diffusion_jax.types import UserError

T = TypeVar("T")
Foreign = Callable[[Mapping[str, Any]], str | None]

PATIENCE_SEC = 10.0
"""Seconds to wait for the writes of a failed save."""

MIN_SLICE_BYTES = 1 << 20
"""Minimum size of a slice when devices with copies share the writing, bytes."""


@dataclasses.dataclass(frozen=True)
class Checkpointing(Part):
  """The checkpoints that are saved and kept.

  Attributes:
    every_steps: steps between two checkpoints; the last step is always saved.
    keep_last: number of newest checkpoints to keep.
    keep_every_steps: keep checkpoints at multiples of this for good; none: only the newest ones.
  """

  every_steps: int = 1000
  keep_last: int = 3
  keep_every_steps: int | None = None

  setting_facts: ClassVar[Facts] = HOW_IT_RUNS

  def __post_init__(self):
    for name in ("every_steps", "keep_last", "keep_every_steps"):
      if getattr(self, name) is not None and getattr(self, name) < 1:
        raise ValueError(f"{name}={getattr(self, name)} must be at least 1")


class CheckpointError(Exception):
  """Raised if a save failed: the run must not continue without checkpoints."""

  def __init__(self, message: str, directory: Place, num_bytes: int):
    super().__init__(message)
    self.directory, self.num_bytes = directory, num_bytes


def explain_failed_save(error: BaseException) -> str | None:
  """Explain in one line why storage refused a save; return None for any other error.

  The line names the newest whole checkpoint, which a later save may have changed.
  """
  failed = next((e for e in storage.chain(error) if isinstance(e, CheckpointError)), None)
  if failed is None or (line := step_folders.explain_write(failed, failed.directory)) is None:
    return None
  said = f"saving {storage.size(failed.num_bytes)} failed: {line}"
  try:
    whole = saved_steps(failed.directory)
  except Exception:  # of any library that reads buckets
    return said
  newest = f"step {whole[-1]:,} is intact there" if whole else "no checkpoint is intact there yet"
  return f"{said}; {newest}"


class Restored(NamedTuple):
  """A restored state.

  Attributes:
    step: step of the checkpoint.
    state: requested tree, in the requested shardings.
    meta: JSON values saved with it, including "leaves" with the checksums of the whole state.
    damaged: newer steps that were skipped as damaged, without those that a run has deleted.
  """

  step: int
  state: Any
  meta: Mapping[str, Any]
  damaged: tuple[Damage, ...]


class Checkpoints:
  """Save checkpoints in the background; every process must call every method.

  Args:
    directory: folder of the checkpoints; it is created.
    config: times of saving and numbers to keep; None keeps everything.
  """

  def __init__(self, directory: Place, config: Checkpointing | None):
    self._directory, self._config, self._num_bytes, self._has_failed = directory, config, 0, False
    self._barrier = parallel.Barrier(ocp.multihost.get_barrier_sync_fn())
    self._manager = self._open()

  def begin_anew(self) -> None:
    """Allow saving again after a failed save; delete the files that it had written."""
    deadline = time.monotonic() + PATIENCE_SEC
    while True:
      try:
        self._manager = self._open()
        return
      except OSError as error:  # a write was still in progress
        if error.errno != errno.ENOTEMPTY or time.monotonic() > deadline:
          raise self._error(f"a failed save could not be deleted: {error}") from error
        time.sleep(0.1)

  def _open(self) -> ocp.CheckpointManager:
    arrays = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=MIN_SLICE_BYTES)
    registry = ocp.type_handlers.create_type_handler_registry((jax.Array, arrays))
    return ocp.CheckpointManager(
      step_folders.absolute(self._directory),
      item_handlers={
        "state": ocp.PyTreeCheckpointHandler(type_handler_registry=registry),
        "meta": ocp.JsonCheckpointHandler(),
      },
      options=ocp.CheckpointManagerOptions(
        preservation_policy=_preservation(self._config),
        cleanup_tmp_directories=True,
        async_options=ocp.options.AsyncOptions(barrier_sync_fn=self._barrier),
        # Several folders are written at once: their processes must not share one barrier.
        multiprocessing_options=ocp.options.MultiprocessingOptions(
          barrier_sync_key_prefix=self._directory.name
        ),
      ),
    )

  def save(self, step: int, state: Any, meta: Mapping[str, Any]) -> None:
    """Copy the state to the host, then write it in the background; the caller may donate it.

    Args:
      step: batches consumed; an existing step is not saved again.
      state: tree of arrays.
      meta: JSON values saved with the state; "step" and "leaves" are added.

    Raises:
      CheckpointError: this save or the previous one failed, or the folder has a newer step.
    """
    steps = self.steps()
    if step in steps:
      return
    if steps and step < steps[-1]:
      raise self._error(f"checkpoint {step} is older than {steps[-1]}, which is in the folder")
    self._num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    sealed = leaves.seal({**meta, "step": step, "leaves": leaves.describe_leaves(state)})
    content = ocp.args.Composite(state=ocp.args.PyTreeSave(state), meta=ocp.args.JsonSave(sealed))
    try:
      self._settle()
      saved = self._manager.save(step, args=content, force=True)
    except Exception as error:
      raise self._error(f"saving a checkpoint failed: {error}") from error
    if not saved:
      raise self._error(f"checkpoint {step} was refused by orbax")

  def check(self) -> None:
    """Raise CheckpointError if a save in the background has failed.

    With several processes, all raise at the next save and none earlier: none may stop alone.
    """
    if jax.process_count() > 1:
      return
    try:
      self._manager.check_for_errors()
    except Exception as error:
      raise self._error(f"writing a checkpoint failed: {error}") from error

  def wait(self) -> None:
    """Wait until everything is on disk; raise CheckpointError if that fails; a collective."""
    try:
      self._settle()
      self._manager.wait_until_finished()
    except Exception as error:
      raise self._error(f"writing a checkpoint failed: {error}") from error

  def _settle(self) -> None:
    """Wait until a save has finished on every process, or failed on one."""
    while jax.process_count() > 1:
      failed = self._barrier.error
      failure = None if failed is None else storage.numbered_reason(failed)
      reports = parallel.all_gather_objects([failure, self._manager.is_saving_in_progress()])
      reason = next((f"process {i}: {said}" for i, (said, _) in enumerate(reports) if said), None)
      if reason is not None:
        raise failed or RuntimeError(reason)
      if not any(is_saving for _, is_saving in reports):
        return
      time.sleep(0.1)

  def _error(self, message: str) -> CheckpointError:
    self._has_failed = True
    return CheckpointError(message, self._directory, self._num_bytes)

  def steps(self) -> list[int]:
    """Return the committed steps and the one being written, in ascending order."""
    return sorted(self._manager.all_steps())

  def close(self) -> None:
    """Wait for the last save, unless one failed: threads of other processes may never arrive."""
    if self._has_failed and jax.process_count() > 1:
      return
    try:
      self._manager.close()
    except Exception as error:
      raise self._error(f"writing a checkpoint failed: {error}") from error


def _preservation(config: Checkpointing | None) -> preservation.AnyPreservationPolicy:
  if config is None:
    return preservation.AnyPreservationPolicy([preservation.PreserveAll()])
  policies: list[preservation.PreservationPolicy] = [preservation.LatestN(config.keep_last)]
  if config.keep_every_steps:
    policies.append(preservation.EveryNSteps(config.keep_every_steps))
  return preservation.AnyPreservationPolicy(policies)


def restore_checkpoint(
  directory: Place, target: Any, step: int | None = None, foreign: Foreign = lambda meta: None
) -> Restored:
  """Restore the newest intact checkpoint, or a given one; changes nothing on disk.

  Args:
    directory: folder of the checkpoints.
    target: tree of ShapeDtypeStructs with shardings. A part of the saved tree, such as
      {"params": ...} or one of the offsets, {"offsets": {name: ...}}, restores only that part. Or a
      function from the stored leaves by name to such a tree, if versions differ.
    step: step to restore; None: the newest, or older ones if it is damaged, or those that a
      running program has saved meanwhile.
    foreign: function from meta to the reason why the checkpoint belongs to another run, which
      counts as damage; None as result: it belongs to this run.

  Raises:
    Unreadable: the given step is damaged, or all steps are.
    UserError: no checkpoint exists, the given step is missing, or it belongs to another model.
    OSError: the process may not read the files, or their mount is gone; this is not damage.
  """
  damaged: list[Damage] = []
  causes: list[Exception] = []
  tried: set[int] = set()
  while (candidate := _next(directory, step, tried)) is not None:
    tried.add(candidate)
    folder = directory / str(candidate)
    checked, reason = _attempt(lambda folder=folder: _check(folder, target, foreign), causes)
    state = None
    with progress.phase(f"restoring step {candidate:,}"):
      if checked is not None and reason is None:
        read = functools.partial(_read, folder, checked.stored)
        state, reason = _attempt(read, causes)
      if checked is not None and reason is None:
        reason = leaves.compare_checksums(state, checked.meta["leaves"])
    if checked is not None and reason is None:
      found = tuple(_still_there(directory, damaged))
      return Restored(candidate, stacking.as_wanted(state, checked.wanted), checked.meta, found)
    damaged.append(Damage(candidate, str(reason)))
  damaged = _still_there(directory, damaged)
  if not damaged:  # a run has deleted the steps that were tried
    parallel.agree(lambda: _candidates(directory, step))
  raise Unreadable(directory, damaged, _others(directory, step)) from next(iter(causes), None)


def read_meta(directory: Place, step: int | None = None) -> dict[str, Any]:
  """Return the metadata of the newest readable state, or of a given one.

  Raises:
    UserError: as in `restore_checkpoint`.
  """
  damaged: list[Damage] = []
  causes: list[Exception] = []
  tried: set[int] = set()
  while left := [s for s in _candidates(directory, step) if s not in tried]:
    tried.add(left[0])
    try:
      return _load_meta(directory / str(left[0]))
    except Exception as error:
      if storage.spares_content(error):
        raise
      damaged.append(Damage(left[0], storage.reason(error)))
      causes.append(error)
  raise Unreadable(directory, damaged, _others(directory, step)) from causes[0]


def _others(directory: Place, step: int | None, most: int = 3) -> str:
  """Name the steps nearest to a damaged one whose metadata is intact, as advice."""
  readable: list[int] = []
  steps = [] if step is None else sorted(saved_steps(directory), key=lambda s: abs(s - step))
  for other in steps:
    if other != step and len(readable) < most:
      with contextlib.suppress(Exception):
        _load_meta(directory / str(other))
        readable.append(other)
  listed = " or ".join(f"`step={s}`" for s in sorted(readable))
  if not readable:
    return "restore a copy of it, or train again with `fresh=True`"
  return f"give another `step`: the metadata of {listed} can be read"


def _next(directory: Place, step: int | None, tried: set[int]) -> int | None:
  """Return the newest untried step that process 0 lists now: a run may save and delete."""

  def find() -> int | None:
    if step is not None and tried:
      return None
    return next((s for s in _candidates(directory, step) if s not in tried), None)

  return parallel.broadcast_object(parallel.agree(find))


def _still_there(directory: Place, damaged: list[Damage]) -> list[Damage]:
  there = parallel.broadcast_object([(directory / str(d.step)).is_dir() for d in damaged])
  return [d for d, is_there in zip(damaged, there, strict=True) if is_there]


def _candidates(directory: Place, step: int | None) -> list[int]:
  """Return the steps to try, newest first."""
  steps = saved_steps(directory)
  if not steps:
    raise UserError(f"{directory} holds no checkpoint; train first, or give another `workdir`")
  if step is None:
    return steps[::-1]
  if step not in steps:
    listed = ", ".join(map(str, steps))
    raise UserError(f"`step={step}`: no such checkpoint in {directory}; there are {listed}")
  return [step]


def _attempt(function: Callable[[], T], causes: list[Exception]) -> tuple[T | None, str | None]:
  """Return the value if every process could read it, or else the reason of the failure.

  An error of this process is added to `causes`.
  A disk block that cannot be read is a fault of the checkpoint too: an older one may be intact.

  Raises:
    Exception: a fault of the process, the devices or the mount, which would affect any checkpoint.
  """

  def attempt() -> tuple[T | None, str | None]:
    try:
      return function(), None
    except (UserError, MemoryError, jax.errors.JaxRuntimeError):
      raise
    except Exception as error:
      if storage.spares_content(error):
        raise
      causes.append(error)
      return None, storage.reason(error)

  result, reason = parallel.agree(attempt)
  return result, next((r for r in parallel.all_gather_objects(reason) if r), None)


class _Checked(NamedTuple):
  """A step's metadata, the tree of targets as it is stored, and as it was requested."""

  meta: dict[str, Any]
  stored: Any
  wanted: Any


def _check(folder: Place, target: Any, foreign: Foreign) -> _Checked:
  """Return what to restore from a step; UserError: another model, others: damage."""
  meta = _load_meta(folder)
  if (reason := foreign(meta)) is not None:
    raise ValueError(reason)
  wanted = target(meta["leaves"]) if callable(target) else target
  stored = stacking.as_stored(wanted, meta["leaves"])
  leaves.check_leaves(folder, meta["leaves"], stored)
  return _Checked(meta, stored, wanted)


def _read(folder: Place, target: Any) -> Any:
  """Return a step's state; raise any Exception for damage that shows without the checksums."""
  leaf_args = ocp.checkpoint_utils.construct_restore_args(target)
  args = ocp.args.PyTreeRestore(item=target, restore_args=leaf_args, partial_restore=True)
  handler = ocp.PyTreeCheckpointHandler()
  with files.naming(folder), ocp.Checkpointer(handler) as reader:
    return reader.restore(step_folders.absolute(folder / "state"), args=args)


def _load_meta(folder: Place) -> dict[str, Any]:
  with files.naming(file := folder / "meta" / "metadata"):
    meta = leaves.unseal(json.loads(file.read_text()))
  if meta.get("step", int(folder.name)) != int(folder.name):  # not stored by older versions
    raise ValueError(f"it is the checkpoint of step {meta['step']}")
  return meta
