"""Measure a published checkpoint and compare the figure with the published one.

  python -m diffusion_jax.reproduce ddpm-cifar10

Imports the checkpoint, samples and evaluates it as its publishers did, and prints both figures with
their difference in standard errors. import --list shows the names. After an interruption the same
command continues. What differs from the publishers' protocol is named: --num_samples, other data or
settings (--config.section.field=value), weights given by --source.
"""

import shlex
import subprocess
import sys
from collections.abc import Sequence

from diffusion_jax.core.files import path_text, run_folder
from diffusion_jax.porting.published import Figure, Published, address_of, find_published
from diffusion_jax.porting.reproduction import check_origin, compare_with_published
from diffusion_jax.runs import command_line
from diffusion_jax.types import UserError


def main(argv: list[str]) -> None:
  args, overrides = parser().parse(argv)
  entry = find_published(args.name)
  figure = chosen_figure(entry, args.figure)
  if args.num_samples is not None and args.num_samples < 2:
    raise UserError(f"--num_samples={args.num_samples}: must be at least 2")
  workdir = args.workdir or run_folder(f"runs/{entry.name}")
  given = [override.flag for override in overrides]
  source = args.source or address_of(entry)
  if entry.config is None and not any(override.section == "data" for override in overrides):
    raise UserError(
      f"{entry.name} is measured on {entry.data}: give them, e.g. `data.name=records` "
      "`data.path=DIR`"
    )
  if check_origin(workdir, source):
    print(f"{workdir} has the imported weights")
  else:
    run("import", [source, f"--like={entry.name}", f"--out={workdir}", *given])
  flags = [f"--config.{field}" for field in figure.overrides]
  if args.num_samples is not None:
    field = "num_samples" if figure.name == "fid" else "likelihood_images"
    flags.append(f"--config.eval.{field}={args.num_samples}")
  for name in ("inception", "inception_sha256", "features"):
    if (value := getattr(args, name)) is not None:
      flags.append(f"--{name}={value}")
  run("evaluate", [f"--workdir={workdir}", "--step=0", *replaced(flags, given)])
  differs = [o.flag for o in overrides if o.section != "data" and o.field != "batch_size"]
  metrics = workdir / "eval" / "0" / "metrics.json"
  print(compare_with_published(entry, figure, metrics, differs))


def replaced(flags: Sequence[str], given: Sequence[str]) -> list[str]:
  """Return the flags of a protocol with those of the user in place of its own."""
  fields = {flag.partition("=")[0] for flag in given}
  return [flag for flag in flags if flag.partition("=")[0] not in fields] + list(given)


def run(program: str, flags: Sequence[str]) -> None:
  """Run a program of this package; end with its code if it fails."""
  print(f"$ diffusion-jax {program} {shlex.join(flags)}", flush=True)
  ended = subprocess.run([sys.executable, "-m", f"diffusion_jax.{program}", *flags], check=False)
  if ended.returncode:
    sys.exit(ended.returncode if ended.returncode > 0 else 128 - ended.returncode)


def chosen_figure(entry: Published, name: str | None) -> Figure:
  """Return a checkpoint's figure of a name; None: its first.

  Raises:
    UserError: no such figure is published for it.
  """
  known = {figure.name: figure for figure in entry.figures}
  if name is not None and name not in known:
    raise UserError(f"--figure={name}: {entry.name} has {' and '.join(known)}")
  return entry.figures[0] if name is None else known[name]


def parser() -> command_line.Parser:
  flags = command_line.Parser("reproduce", description=__doc__)
  flags.add_argument("name", metavar="NAME", help="a published checkpoint, see import --list")
  flags.add_argument("--figure", help="one of its figures; default: the first")
  flags.add_argument("--source", type=path_text, help="a copy of the weights, not downloaded again")
  flags.add_argument("--workdir", type=run_folder, help="the run's folder; default: runs/NAME")
  flags.add_argument("--num_samples", type=int, metavar="NUMBER", help="fewer samples, or images "
                     "of a likelihood; the result says so")  # fmt: skip
  flags.add_argument("--features", type=path_text, help="see evaluate")
  flags.add_argument("--inception", type=path_text, help="see evaluate")
  flags.add_argument("--inception_sha256", choices=["published", "any"], help="see evaluate")
  return flags


if __name__ == "__main__":
  command_line.run_main(main)
