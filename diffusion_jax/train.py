"""Train a model, or continue an interrupted run.

  python -m diffusion_jax.train --config=ddpm_digits

The same command continues the run. Override any field by --config.section.field=value.
"""

import inspect
import sys
import types
from typing import Any

from diffusion_jax import parallel
from diffusion_jax.core.files import run_folder
from diffusion_jax.parallel.platforms import run_in_calling_thread
from diffusion_jax.runs import command_line
from diffusion_jax.runs.signals import stop_requests
from diffusion_jax.runs.stored import load_experiment
from diffusion_jax.runs.workdir import default_workdir, lock, prepare_workdir
from diffusion_jax.train_loop.library import train
from diffusion_jax.train_loop.loop import train_run
from diffusion_jax.train_loop.profiling import parse_span
from diffusion_jax.train_loop.setup import prepare_job, print_plan


def main(argv: list[str]) -> None:
  args, overrides = parser().parse(argv)
  span = None if args.profile is None else parse_span(args.profile)
  run_in_calling_thread()
  command_line.enable_compilation_cache()
  workdir = args.workdir or default_workdir(args.config)
  experiment = load_experiment(args.config, overrides)
  command_line.join_job(experiment)
  with stop_requests() as stop_requested:
    job = prepare_job(experiment, workdir)
    if args.dry_run:
      return print_plan(job, "a dry run: nothing is trained or written")
    parallel.on_process_0(lambda: prepare_workdir(workdir, args.fresh))
    parallel.check_shared(workdir)
    with lock(workdir):
      train_run(job, stop_requested, span)


def parser() -> command_line.Parser:
  flags = command_line.Parser("train", description=__doc__)
  flags.add_argument(
    "--config", required=True, help="a shipped config's name, e.g. ddpm_digits, or a config file"
  )
  flags.add_argument("--workdir", type=run_folder, help="the run's folder; default: runs/<config>")
  flags.add_argument("--dry_run", action="store_true", help="check everything, print what would "
                     "run and how it would be sharded, and end")  # fmt: skip
  flags.add_argument(
    "--profile", metavar="START:STEPS", help="trace these steps by xprof, e.g. 10:5"
  )
  flags.add_argument("--fresh", action="store_true", help="start again; move the old run aside")
  return flags


class _Callable(types.ModuleType):
  """This module, made callable: `diffusion_jax.train(...)` trains."""

  def __call__(self, *args: Any, **options: Any) -> Any:
    return train(*args, **options)


sys.modules[__name__].__class__ = _Callable
__signature__ = inspect.signature(train)
__all__ = ["train"]  # what help(diffusion_jax.train) shows

if __name__ == "__main__":
  command_line.run_main(main)
