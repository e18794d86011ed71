"""Compile the training step for the devices, and read its cost."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np

from diffusion_jax.core import progress
from diffusion_jax.parallel import platforms, sharding, watchdog
from diffusion_jax.planning.chips import Chip, find_chip
from diffusion_jax.planning.compiled import memory_of
from diffusion_jax.planning.flops import StepFlops, executed_flops, step_flops
from diffusion_jax.planning.table import flops_text
from diffusion_jax.train_loop.setup import Job
from diffusion_jax.training.step import hyperparameters, jit_train_step, make_train_step
from diffusion_jax.training.train_state import TrainState


class Compiled(NamedTuple):
  """A compiled step.

  Attributes:
    step: function (state, batch, *votes) -> (state, scalars), with the config's hyperparameters.
    flops: FLOPs per step and device; for an unknown chip only those executed.
    peak_flops: peak bfloat16 FLOP/s per device; None for an unknown chip.
  """

  step: Callable[..., Any]
  flops: StepFlops
  peak_flops: float | None


def compile_step(job: Job, state: TrainState, batch: Any) -> Compiled:
  """Compile before the first step, so that no step's time includes the compilation."""
  experiment = job.experiment
  step = make_train_step(
    job.generative, experiment.optimizers, experiment.ema, experiment.training, job.mesh
  )
  begun = time.perf_counter()
  jitted = jit_train_step(step, state, job.mesh, voting=jax.process_count() > 1)
  numbers = sharding.put_everywhere(
    hyperparameters(job.generative, experiment.optimizers, experiment.ema, experiment.training),
    job.mesh,
  )
  heard = progress.phase("compiling the training step", last_line=False)
  kind = jax.devices()[0].device_kind
  chip = find_chip(kind)
  with watchdog.allow(watchdog.COMPILE_SEC), heard, ThreadPoolExecutor(1) as pool:
    traced = jitted.trace(state, batch, numbers, *cast_vote(job, None))
    lowered = traced.lower()
    counting = pool.submit(_count, job, state, batch, traced.jaxpr, chip)
    compiled = lowered.compile()  # in the meantime
    flops = counting.result()
  temporaries = memory_of(compiled).temporaries * jax.local_device_count()
  platforms.keep_freed_memory(jax.default_backend(), temporaries)
  peak = f"at most {chip.flops / 1e12:,.0f} TFLOP/s" if chip else "unknown chip, so no MFU"
  work = f"FLOPs per step and device: {flops_text(flops)} ({kind}, {peak})"
  print(f"compiled in {time.perf_counter() - begun:.1f} s; {work}", flush=True)
  run = lambda state, batch, *votes: compiled(state, batch, numbers, *votes)  # noqa: E731
  return Compiled(run, flops, chip.flops if chip else None)


def _count(job: Job, state: TrainState, batch: Any, traced: Any, chip: Chip | None) -> StepFlops:
  """Count the FLOPs; a failure is named, since no figure for the log may end a run."""
  try:
    if chip is None:  # nothing to compare with, so that the losses need not be traced again
      return executed_flops(traced, job.mesh.size)
    optimizers = job.experiment.optimizers
    return step_flops(job.generative, optimizers, state, batch, traced, job.mesh.size)
  except Exception as error:
    return StepFlops(None, None, (f"the count failed ({type(error).__name__}: {error})",))


def cast_vote(job: Job, signal: str | None) -> tuple[jax.Array, ...]:
  """Return this process's vote to stop, an argument of a step; () with a single process."""
  if jax.process_count() == 1:
    return ()
  mine = sharding.local_rows(job.mesh, sharding.num_batch_shards(job.mesh))
  return (sharding.put_batch(np.full(len(mine), signal is not None, np.int32), job.mesh),)
