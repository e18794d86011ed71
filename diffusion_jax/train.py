"""Trains a model: python -m diffusion_jax.train --config=configs/ddpm_digits.py

The same command continues a run that stopped. Overrides are --config.section.field=value.
"""

import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import jax
import numpy as np

from diffusion_jax import __version__, distributed, log, provenance, runs, sharding, watchdog
from diffusion_jax.checkpoint import Checkpoints
from diffusion_jax.data import Prefetcher, TrainStream
from diffusion_jax.job import Job, describe, prepare, start, state_shapes
from diffusion_jax.meter import Meter, NonFinite
from diffusion_jax.previews import is_due, make_show
from diffusion_jax.snapshots import Snapshots
from diffusion_jax.state import TrainState, count_parameters
from diffusion_jax.step import jit_train_step, make_train_step


def main(argv: list[str]) -> None:
  args, overrides = parser().parse(argv)
  runs.enable_compilation_cache()
  workdir = args.workdir or runs.default_workdir(args.config)
  experiment = runs.load_experiment(args.config, overrides)
  runs.join_job(experiment)
  with runs.stop_requests() as stop_requested:
    job = prepare(experiment, workdir)
    if args.dry_run:
      return print_plan(job, "a dry run: nothing is trained or written")
    distributed.first_does(lambda: runs.prepare_workdir(workdir, args.fresh))
    distributed.check_shared(workdir)
    with runs.lock(workdir):
      run(job, stop_requested)


def run(job: Job, stop_requested: Callable[[], str | None]) -> None:
  """Starts or continues the run in its folder, which nobody else trains in."""
  with watchdog.allow(watchdog.COMPILE_SEC):  # the others may still compile what starts the run
    state, resumed = start(job)
    distributed.tell_all(None)
  first = int(state.step)
  print_plan(job, f"resuming at step {first:,} of {job.num_steps:,}" if resumed else "a new run")
  if distributed.from_first(runs.is_finished(job.workdir, first, job.num_steps)):
    print(f"finished: {job.workdir} has its {first:,} steps; nothing is left to do")
    return
  provenance.write_environment(job.workdir)
  train(job, state, stop_requested)
  print(f"finished: {max(first, job.num_steps):,} steps; look in {job.workdir}")


def parser() -> runs.Parser:
  flags = runs.Parser("train", description=__doc__)
  flags.add_argument("--config", required=True, help="config file, e.g. configs/ddpm_digits.py")
  flags.add_argument(
    "--workdir", type=runs.folder, help="the run's folder; runs/<config> by default"
  )
  flags.add_argument("--dry_run", action="store_true", help="check everything, print what would "
                     "run and how it would be sharded, and end")  # fmt: skip
  flags.add_argument("--fresh", action="store_true", help="start over; moves the old run aside")
  return flags


def print_plan(job: Job, beginning: str) -> None:
  """The block that says what is about to run, and where its state lies."""
  mesh, batch_size = job.mesh, job.experiment.training.batch_size
  shards, state = sharding.num_batch_shards(mesh), state_shapes(job)
  groups = "a device" if shards == mesh.size else f"each for {mesh.shape['tensor']} devices"
  rows = {
    "devices": f"{mesh.size} x {jax.devices()[0].device_kind}, {distributed.describe_hosts()}",
    "mesh": ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items()),
    "batch": f"{batch_size} images, {batch_size // shards} {groups}",
    "parameters": f"{count_parameters(state.params):,}",
    "data": log.describe_data(job.train.name, len(job.train), job.train.spec),
    "held out": f"{len(job.test):,} images" if job.test else "none",
    "workdir": str(job.workdir),
    "start": beginning,
  }
  print(f"diffusion_jax {__version__}, jax {jax.__version__}")
  print("\n".join(f"  {name:<11}{text}" for name, text in rows.items()))
  print("\n".join(f"  {line}" for line in sharding.describe_layout(mesh, state)), flush=True)


