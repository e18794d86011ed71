"""The loop of a training run, from the state's step to the last."""

import contextlib
from collections.abc import Callable, Mapping

import jax

from diffusion_jax import parallel
from diffusion_jax.checkpoints.store import Checkpoints
from diffusion_jax.core import progress
from diffusion_jax.core.buckets import checkpoint_folder
from diffusion_jax.data import Prefetcher, TrainStream
from diffusion_jax.parallel import sharding, watchdog
from diffusion_jax.runs import provenance
from diffusion_jax.runs.workdir import drop_later_final, is_finished
from diffusion_jax.train_loop.compile import Compiled, cast_vote, compile_step
from diffusion_jax.train_loop.data_grid import show_data_grid, write_data_grid
from diffusion_jax.train_loop.ema_snapshots import Snapshots
from diffusion_jax.train_loop.ending import describe_end
from diffusion_jax.train_loop.previews import is_due, make_show, make_up
from diffusion_jax.train_loop.profiling import Span, Trace
from diffusion_jax.train_loop.saving import explained, saved_on_failure, stop_run, took_last_step
from diffusion_jax.train_loop.setup import Job, describe_run_data, first_state, print_plan
from diffusion_jax.training.logger import Logger
from diffusion_jax.training.throughput import Meter
from diffusion_jax.training.train_state import TrainState

Stop = Callable[[], str | None]  # the signal that requests a stop, if one has arrived


def train_run(job: Job, stop_requested: Stop, span: Span | None) -> None:
  """Start or continue the run in its folder, which the caller has locked."""
  with watchdog.allow(watchdog.COMPILE_SEC):  # the others may still compile what starts the run
    state, resumed = first_state(job)
    parallel.all_gather_objects(None)
  first = int(state.step)
  begun = job.origin.text if job.origin else "a new run"
  print_plan(job, f"resuming at step {first:,} of {job.num_steps:,}" if resumed else begun)
  if parallel.broadcast_object(is_finished(job.workdir, first, job.num_steps)):
    print(f"finished: {job.workdir} has its {first:,} steps; nothing is left to do")
    print("\n".join(describe_end(job.workdir, first)))
    return
  provenance.write_environment(job.workdir)
  parallel.on_process_0(lambda: write_data_grid(job))
  train_steps(job, state, stop_requested, span)
  last = max(first, job.num_steps)
  print(f"finished: {last:,} steps; look in {job.workdir}")
  print("\n".join(describe_end(job.workdir, last)))


def train_steps(job: Job, state: TrainState, stop_requested: Stop, span: Span | None) -> None:
  """Run the loop from the state's step to the last, and close everything that it opened."""
  config, first = job.experiment, int(state.step)
  feed, meta, show = make_feed(job), describe_run_data(job), make_show(job)
  with contextlib.ExitStack() as stack:
    keep = lambda opened: stack.enter_context(contextlib.closing(opened))  # noqa: E731
    args = (job.workdir, config.logging, first, job.num_steps, parallel.is_first())
    logger = keep(Logger(*args, config.to_dict()))
    show_data_grid(job.workdir, logger, first)
    parallel.on_process_0(lambda: drop_later_final(job.workdir, first))
    folder = checkpoint_folder(job.workdir, "ema_snapshots")
    snapshots = keep(Snapshots(folder, config.ema, job.num_steps, state, meta))
    make_up(job, show, logger, state)
    if first >= job.num_steps:  # stopped after its last checkpoint: only metrics are missing
      return
    compiled = compile_step(job, state, feed(first))
    saver = keep(Checkpoints(job.checkpoints, config.checkpoint))
    batches = stack.enter_context(Prefetcher(feed, first, job.num_steps))
    meter, trace = make_meter(job, compiled), keep(Trace(job.workdir, span, first))
    safely = lambda: saved_on_failure(saver, snapshots, state, meta)  # noqa: E731
    trace.before(first + 1)
    stack.enter_context(logger.training())
    for step in range(first + 1, job.num_steps + 1):
      with safely():
        batch = batches.get()
      state, scalars = compiled.step(state, batch, *cast_vote(job, stop_requested()))
      with explained(saver):
        meter.push(step, scalars)
        last, signal = step == job.num_steps, agreed_signal(meter, stop_requested())
        save = last or signal or step % config.checkpoint.every_steps == 0
        pause = save or snapshots.is_due(step) or is_due(config, step)
        if last or step % config.logging.every_steps == 0:
          log_interval(job, logger, step, meter.interval(batches.wait_sec))
        if pause or trace.is_due(step + 1):
          meter.drain()  # else the time of steps in flight would count as saving
      logger.advance(meter.newest)
      with safely():
        trace.before(step + 1)
        saver.check()
      with meter.pause(saving=True), progress.phase(f"saving step {step:,}"):
        snapshots.save(step, state, before_checkpoint=bool(save))
        with safely():
          if save and (last or signal or took_last_step(state)):
            saver.save(step, state, meta)
          if signal and not last:
            stop_run(saver, step, signal)
      with meter.pause(), safely():
        show(logger, step, state, last)
    with safely(), progress.phase("writing the checkpoint"):
      saver.wait()


def make_meter(job: Job, compiled: Compiled) -> Meter:
  training, flops = job.experiment.training, compiled.flops
  shares = (flops.model, flops.executed, compiled.peak_flops)
  return Meter(training.batch_size, training.max_skipped_in_a_row, *shares)


def log_interval(job: Job, logger: Logger, step: int, metrics: Mapping[str, float]) -> None:
  """Log the line and the row of a logging interval."""
  logger.progress(step, metrics, (job.num_steps - step) * metrics["step_sec"])
  logger.scalars(step, {f"train/{name}": value for name, value in metrics.items()})


def agreed_signal(meter: Meter, signal: str | None) -> str | None:
  """Return the signal to stop on now; with several processes only when all have received it."""
  if jax.process_count() == 1:
    return signal
  return (signal or "requested by another process") if meter.stop_votes else None


def make_feed(job: Job):
  """Return a function from a step, counted from 0, to its batch on the devices."""
  training = job.experiment.training
  rows = sharding.local_rows(job.mesh, training.batch_size)
  flip = job.experiment.data.flip
  stream = TrainStream(job.feed, training.batch_size, training.seed, flip, rows)
  return lambda step: sharding.put_batch(stream.batch(step), job.mesh)
