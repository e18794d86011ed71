"""Steps of a run to evaluate, also of one that is still training."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diffusion_jax import parallel
from diffusion_jax.checkpoints import store
from diffusion_jax.core import buckets, progress
from diffusion_jax.evaluation.context import EvaluationContext
from diffusion_jax.runs import signals

POLL_SEC = 5.0


def wait_for_checkpoint(workdir: Path) -> None:
  """Wait until a training run has saved its first checkpoint."""
  if not store.saved_steps(buckets.checkpoint_folder(workdir)):
    print(f"waiting for the first checkpoint of {workdir}", flush=True)
  with progress.phase("waiting for a checkpoint"):
    while not store.saved_steps(buckets.checkpoint_folder(workdir)):
      _pause()
      buckets.refresh_copy(workdir)


def _pause() -> None:
  """Wait a moment for a training run to save, or for a signal."""
  time.sleep(POLL_SEC)
  signals.stop_here()


def choose_steps(context: EvaluationContext, args: Any) -> Iterator[int | None]:
  """Yield the steps to evaluate, in order; None is the newest readable checkpoint."""
  if args.watch:
    yield from _watched_steps(context)
  elif args.step == "all":
    yield from parallel.broadcast_object(store.saved_steps(context.checkpoints))
  else:
    yield None if args.step == "latest" else int(args.step)


def _unseen(context: EvaluationContext, seen: set[int]) -> list[int]:
  buckets.refresh_copy(context.workdir)
  saved = parallel.broadcast_object(store.saved_steps(context.checkpoints))
  return [step for step in saved if step not in seen]


def _watched_steps(context: EvaluationContext) -> Iterator[int]:
  """Yield each new checkpoint once; end after the run's last step."""
  seen: set[int] = set()
  last = context.experiment.training.num_steps
  while True:
    with progress.phase("waiting for a checkpoint", last_line=False):
      while not (new := _unseen(context, seen)):
        if seen and max(seen) >= last:
          return
        _pause()
    seen.add(new[0])
    yield new[0]  # one at a time, since the list is out of date after a measurement
