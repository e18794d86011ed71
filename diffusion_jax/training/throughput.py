"""Throughput of the training loop; values are read late, so that the host never waits."""

import contextlib
import math
import time
from collections import deque
from collections.abc import Iterator, Mapping

import numpy as np
from jaxtyping import Array

from diffusion_jax.parallel import watchdog

VOTES = "stop_votes"
"""Name of a scalar that is not a metric: shards of processes that must stop."""

STARTED = time.perf_counter()
"""Time when the program began, slightly after the process started."""

LAG = 2
"""Number of steps in flight before the scalars of the oldest are read."""


class NonFinite(Exception):
  """Raised when too many updates in a row were skipped.

  Attributes:
    first, last: steps (counted from 1) whose loss or gradient was not finite.
  """

  def __init__(self, first: int, last: int):
    super().__init__(f"loss or gradient was not finite in steps {first} to {last}")
    self.first, self.last = first, last


class Meter:
  """Means over a logging interval, images per second, and shares of the time.

  Args:
    batch_size: images per global batch.
    max_skipped_in_a_row: number of successive skipped updates that ends the run.
    model_flops, executed_flops: FLOPs per step and device, without and with recomputation; None if
      unknown.
    peak_flops: peak FLOPs per second and device; None if unknown.

  Attributes:
    stop_votes: value of VOTES in the newest step read; the same on all processes.
    newest: the newest step read and its loss; none before the first.
  """

  def __init__(
    self,
    batch_size: int,
    max_skipped_in_a_row: int,
    model_flops: float | None = None,
    executed_flops: float | None = None,
    peak_flops: float | None = None,
  ):
    self._batch_size, self._limit = batch_size, max_skipped_in_a_row
    self._flops = {"mfu": model_flops, "hfu": executed_flops}
    self._peak_flops = peak_flops
    self._useful_sec = 0.0
    self._pending: deque[tuple[int, Mapping[str, Array]]] = deque()
    self._rows: list[dict[str, float]] = []
    self.stop_votes, self.newest = 0, None
    self.restart()

  def restart(self, wait_sec: float = 0.0) -> None:
    """Begin an interval now."""
    self._rows = []
    self._started, self._paused_sec, self._waited_sec = time.perf_counter(), 0.0, wait_sec
    self._saving_sec = 0.0

  def push(self, step: int, scalars: Mapping[str, Array]) -> None:
    """Add the scalars of the step that was just dispatched.

    Raises:
      NonFinite: the limit of skipped updates is reached.
    """
    self._pending.append((step, scalars))
    while len(self._pending) > LAG:
      self._read()

  def drain(self) -> None:
    """Wait for every step in flight; raise NonFinite as `push` does."""
    while self._pending:
      self._read()

  @contextlib.contextmanager
  def pause(self, saving: bool = False) -> Iterator[None]:
    """Exclude the time inside (saving, sampling) from the training time."""
    begun = time.perf_counter()
    yield
    seconds = time.perf_counter() - begun
    self._paused_sec += seconds
    self._saving_sec += seconds if saving else 0.0

  def interval(self, wait_sec: float) -> dict[str, float]:
    """Return metrics since the last call: means of the scalars, speed, data wait, saving.

    "checkpoint_stall_share" is the share of the interval's wall time in which saving blocked the
    loop. "goodput" is the share of the wall time since the program began that was spent on steps
    that were not skipped, without waits for data. "mfu" is the model FLOPs divided by the device's
    peak FLOPs in the time of a step; in "hfu" what rematerialisation computes again counts too.

    Args:
      wait_sec: seconds spent waiting for data since the run began.
    """
    self.drain()
    now = time.perf_counter()
    whole = max(now - self._started, 1e-9)
    seconds = max(whole - self._paused_sec, 1e-9)
    metrics = {name: _mean([row[name] for row in self._rows]) for name in self._rows[0]}
    for count in ("num_skipped", "num_skipped_in_a_row", "learning_rate"):
      metrics[count] = self._rows[-1][count]
    metrics["images_per_sec"] = len(self._rows) * self._batch_size / seconds
    metrics["step_sec"] = seconds / len(self._rows)
    metrics["data_wait_share"] = min((wait_sec - self._waited_sec) / seconds, 1.0)
    metrics["checkpoint_stall_share"] = self._saving_sec / whole
    taken = sum(row["num_skipped_in_a_row"] == 0 for row in self._rows) / len(self._rows)
    self._useful_sec += taken * seconds * (1.0 - metrics["data_wait_share"])
    metrics["goodput"] = self._useful_sec / max(now - STARTED, 1e-9)
    for name, flops in self._flops.items():
      if flops is not None and self._peak_flops is not None:
        metrics[name] = flops / metrics["step_sec"] / self._peak_flops
    self.restart(wait_sec)
    return metrics

  def _read(self) -> None:
    step, scalars = self._pending.popleft()
    row = {name: float(np.asarray(value)) for name, value in scalars.items()}
    watchdog.beat()
    self.stop_votes = int(row.pop(VOTES, 0))
    self._rows.append(row)
    self.newest = (step, row["loss"])
    in_a_row = int(row["num_skipped_in_a_row"])
    if in_a_row >= self._limit:
      raise NonFinite(step - in_a_row + 1, step)


def _mean(values: list[float]) -> float:
  """Return the mean of the finite values; skipped steps contribute none."""
  finite = [v for v in values if math.isfinite(v)]
  return sum(finite) / len(finite) if finite else math.nan
