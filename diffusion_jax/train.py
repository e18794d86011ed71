"""Trains a model: python -m diffusion_jax.train --config=configs/ddpm_digits.py

The same command continues a run that stopped. Overrides are --config.section.field=value.
"""

import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from diffusion_jax import __version__, log, provenance, runs, sharding
from diffusion_jax.checkpoint import Checkpoints
from diffusion_jax.data import Prefetcher, TrainStream
from diffusion_jax.job import Job, describe, prepare, start
from diffusion_jax.meter import Meter, NonFinite
from diffusion_jax.previews import is_due, make_show
from diffusion_jax.state import TrainState, count_parameters
from diffusion_jax.step import jit_train_step, make_train_step


def main(argv: list[str]) -> None:
  args, overrides = parser().parse(argv)
  runs.enable_compilation_cache()
  workdir = args.workdir or runs.default_workdir(args.config)
  with runs.stop_requests() as stop_requested:
    job = prepare(runs.load_experiment(args.config, overrides), workdir)
    runs.prepare_workdir(workdir, args.fresh)
    with runs.lock(workdir):
      run(job, stop_requested)


def run(job: Job, stop_requested: Callable[[], str | None]) -> None:
  """Starts or continues the run in its folder, which nobody else trains in."""
  state, resumed = start(job)
  print_start(job, state, resumed)
  first = int(state.step)
  if runs.is_finished(job.workdir, first, job.num_steps):
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
  flags.add_argument("--fresh", action="store_true", help="start over; moves the old run aside")
  return flags


def print_start(job: Job, state: TrainState, resumed: bool) -> None:
  """The block that says what is about to run."""
  mesh, batch_size, step = job.mesh, job.experiment.training.batch_size, int(state.step)
  devices = f"{mesh.size} x {jax.devices()[0].device_kind}"
  rows = {
    "devices": f"{devices}, {jax.process_count()} process(es)",
    "mesh": ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items()),
    "batch": f"{batch_size} images, {batch_size // mesh.size} a device",
    "parameters": f"{count_parameters(state.params):,}",
    "data": log.describe_data(job.train.name, len(job.train), job.train.spec),
    "held out": f"{len(job.test):,} images" if job.test else "none",
    "workdir": str(job.workdir),
    "start": f"resuming at step {step:,} of {job.num_steps:,}" if resumed else "a new run",
  }
  print(f"diffusion_jax {__version__}, jax {jax.__version__}")
  print("\n".join(f"  {name:<11}{text}" for name, text in rows.items()), flush=True)


def train(job: Job, state: TrainState, stop_requested: Callable[[], str | None]) -> None:
  """The loop, from the state's step to the last, with everything that it opens closed after it."""
  config, first = job.experiment, int(state.step)
  feed, meta, show = make_feed(job), describe(job), make_show(job)
  with contextlib.ExitStack() as stack:
    logger = log.Logger(job.workdir, config.logging, first, job.num_steps, is_writer())
    stack.callback(logger.close)
    if first >= job.num_steps:  # stopped after its last checkpoint: only the figures are missing
      return show(logger, first, state, True)
    train_step = compile_step(job, state, feed(first))
    saver = Checkpoints(job.checkpoints, config.checkpoint)
    stack.callback(saver.close)
    batches = stack.enter_context(Prefetcher(feed, first, job.num_steps))
    meter = Meter(config.training.batch_size, config.training.max_skipped_in_a_row)
    logger.start_bar()
    for step in range(first + 1, job.num_steps + 1):
      with saved_on_failure(saver, state, meta):
        batch = batches.get()
      state, scalars = train_step(state, batch)
      last, signal = step == job.num_steps, stop_requested()
      save = last or signal or step % config.checkpoint.every_steps == 0
      try:
        meter.push(step, scalars)
        if last or step % config.logging.every_steps == 0:
          figures = meter.interval(batches.wait_sec)
          logger.progress(step, figures, (job.num_steps - step) * figures["step_sec"])
          logger.scalars(step, {f"train/{name}": value for name, value in figures.items()})
        if save or is_due(config, step):
          meter.drain()  # or the time of steps in flight would count as time spent saving
      except NonFinite as error:
        raise runs.explain_non_finite(error, saver.steps()) from error
      logger.advance(step)
      saver.check()
      with meter.pause():
        # The checkpoints from before a series of skipped updates must outlive it.
        if last or signal or (save and not int(state.num_skipped_in_a_row)):
          saver.save(step, state, meta)
        if signal and not last:
          saver.wait()
          raise runs.StoppedEarly(f"{signal}: saved step {step:,}; the same command continues")
        with saved_on_failure(saver, state, meta):
          show(logger, step, state, last)


@contextlib.contextmanager
def saved_on_failure(saver: Checkpoints, state: TrainState, meta: Mapping[str, Any]):
  """Saves what was learned so far before an error inside ends the run."""
  try:
    yield
  except Exception:
    if step := int(state.step):
      saver.save(step, state, meta)
    raise


def make_feed(job: Job):
  """A function from a step (counted from 0) to its batch on the devices."""
  training = job.experiment.training
  stream = TrainStream(
    job.train,
    training.batch_size,
    training.seed,
    job.experiment.data.flip,
    jax.process_index(),
    jax.process_count(),
  )
  return lambda step: sharding.put_batch(stream.batch(step), job.mesh)


def compile_step(job: Job, state: TrainState, batch):
  """Compiles ahead of the first step, so that its time is not taken for the step's."""
  parts = job.experiment
  step = make_train_step(job.generative, parts.optimizer, parts.ema, parts.training, job.mesh)
  print("Compiling...", flush=True)
  begun = time.perf_counter()
  compiled = jit_train_step(step, state, job.mesh).lower(state, batch).compile()
  print(f"compiled in {time.perf_counter() - begun:.1f} s", flush=True)
  return compiled


def is_writer() -> bool:
  """Whether this process writes what one process must write."""
  return jax.process_index() == 0


if __name__ == "__main__":
  runs.run_main(main)