def train(job: Job, state: TrainState, stop_requested: Callable[[], str | None]) -> None:
  """The loop, from the state's step to the last, with everything that it opens closed after it."""
  config, first = job.experiment, int(state.step)
  feed, meta, show = make_feed(job), describe(job), make_show(job)
  with contextlib.ExitStack() as stack:
    keep = lambda opened: stack.enter_context(contextlib.closing(opened))  # noqa: E731
    writes = distributed.is_first()
    logger = keep(log.Logger(job.workdir, config.logging, first, job.num_steps, writes))
    folder = job.workdir / "ema_snapshots"
    snapshots = keep(Snapshots(folder, config.ema, job.num_steps, state, meta))
    if first >= job.num_steps:  # stopped after its last checkpoint: only the figures are missing
      return show(logger, first, state, True)
    train_step = compile_step(job, state, feed(first))
    saver = keep(Checkpoints(job.checkpoints, config.checkpoint))
    batches = stack.enter_context(Prefetcher(feed, first, job.num_steps))
    meter = Meter(config.training.batch_size, config.training.max_skipped_in_a_row)
    logger.start_bar()
    for step in range(first + 1, job.num_steps + 1):
      with saved_on_failure(saver, state, meta):
        batch = batches.get()
      state, scalars = train_step(state, batch, *cast_vote(job, stop_requested()))
      try:
        meter.push(step, scalars)
        last, signal = step == job.num_steps, agreed_signal(meter, stop_requested())
        save = last or signal or step % config.checkpoint.every_steps == 0
        pause = save or snapshots.is_due(step) or is_due(config, step)
        if last or step % config.logging.every_steps == 0:
          log_interval(job, logger, step, meter.interval(batches.wait_sec))
        if pause:
          meter.drain()  # or the time of steps in flight would count as time spent saving
      except NonFinite as error:
        raise runs.explain_non_finite(error, saver.steps()) from error
      logger.advance(step)
      saver.check()
      with meter.pause():
        snapshots.save(step, state, before_checkpoint=bool(save))
        # The checkpoints from before a series of skipped updates must outlive it.
        if last or signal or (save and not int(state.num_skipped_in_a_row)):
          saver.save(step, state, meta)
        if signal and not last:
          stop(saver, step, signal)
        with saved_on_failure(saver, state, meta):
          show(logger, step, state, last)


def log_interval(job: Job, logger: log.Logger, step: int, figures: Mapping[str, float]) -> None:
  """The line and the row of a logging interval."""
  logger.progress(step, figures, (job.num_steps - step) * figures["step_sec"])
  logger.scalars(step, {f"train/{name}": value for name, value in figures.items()})


def stop(saver: Checkpoints, step: int, signal: str) -> NoReturn:
  """Ends the run once what was saved is on disk."""
  saver.wait()
  raise runs.StoppedEarly(f"{signal}: saved step {step:,}; the same command continues")


def cast_vote(job: Job, signal: str | None) -> tuple[jax.Array, ...]:
  """Of several processes, what this one adds to a step: whether it has been asked to stop."""
  if jax.process_count() == 1:
    return ()
  mine = sharding.local_rows(job.mesh, sharding.num_batch_shards(job.mesh))
  return (sharding.put_batch(np.full(len(mine), signal is not None, np.int32), job.mesh),)


def agreed_signal(meter: Meter, signal: str | None) -> str | None:
  """The signal on which to stop now: of several processes, once all have learned of it."""
  if jax.process_count() == 1:
    return signal
  return (signal or "asked by another process") if meter.stop_votes else None


@contextlib.contextmanager
def saved_on_failure(saver: Checkpoints, state: TrainState, meta: Mapping[str, Any]):
  """Saves what was learned so far before an error inside ends the run.

  Not where there are other processes: they may be well, and do not come to save.
  """
  try:
    yield
  except Exception:
    if (step := int(state.step)) and jax.process_count() == 1:
      saver.save(step, state, meta)
    raise


def make_feed(job: Job):
  """A function from a step (counted from 0) to its batch on the devices."""
  training = job.experiment.training
  rows = sharding.local_rows(job.mesh, training.batch_size)
  flip = job.experiment.data.flip
  stream = TrainStream(job.feed, training.batch_size, training.seed, flip, rows)
  return lambda step: sharding.put_batch(stream.batch(step), job.mesh)


def compile_step(job: Job, state: TrainState, batch):
  """Compiles ahead of the first step, so that its time is not taken for the step's."""
  parts = job.experiment
  step = make_train_step(job.generative, parts.optimizer, parts.ema, parts.training, job.mesh)
  print("Compiling...", flush=True)
  begun = time.perf_counter()
  jitted = jit_train_step(step, state, job.mesh, voting=jax.process_count() > 1)
  with watchdog.allow(watchdog.COMPILE_SEC):
    compiled = jitted.lower(state, batch, *cast_vote(job, None)).compile()
  print(f"compiled in {time.perf_counter() - begun:.1f} s", flush=True)
  return compiled


if __name__ == "__main__":
  runs.run_main(main)
