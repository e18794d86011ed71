"""Output of a training run: progress lines, metrics.jsonl, TensorBoard, image grids."""

import contextlib
import dataclasses
import json
import math
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from jaxtyping import UInt8

from diffusion_jax.core import progress
from diffusion_jax.core.files import write_png, write_whole
from diffusion_jax.core.parts import Part
from diffusion_jax.core.settings import HOW_IT_RUNS, Facts
from diffusion_jax.core.wording import duration
from diffusion_jax.types import UserError


@dataclasses.dataclass(frozen=True)
class Logging(Part):
  """Progress lines, sample grids and trackers of a training run.

  Attributes:
    every_steps: steps between two progress lines and rows of metrics.jsonl.
    sample_every_steps: steps between two sample grids; none: only at the end.
    num_samples: number of images in a grid.
    tensorboard: also write scalars and grids to tensorboard/.
    wandb_project: Weights & Biases project that also gets scalars and grids; none: no project.
  """

  every_steps: int = 100
  sample_every_steps: int | None = 5000
  num_samples: int = 64
  tensorboard: bool = True
  wandb_project: str | None = None

  setting_facts: ClassVar[Facts] = HOW_IT_RUNS

  def __post_init__(self):
    for name in ("every_steps", "sample_every_steps", "num_samples"):
      if getattr(self, name) is not None and getattr(self, name) < 1:
        raise ValueError(f"{name}={getattr(self, name)} must be at least 1")


class Sink(Protocol):
  """A destination of a run's metrics; an error that it raises never ends the run."""

  def scalars(self, step: int, values: Mapping[str, float]) -> None: ...

  def image(self, step: int, name: str, grid: UInt8[np.ndarray, "H W C"]) -> None: ...

  def close(self) -> None: ...


class Rows:
  """metrics.jsonl: one JSON object per logging interval, flushed at once; NaN becomes null."""

  def __init__(self, path: Path, start_step: int):
    self._file = _open_jsonl(path, start_step)

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    finite = {k: (v if math.isfinite(v) else None) for k, v in values.items()}
    self._file.write(json.dumps({"step": step, "time": round(time.time(), 3), **finite}) + "\n")
    self._file.flush()

  def image(self, step: int, name: str, grid: UInt8[np.ndarray, "H W C"]) -> None:
    del step, name, grid

  def close(self) -> None:
    self._file.close()


class Events:
  """TensorBoard's event file, written and flushed in the caller's thread.

  tensorboardX's own SummaryWriter passes events to a thread. If a full disk ends that thread, its
  queue fills up and the caller waits forever.
  """

  def __init__(self, folder: Path, start_step: int):
    from tensorboardX.proto.event_pb2 import SessionLog  # pyright: ignore[reportAttributeAccessIssue]

    self._folder, self._writer = folder, None
    restart = SessionLog(status=SessionLog.START)
    self._write(step=start_step + 1, session_log=restart)  # discards later steps of a dead run

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

  def close(self) -> None:
    if self._writer is not None:
      self._writer.close()


class WeightsAndBiases:
  """A Weights & Biases run, continued after a resume."""

  def __init__(self, project: str, workdir: Path):
    self._run = _open_wandb(project, workdir)

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    self._run.log(dict(values), step=step)

  def image(self, step: int, name: str, grid: UInt8[np.ndarray, "H W C"]) -> None:
    import wandb  # pyright: ignore[reportMissingImports]

    self._run.log({name: wandb.Image(grid)}, step=step)

  def close(self) -> None:
    self._run.finish()


