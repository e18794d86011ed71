"""Trackers of runs: TensorBoard's event files, and Weights & Biases."""

import os
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import UInt8

from diffusion_jax.core.files import write_whole
from diffusion_jax.types import UserError

NO_HYPERPARAMETERS = ("logging", "checkpoint", "distributed")
"""Sections of a config that say nothing about a run's results."""


def config_as_hyperparameters(
  resolved: Mapping[str, Mapping[str, Any]],
) -> dict[str, str | int | float | bool]:
  """Return "section.field" -> a number, a truth value or a text for TensorBoard."""
  fields = {}
  for section, values in resolved.items():
    if section in NO_HYPERPARAMETERS:
      continue
    for field, value in values.items():
      if isinstance(value, list | tuple):
        value = ",".join(map(str, value)) or "none"
      fields[f"{section}.{field}"] = "none" if value is None else value
  return fields


class Sink(Protocol):
  """A destination of a run's metrics; an error that it raises never ends the run."""

  def scalars(self, step: int, values: Mapping[str, float]) -> None: ...

  def image(self, step: int, name: str, grid: UInt8[np.ndarray, "H W C"]) -> None: ...

  def config(self, resolved: Mapping[str, Mapping[str, Any]]) -> None: ...

  def close(self) -> None: ...


class Events:
  """TensorBoard's event file, written and flushed in the caller's thread.

  tensorboardX's own SummaryWriter passes events to a thread. If a full disk ends that thread, its
  queue fills up and the caller waits forever.

  Args:
    folder: folder of the event files; a second writer may add a file of its own.
    start_step: step from which training starts; TensorBoard discards later steps of a killed run.
      None: nothing is discarded.
  """

  def __init__(self, folder: Path, start_step: int | None):
    from tensorboardX.proto.event_pb2 import SessionLog  # pyright: ignore[reportAttributeAccessIssue]

    self._folder, self._writer = folder, None
    if start_step is not None:  # discards later steps of a dead run
      self._write(step=start_step + 1, session_log=SessionLog(status=SessionLog.START))

  def _write(self, **fields: Any) -> None:
    """Write an event; after a failure the next one starts a new file, free of partial records."""
    from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]

    writer, self._writer = self._writer or self._open(), None
    writer.write(Event(wall_time=time.time(), **fields).SerializeToString())
    writer.flush()
    self._writer = writer

  def _open(self) -> Any:
    from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
    from tensorboardX.record_writer import RecordWriter

    self._folder.mkdir(parents=True, exist_ok=True)
    seconds, rest = divmod(time.time_ns(), 10**9)  # TensorBoard reads files in order of their names
    name = f"events.out.tfevents.{seconds:010d}.{rest:09d}.{os.getpid()}"
    writer = RecordWriter(str(self._folder / name))
    writer.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())
    return writer

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

    scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
    self._write(step=step, summary=Summary(value=scalars))

  def image(self, step: int, name: str, grid: UInt8[np.ndarray, "H W C"]) -> None:
    from tensorboardX.summary import image

    self._write(step=step, summary=image(name, grid, dataformats="HWC"))

  def config(self, resolved: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the fields that decide the run's results as hyperparameters."""
    from tensorboardX.summary import hparams

    _, session, _ = hparams(config_as_hyperparameters(resolved), {})
    self._write(step=0, summary=session)

  def close(self) -> None:
    if self._writer is not None:
      self._writer.close()


class WeightsAndBiasesRun(NamedTuple):
  """A run of Weights & Biases, continued by every program that works on the run's folder.

  Attributes:
    workdir: the run's folder, whose file wandb_id has the identity.
    project: its project.
    tags, group, job_type: its tags, group and kind there.
  """

  workdir: Path
  project: str
  tags: tuple[str, ...] = ()
  group: str | None = None
  job_type: str | None = None


class WeightsAndBiases:
  """A Weights & Biases run, continued after a resume and by each evaluation.

  Args:
    run: its names.
    resolved: the whole config, section -> field -> value.

  Raises:
    UserError: the package is missing, or the run cannot be started.
  """

  def __init__(self, run: WeightsAndBiasesRun, resolved: Mapping[str, Mapping[str, Any]]):
    self._run = _open_wandb(run, resolved)

  def config(self, resolved: Mapping[str, Mapping[str, Any]]) -> None:
    del resolved  # passed when the run was opened

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    self._run.log(dict(values), step=step)

  def image(self, step: int, name: str, grid: UInt8[np.ndarray, "H W C"]) -> None:
    import wandb  # pyright: ignore[reportMissingImports]

    self._run.log({name: wandb.Image(grid)}, step=step)

  def evaluation(
    self,
    step: int,
    group: str,
    values: Mapping[str, float],
    grids: Mapping[str, UInt8[np.ndarray, "H W C"]],
  ) -> None:
    """Send the measurements of a checkpoint, plotted over the steps of checkpoints.

    The run's own step only rises, and a checkpoint may be measured long after it.

    Args:
      step: the checkpoint's step.
      group: first part of all names, "eval".
      values, grids: name -> value or grid; the names begin with the group.
    """
    import wandb  # pyright: ignore[reportMissingImports]

    axis = f"{group}/step"
    self._run.define_metric(axis)
    self._run.define_metric(f"{group}/*", step_metric=axis)
    images = {name: wandb.Image(grid) for name, grid in grids.items()}
    self._run.log({axis: step, **values, **images})

  def close(self) -> None:
    self._run.finish()


def import_wandb(project: str) -> Any:
  """Return the package of Weights & Biases.

  Args:
    project: project that needs it, for the message.

  Raises:
    UserError: it is not installed.
  """
  try:
    import wandb  # pyright: ignore[reportMissingImports]
  except ImportError as error:
    raise UserError(
      f"`logging.wandb_project={project}` needs wandb: pip install 'diffusion_jax[wandb]'"
    ) from error
  return wandb


def _open_wandb(run: WeightsAndBiasesRun, resolved: Mapping[str, Mapping[str, Any]]) -> Any:
  wandb = import_wandb(run.project)
  file = run.workdir / "wandb_id"  # a resumed run continues the same W&B run
  if not file.exists():
    write_whole(file, uuid.uuid4().hex[:8])
  try:
    return wandb.init(
      project=run.project, name=run.workdir.name, dir=str(run.workdir), id=file.read_text().strip(),
      resume="allow", config=plain_values(resolved), tags=list(run.tags) or None, group=run.group,
      job_type=run.job_type,
    )  # fmt: skip
  except Exception as error:
    reason = str(error).strip().partition("\n")[0][:200]
    raise UserError(
      f"`logging.wandb_project={run.project}`: Weights & Biases cannot start ({reason}); type "
      "wandb login, or set WANDB_MODE=offline, or leave the field out"
    ) from error


def plain_values(value: Any) -> Any:
  """Return a config as JSON values."""
  if isinstance(value, Mapping):
    return {name: plain_values(v) for name, v in value.items()}
  return [plain_values(v) for v in value] if isinstance(value, list | tuple) else value
