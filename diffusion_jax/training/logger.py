"""Output of a training run: progress lines, metrics.jsonl, TensorBoard, image grids."""

import contextlib
import dataclasses
import json
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import UInt8

from diffusion_jax.core import progress
from diffusion_jax.core.files import write_png, write_whole
from diffusion_jax.core.parts import Part
from diffusion_jax.core.settings import HOW_IT_RUNS, Facts
from diffusion_jax.core.wording import duration
from diffusion_jax.training.trackers import Events, Sink, WeightsAndBiases, WeightsAndBiasesRun


@dataclasses.dataclass(frozen=True)
class Logging(Part):
  """Progress lines, sample grids and trackers of a training run.

  Attributes:
    every_steps: steps between two progress lines and rows of metrics.jsonl.
    sample_every_steps: steps between two sample grids; none: only at the end.
    num_samples: number of images in a grid.
    tensorboard: also write scalars and grids to tensorboard/.
    wandb_project: Weights & Biases project that also gets scalars, grids, the config and the
      evaluations; none: no project.
    wandb_tags: tags of the Weights & Biases run.
    wandb_group: group of the Weights & Biases run, such as a sweep; none: no group.
    wandb_job_type: kind of the run within its group, such as train; none: no kind.
  """

  every_steps: int = 100
  sample_every_steps: int | None = 5000
  num_samples: int = 64
  tensorboard: bool = True
  wandb_project: str | None = None
  wandb_tags: tuple[str, ...] = ()
  wandb_group: str | None = None
  wandb_job_type: str | None = None

  setting_facts: ClassVar[Facts] = HOW_IT_RUNS

  def __post_init__(self):
    for name in ("every_steps", "sample_every_steps", "num_samples"):
      if getattr(self, name) is not None and getattr(self, name) < 1:
        raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
    project = self.wandb_project or ""
    if strange := sorted(set("/\\#?%:") & set(project)):
      raise ValueError(
        f"wandb_project={project} must be a name without {' '.join(strange)}; the account is that "
        "of wandb login, or WANDB_ENTITY"
      )
    if wrong := [tag for tag in self.wandb_tags if not 1 <= len(tag) <= 64]:
      raise ValueError(f"wandb_tags: the tag {wrong[0]!r} must have between 1 and 64 characters")

  def wandb_run(self, workdir: Path) -> WeightsAndBiasesRun | None:
    """Return the run of Weights & Biases that belongs to a folder; None without a project."""
    if not self.wandb_project:
      return None
    return WeightsAndBiasesRun(
      workdir, self.wandb_project, tuple(self.wandb_tags), self.wandb_group, self.wandb_job_type
    )


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

  def config(self, resolved: Mapping[str, Mapping[str, Any]]) -> None:
    del resolved  # it is in config.json

  def close(self) -> None:
    self._file.close()


class Logger:
  """Writer of one run's metrics; on processes other than the first it writes nothing.

  Args:
    workdir: the run's folder.
    config: the outputs to write.
    start_step: first step; rows, scalars and pictures of later steps of a dead run are deleted.
    num_steps: length of the run in steps, for the bar and the remaining time.
    active: True if this process writes.
    resolved: the run's whole config, section -> field -> value, for the trackers.
  """

  def __init__(
    self,
    workdir: Path,
    config: Logging,
    start_step: int,
    num_steps: int,
    active: bool = True,
    resolved: Mapping[str, Mapping[str, Any]] | None = None,
  ):
    self._workdir, self._active, self._num_steps = workdir, active, num_steps
    self._phase, self._notes, self._sinks, self._failed = None, [], {}, set()
    if not active:
      return
    rows = Rows(workdir / "metrics.jsonl", start_step)
    _delete_later_pictures(workdir, start_step)
    if config.tensorboard:
      self._sinks["TensorBoard"] = Events(workdir / "tensorboard", start_step)
    if run := config.wandb_run(workdir):
      self._sinks["Weights & Biases"] = WeightsAndBiases(run, resolved or {})
    self._sinks["metrics.jsonl"] = rows  # last, so that a row there means all other sinks have it
    self._start_step = start_step
    if resolved is not None:
      self._tell(lambda sink: sink.config(resolved))

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
    twice = scalars.get("hfu", 0.0) > 1.0005 * scalars.get("mfu", 0.0)  # else they are the same
    for name, title in (
      ("mfu", "MFU"),
      *((("hfu", "HFU"),) if twice else ()),
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

  def show(self, step: int, name: str, grid: UInt8[np.ndarray, "H W C"]) -> None:
    """Send a grid whose file exists already to every sink."""
    self._tell(lambda sink: sink.image(step, name, grid))

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