class Logger:
  """Writer of one run's metrics; on processes other than the first it writes nothing.

  Args:
    workdir: the run's folder.
    config: the outputs to write.
    start_step: first step; rows, scalars and pictures of later steps of a dead run are deleted.
    num_steps: length of the run in steps, for the bar and the remaining time.
    active: True if this process writes.
  """

  def __init__(
    self, workdir: Path, config: Logging, start_step: int, num_steps: int, active: bool = True
  ):
    self._workdir, self._active, self._num_steps = workdir, active, num_steps
    self._phase, self._notes, self._sinks, self._failed = None, [], {}, set()
    if not active:
      return
    rows = Rows(workdir / "metrics.jsonl", start_step)
    _delete_later_pictures(workdir, start_step)
    if config.tensorboard:
      self._sinks["TensorBoard"] = Events(workdir / "tensorboard", start_step)
    if config.wandb_project:
      self._sinks["Weights & Biases"] = WeightsAndBiases(config.wandb_project, workdir)
    self._sinks["metrics.jsonl"] = rows  # last, so that a row there means all other sinks have it
    self._start_step = start_step

  def _tell(self, call: Callable[[Sink], None]) -> None:
    """Call every sink; print the first error of each and continue the run."""
    for name, sink in self._sinks.items():
      self._try(name, lambda sink=sink: call(sink))

  def _try(self, name: str, function: Callable[[], None]) -> bool:
    try:
      function()
      return True
    except Exception as error:
      if name not in self._failed:
        self._failed.add(name)
        self.print(f"{name} could not be written ({error}); training continues without it")
      return False

  @contextlib.contextmanager
  def training(self) -> Iterator[None]:
    """Show the progress of the training steps in the block."""
    if not self._active:
      yield
      return
    args = ("training", self._num_steps, "steps", self._start_step)
    with progress.phase(*args, is_steady=True) as self._phase:
      yield

  def print(self, text: str) -> None:
    """Print a line above the progress bar."""
    if self._active:
      print(text, flush=True)

  def advance(self, newest: tuple[int, float] | None) -> None:
    """Show the newest finished step and its loss; none: no step is finished."""
    if self._phase is not None and newest is not None:
      self._phase.set(newest[0])
      self._phase.note(f"loss {newest[1]:.4f}", *self._notes)

  def progress(self, step: int, scalars: Mapping[str, float], seconds_left: float) -> None:
    """Print a line per logging interval: step, loss, speed, time shares, remaining time."""
    rate = scalars["images_per_sec"]
    self._notes = [f"{rate:,.{0 if rate >= 100 else 1}f} images/s"]
    self._notes.append(f"data wait {scalars['data_wait_share']:.1%}")
    for name, title in (
      ("mfu", "MFU"),
      ("checkpoint_stall_share", "saving"),
      ("goodput", "goodput"),
    ):
      self._notes += [f"{title} {scalars[name]:.1%}"] if scalars.get(name) else []
    if scalars.get("num_skipped"):
      self._notes.append(f"skipped {scalars['num_skipped']:.0f}")
    text = "  ".join([f"loss {scalars['loss']:.4f}", *self._notes])
    line = f"step {step:>7,}/{self._num_steps:,}  {text}  ETA {duration(seconds_left)}"
    if self._phase is None:
      self.print(line)
    elif not progress.is_seen():
      self._phase.say(line)

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Send one row to every sink."""
    self._tell(lambda sink: sink.scalars(step, values))

  def image(self, step: int, name: str, grid: UInt8[np.ndarray, "H W C"]) -> Path | None:
    """Write a grid to every sink, then to its file: if the file exists, all sinks have it.

    Returns:
      The file; None if nothing was written.
    """
    if not self._active:
      return None
    path = picture_path(self._workdir, step, name)
    self._tell(lambda sink: sink.image(step, name, grid))
    return path if self._try("a picture", lambda: write_png(path, grid)) else None

  def close(self) -> None:
    """Flush and close everything."""
    self._tell(lambda sink: sink.close())


def picture_path(workdir: Path, step: int, name: str) -> Path:
  """Return the path of a grid: samples/<name>_<step>.png, or step_<step>.png for "samples"."""
  stem = "step" if name == "samples" else name
  return workdir / "samples" / f"{stem}_{step:08d}.png"


def has_row(workdir: Path, step: int, prefix: str) -> bool:
  """Return True if metrics.jsonl has a complete row of a step with a metric of a prefix."""
  try:
    lines = (workdir / "metrics.jsonl").read_text(errors="replace").splitlines()
  except OSError:
    return False
  stored = (json.loads(line) for line in lines if _row_step(line) == step)
  return any(name.startswith(prefix) for row in stored for name in row)


def _delete_later_pictures(workdir: Path, start_step: int) -> None:
  """Delete pictures of steps that will be repeated, perhaps with other results."""
  for file in (workdir / "samples").glob("*.png"):
    match = re.fullmatch(r"[a-z]+_(\d{8,})\.png", file.name)
    if match and int(match[1]) > start_step:
      with contextlib.suppress(OSError):
        file.unlink()


def _open_jsonl(path: Path, start_step: int):
  """Open the file to append, without the rows that the resumed run will write again."""
  lines = path.read_text(errors="replace").splitlines() if path.exists() else []
  kept = [line for line in lines if _row_step(line) <= start_step]
  write_whole(path, "".join(row + "\n" for row in kept))
  return path.open("a")


def _row_step(line: str) -> float:
  """Return the step of a row; a row cut short by a kill is dropped."""
  try:
    return float(json.loads(line)["step"])
  except (ValueError, KeyError, TypeError):
    return math.inf


def _open_wandb(project: str, workdir: Path):
  try:
    import wandb  # pyright: ignore[reportMissingImports]
  except ImportError as error:
    raise UserError(
      f"logging.wandb_project={project} needs wandb: pip install 'diffusion_jax[wandb]'"
    ) from error
  file = workdir / "wandb_id"  # a resumed run continues the same W&B run
  if not file.exists():
    write_whole(file, uuid.uuid4().hex[:8])
  identity = file.read_text()
  return wandb.init(
    project=project, name=workdir.name, dir=str(workdir), id=identity, resume="allow"
  )
