"""Browse runs on a local page: draw samples, inpaint, interpolate, walk through latents.

  diffusion-jax gallery --workdir=runs                  all runs in a folder, on 127.0.0.1
  diffusion-jax gallery --workdir=runs/ddpm_digits      one run
  diffusion-jax gallery --workdir=runs/ddpm_digits --static=gallery.html
                                                        one file for a run, which needs no server

The server needs the extra `gallery`: pip install 'diffusion_jax[gallery]'. Sampler and guidance
begin with the run's own settings, or those of --config.sampler.FIELD and --config.guidance.FIELD.
"""

import functools

from diffusion_jax.browsing.finished import write_static_page
from diffusion_jax.browsing.opened_run import OpenedRun
from diffusion_jax.browsing.serving import (
  check_libraries,
  listening_socket,
  runs_in,
  serve_page,
)
from diffusion_jax.core.files import bucket_path, check_file, run_folder
from diffusion_jax.inference import restore
from diffusion_jax.runs import command_line
from diffusion_jax.types import UserError

MAX_PORT = 65535
MAX_NUM = 64
DEFAULT_PORT = 8360


def main(argv: list[str]) -> None:
  args, overrides = parser().parse(argv)
  command_line.enable_compilation_cache()
  check_flags(args)
  runs = runs_in(args.workdir)
  open_run = functools.partial(OpenedRun, overrides=overrides, ema=args.ema, num=args.num)
  if args.static is None:
    check_libraries()
    with listening_socket(args.port) as listening:
      serve_page(args.workdir, open_run, listening)
    return
  if len(runs) > 1:
    raise UserError(
      f"--static={args.static} shows one run, and --workdir={args.workdir} holds {len(runs)}; give "
      f"one, such as --workdir={next(folder for folder, _ in runs.values())}"
    )
  [(folder, _)] = runs.values()
  size = write_static_page(
    open_run(folder), args.static, lambda line: print(f"  {line}", flush=True)
  )
  print(f"gallery of {folder} in {args.static} ({size / 1e6:.1f} MB)")


def parser() -> command_line.Parser:
  cli = command_line.Parser("gallery", description=__doc__)
  cli.add_argument("--workdir", type=run_folder, required=True,
                   help="a run's folder, or a folder of runs")  # fmt: skip
  cli.add_argument("--port", type=int, default=DEFAULT_PORT,
                   help="port on 127.0.0.1; 0 takes a free one")  # fmt: skip
  cli.add_argument("--static", type=bucket_path, help="an .html file to write in place of a server")
  cli.add_argument("--num", type=int, default=16, help="images drawn at once")
  cli.add_argument("--ema", help=restore.EMA_HELP)
  return cli


def check_flags(args) -> None:
  """Check the flags before anything is loaded; raise a UserError for a bad one."""
  if not 0 <= args.port <= MAX_PORT:
    raise UserError(f"--port={args.port}: must be between 0 and {MAX_PORT}")
  if not 2 <= args.num <= MAX_NUM:
    raise UserError(f"--num={args.num}: must be between 2 and {MAX_NUM}")
  restore.parse_average(args.ema)
  if args.static is not None:
    if args.static.suffix not in (".html", ".htm"):
      raise UserError(f"--static={args.static}: must be a name ending in .html")
    check_file(args.static, "--static")


if __name__ == "__main__":
  command_line.run_main(main)
