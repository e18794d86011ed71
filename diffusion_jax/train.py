"""Trains a model: python -m diffusion_jax.train --config=configs/ddpm_digits.py

The same command continues a run that stopped. Overrides are --config.section.field=value.
"""

from diffusion_jax import parallel
from diffusion_jax.core.files import run_folder
from diffusion_jax.parallel import watchdog
from diffusion_jax.parallel.platforms import run_in_calling_thread
from diffusion_jax.runs import command_line, provenance
from diffusion_jax.runs.signals import stop_requests
from diffusion_jax.runs.stored import load_experiment
from diffusion_jax.runs.workdir import default_workdir, is_finished, lock, prepare_workdir
from diffusion_jax.train_loop.loop import Stop, train_steps
from diffusion_jax.train_loop.profiling import Span, parse_span
from diffusion_jax.train_loop.setup import Job, prepare, print_plan, start


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
  train_steps(job, state, stop_requested, span)
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


if __name__ == "__main__":
  command_line.run_main(main)
