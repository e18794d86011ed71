"""Compile the training step for the devices, and read its cost."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from diffusion_jax.core import progress
from diffusion_jax.parallel import platforms, sharding, watchdog
from diffusion_jax.planning.chips import find_chip
from diffusion_jax.planning.compiled import memory_of, take_apart
from diffusion_jax.train_loop.setup import Job
from diffusion_jax.training.step import hyperparameters, jit_train_step, make_train_step
from diffusion_jax.training.train_state import TrainState


class Compiled(NamedTuple):
  """A compiled step.

  Attributes:
    step: function (state, batch, *votes) -> (state, scalars), with the config's hyperparameters.
    flops: FLOPs per step and device, all loops in full; None if the compiler does not count them.
    peak_flops: peak bfloat16 FLOP/s per device; None for an unknown chip.
  """

  step: Callable[..., Any]
  flops: float | None
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
  with watchdog.allow(watchdog.COMPILE_SEC), heard:
    compiled = jitted.lower(state, batch, numbers, *cast_vote(job, None)).compile()
  temporaries = memory_of(compiled).temporaries * jax.local_device_count()
  platforms.keep_freed_memory(jax.default_backend(), temporaries)
  seconds, kind = time.perf_counter() - begun, jax.devices()[0].device_kind
  flops, chip = _flops(compiled), find_chip(kind)
  peak = f"at most {chip.flops / 1e12:,.0f} TFLOP/s" if chip else "unknown chip, so no MFU"
  work = "" if flops is None else f": {flops / 1e9:,.4g} GFLOP per step and device ({kind}, {peak})"
  print(f"compiled in {seconds:.1f} s{work}", flush=True)
  run = lambda state, batch, *votes: compiled(state, batch, numbers, *votes)  # noqa: E731
  return Compiled(run, flops, chip.flops if chip else None)


def _flops(compiled: jax.stages.Compiled) -> float | None:
  try:
    return take_apart(compiled)[0].flops
  except (KeyError, TypeError):  # no such analysis on this backend
    return None


def cast_vote(job: Job, signal: str | None) -> tuple[jax.Array, ...]:
  """Return this process's vote to stop, an argument of a step; () with a single process."""
  if jax.process_count() == 1:
    return ()
  mine = sharding.local_rows(job.mesh, sharding.num_batch_shards(job.mesh))
  return (sharding.put_batch(np.full(len(mine), signal is not None, np.int32), job.mesh),)
