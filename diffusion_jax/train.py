"""Trains a model: python -m diffusion_jax.train --config=configs/ddpm_digits.py

The same command continues a run that stopped. Overrides are --config.section.field=value.
"""

import contextlib
from collections.abc import Callable, Mapping

import jax

from diffusion_jax import parallel
from diffusion_jax.checkpoints.store import Checkpoints
from diffusion_jax.core.files import run_folder
from diffusion_jax.data import Prefetcher, TrainStream
from diffusion_jax.parallel import sharding, watchdog
from diffusion_jax.parallel.platforms import run_in_calling_thread
from diffusion_jax.runs import command_line, provenance
from diffusion_jax.runs.signals import stop_requests
from diffusion_jax.runs.stored import load_experiment
from diffusion_jax.runs.workdir import (
  default_workdir,
  drop_later_final,
  is_finished,
  lock,
  prepare_workdir,
)
from diffusion_jax.train_loop.compile import Compiled, cast_vote, compile_step
from diffusion_jax.train_loop.ema_snapshots import Snapshots
from diffusion_jax.train_loop.previews import is_due, make_show, make_up
from diffusion_jax.train_loop.profiling import Span, Trace, parse_span
from diffusion_jax.train_loop.saving import explained, saved_on_failure, stop, took_last_step
from diffusion_jax.train_loop.setup import Job, describe, prepare, print_plan, start
from diffusion_jax.training.logger import Logger
from diffusion_jax.training.state import TrainState
from diffusion_jax.training.throughput import Meter

Stop = Callable[[], str | None]  # the signal that asks the run to stop, if one has come


def main(argv: list[str]) -> None:
  args, overrides = parser().parse(argv)
  span = None if args.profile is None else parse_span(args.profile)
  run_in_calling_thread()
  command_line.enable_compilation_cache()
  workdir = args.workdir or default_workdir(args.config)
  experiment = load_experiment(args.config, overrides)
  command_line.join_job(experiment)
  with stop_requests() as stop_requested:
    job = prepare(experiment, workdir)
    if args.dry_run:
      return print_plan(job, "a dry run: nothing is trained or written")
    parallel.first_does(lambda: prepare_workdir(workdir, args.fresh))
    parallel.check_shared(workdir)
    with lock(workdir):
      run(job, stop_requested, span)


def run(job: Job, stop_requested: Stop, span: Span | None) -> None:
  """Starts or continues the run in its folder, which nobody else trains in."""
  with watchdog.allow(watchdog.COMPILE_SEC):  # the others may still compile what starts the run
    state, resumed = start(job)
    parallel.tell_all(None)
  first = int(state.step)
  print_plan(job, f"resuming at step {first:,} of {job.num_steps:,}" if resumed else "a new run")
  if parallel.from_first(is_finished(job.workdir, first, job.num_steps)):
    print(f"finished: {job.workdir} has its {first:,} steps; nothing is left to do")
    return
  provenance.write_environment(job.workdir)
  train(job, state, stop_requested, span)
  print(f"finished: {max(first, job.num_steps):,} steps; look in {job.workdir}")


def parser() -> command_line.Parser:
  flags = command_line.Parser("train", description=__doc__)
  flags.add_argument("--config", required=True, help="config file, e.g. configs/ddpm_digits.py")
  flags.add_argument("--workdir", type=run_folder, help="the run's folder (runs/<config>)")
  flags.add_argument("--dry_run", action="store_true", help="check everything, print what would "
                     "run and how it would be sharded, and end")  # fmt: skip
  flags.add_argument("--profile", metavar="START:STEPS", help="trace these steps by xprof, as 10:5")
  flags.add_argument("--fresh", action="store_true", help="start over; moves the old run aside")
  return flags


def train(job: Job, state: TrainState, stop_requested: Stop, span: Span | None) -> None:
  """The loop, from the state's step to the last, with everything that it opens closed after it."""
  config, first = job.experiment, int(state.step)
  feed, meta, show = make_feed(job), describe(job), make_show(job)
  with contextlib.ExitStack() as stack:
    keep = lambda opened: stack.enter_context(contextlib.closing(opened))  # noqa: E731
    args = (job.workdir, config.logging, first, job.num_steps, parallel.is_first())
    logger = keep(Logger(*args))
    parallel.first_does(lambda: drop_later_final(job.workdir, first))
    folder = job.workdir / "ema_snapshots"
    snapshots = keep(Snapshots(folder, config.ema, job.num_steps, state, meta))
    make_up(job, show, logger, state)
    if first >= job.num_steps:  # stopped after its last checkpoint: only the figures were missing
      return
    compiled = compile_step(job, state, feed(first))
    saver = keep(Checkpoints(job.checkpoints, config.checkpoint))
    batches = stack.enter_context(Prefetcher(feed, first, job.num_steps))
    meter, trace = make_meter(job, compiled), keep(Trace(job.workdir, span, first))
    safely = lambda: saved_on_failure(saver, snapshots, state, meta)  # noqa: E731
    trace.before(first + 1)
    logger.start_bar()
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
          meter.drain()  # or the time of steps in flight would count as time spent saving
      logger.advance(step)
      with safely():
        trace.before(step + 1)
        saver.check()
      with meter.pause(saving=True):
        snapshots.save(step, state, before_checkpoint=bool(save))
        with safely():
          if save and (last or signal or took_last_step(state)):
            saver.save(step, state, meta)
          if signal and not last:
            stop(saver, step, signal)
      with meter.pause(), safely():
        show(logger, step, state, last)
    with safely():
      saver.wait()


def make_meter(job: Job, compiled: Compiled) -> Meter:
  size, limit = job.experiment.training.batch_size, job.experiment.training.max_skipped_in_a_row
  return Meter(size, limit, compiled.flops, compiled.peak_flops)


def log_interval(job: Job, logger: Logger, step: int, figures: Mapping[str, float]) -> None:
  """The line and the row of a logging interval."""
  logger.progress(step, figures, (job.num_steps - step) * figures["step_sec"])
  logger.scalars(step, {f"train/{name}": value for name, value in figures.items()})


def agreed_signal(meter: Meter, signal: str | None) -> str | None:
  """The signal on which to stop now: of several processes, once all have learned of it."""
  if jax.process_count() == 1:
    return signal
  return (signal or "asked by another process") if meter.stop_votes else None


def make_feed(job: Job):
  """A function from a step (counted from 0) to its batch on the devices."""
  training = job.experiment.training
  rows = sharding.local_rows(job.mesh, training.batch_size)
  flip = job.experiment.data.flip
  stream = TrainStream(job.feed, training.batch_size, training.seed, flip, rows)
  return lambda step: sharding.put_batch(stream.batch(step), job.mesh)


if __name__ == "__main__":
  command_line.run_main(main)
