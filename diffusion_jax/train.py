"""Train a model, or continue an interrupted run.

  python -m diffusion_jax.train --config=ddpm_digits
  python -m diffusion_jax.train --data=my_photos

The same command continues the run, and so does --workdir=RUN alone. Override any field by
--config.section.field=value. With --data the config is chosen from the data: their resolution,
classes, held-out part, and a network.
"""

import inspect
import sys
import types
from typing import Any

from diffusion_jax import parallel
from diffusion_jax.core.files import run_folder, user_path
from diffusion_jax.parallel.platforms import run_in_calling_thread
from diffusion_jax.runs import command_line, own_data
from diffusion_jax.runs.data_argument import folder_for_data, naming_data
from diffusion_jax.runs.experiment import build_experiment
from diffusion_jax.runs.signals import stop_requests
from diffusion_jax.runs.stored import load_experiment, stored_config
from diffusion_jax.runs.workdir import choose_workdir, lock, prepare_workdir
from diffusion_jax.train_loop import own_run
from diffusion_jax.train_loop.library import train
from diffusion_jax.train_loop.loop import train_run
from diffusion_jax.train_loop.profiling import parse_span
from diffusion_jax.train_loop.setup import prepare_job, print_plan, with_origin
from diffusion_jax.types import UserError


def main(argv: list[str]) -> None:
  flags = parser()
  args, overrides = flags.parse(argv)
  check_flags(flags, args)
  span = None if args.profile is None else parse_span(args.profile)
  run_in_calling_thread()
  command_line.enable_compilation_cache()
  own = None
  if args.data is None:
    if args.config is None:
      experiment, workdir = build_experiment(stored_config(args.workdir), overrides), args.workdir
    else:
      experiment = load_experiment(args.config, overrides)
      workdir = args.workdir or choose_workdir(args.config, experiment)
    command_line.join_job(experiment)
  else:
    workdir = args.workdir or folder_for_data(args.data)
    own = own_run.begin_own_run(args.data, overrides, workdir, args.fresh, args.save_config)
    experiment = own.experiment
  with stop_requests() as stop_requested:
    with naming_data(args.data):
      job = prepare_job(experiment, workdir)
    job = with_origin(job, args.init_from, args.init_partial, args.fresh)
    if own is not None:
      parallel.on_process_0(lambda: own.show(job))
    if args.dry_run:
      begun = f"; {job.origin.text}" if job.origin else ""
      return print_plan(job, f"a dry run: nothing is trained or written{begun}")
    parallel.on_process_0(lambda: prepare_workdir(workdir, args.fresh))
    parallel.check_shared(workdir)
    with lock(workdir):
      if own is not None:
        parallel.on_process_0(lambda: own_data.store_choice(workdir, own.chosen))
      train_run(job, stop_requested, span)


def parser() -> command_line.Parser:
  flags = command_line.Parser("train", description=__doc__)
  flags.add_argument("--config", help="a shipped config's name, e.g. ddpm_digits, or a config file")
  flags.add_argument("--data", help="instead of a config: a folder of pictures, a .zip or .tar, an "
                     ".npz, a name of tensorflow-datasets, or hf:NAME of Hugging Face")  # fmt: skip
  flags.add_argument("--save_config", metavar="FILE.py", type=user_path,
                     help="with --data: write the chosen config as a file to edit")  # fmt: skip
  flags.add_argument(
    "--workdir",
    type=run_folder,
    help="the run's folder; default: runs/<config or data>, "
    "or runs/<config>_<data> on other data than the config's",
  )
  flags.add_argument("--dry_run", action="store_true", help="check everything, print what would "
                     "run and how it would be sharded, and end")  # fmt: skip
  flags.add_argument(
    "--profile", metavar="START:STEPS", help="trace these steps by xprof, e.g. 10:5"
  )
  flags.add_argument(
    "--init_from", metavar="RUN", help="begin with another run's averaged weights, or RUN@STEP's"
  )
  flags.add_argument("--init_partial", action="store_true", help="with --init_from: load what "
                     "fits, e.g. for other classes; the rest is listed and random")  # fmt: skip
  flags.add_argument("--fresh", action="store_true", help="start again; move the old run aside")
  return flags


def check_flags(flags: command_line.Parser, args: Any) -> None:
  """Raise a UserError unless one of --config, --data and the folder of a run is given."""
  is_run = args.workdir is not None and (args.workdir / "config.json").is_file()
  if args.config is None and args.data is None and (not is_run or args.fresh):
    flags.error("the following arguments are required: --config or --data")
  if args.config is not None and args.data is not None:
    raise UserError(f"--config={args.config} and --data={args.data}: give one of the two")
  if args.init_partial and args.init_from is None:
    raise UserError("--init_partial needs --init_from=RUN")
  if args.save_config is not None and args.data is None:
    raise UserError(f"--save_config={args.save_config}: only --data chooses a config; leave it out")


class _Callable(types.ModuleType):
  """This module, made callable: `diffusion_jax.train(...)` trains."""

  def __call__(self, *args: Any, **options: Any) -> Any:
    return train(*args, **options)


sys.modules[__name__].__class__ = _Callable
__signature__ = inspect.signature(train)
__all__ = ["train"]  # what help(diffusion_jax.train) shows

if __name__ == "__main__":
  command_line.run_main(main)
