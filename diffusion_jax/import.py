"""Make a run of a published model or of one trained elsewhere.

  python -m diffusion_jax.import --list
  python -m diffusion_jax.import ddpm-cifar10 --out=runs/ddpm
  python -m diffusion_jax.import my_pipeline --out=runs/mine --config=ddpm_cifar

SOURCE is a pipeline's folder of diffusers, or a file of weights of a known architecture. The run
has one checkpoint, of step 0, whose averaged weights are the imported ones; sample, evaluate, edit
and train take it like any other. What the source does not tell, such as data and optimizer, comes
from --config, or from --config.section.field=value. Nothing in a file is executed.
"""

from pathlib import Path
from typing import Any

from diffusion_jax.core.config import parse_override
from diffusion_jax.core.files import run_folder
from diffusion_jax.core.wording import with_flags
from diffusion_jax.porting.diffusers_folder import is_diffusers
from diffusion_jax.porting.downloads import check_sha256, fetch_source
from diffusion_jax.porting.imported import assumptions, experiment_of, write_run
from diffusion_jax.porting.opening import open_source
from diffusion_jax.porting.published import (
  Published,
  address_of,
  find_published,
)
from diffusion_jax.porting.published_tables import published_table
from diffusion_jax.runs import command_line
from diffusion_jax.runs.stored import load_experiment
from diffusion_jax.types import UserError


def main(argv: list[str]) -> None:
  args, overrides = parser().parse(argv)
  if args.image_size is not None and args.image_size < 1:
    raise UserError(f"--image_size={args.image_size}: must be at least 1")
  entry = published_source(args)
  config = args.config or (entry and entry.config)
  base = {} if config is None else load_experiment(config, ()).to_dict()
  told = [parse_override(f"--config.{field}") for field in entry.overrides] if entry else []
  path = fetch_source(args.source)
  check_sha256(path, args.sha256 or (entry and entry.sha256))
  size = args.image_size
  if size is None and entry and not is_diffusers(path):  # whose config tells it
    size = entry.image_size
  kind = args.architecture or (entry and entry.architecture)
  vae = args.autoencoder or (entry and entry.autoencoder)
  source = open_source(path, args.group, size, kind, None if vae is None else fetch_source(vae))
  source = source._replace(origin={**source.origin, "source": args.source})
  experiment = experiment_of(source, base, [*told, *overrides])
  number = write_run(args.out, source, experiment)
  print(f"imported {number:,} parameters ({source.layout.name}) into {args.out}")
  for line in assumptions(source, experiment):
    print(f"  assumed    {with_flags(line)}")
  for note in source.described.notes:
    print(f"  note       {note}")
  print(f"  sample     diffusion-jax sample --workdir={args.out} --num=64 --out=samples.png")
  print(f"  evaluate   diffusion-jax evaluate --workdir={args.out}")


def published_source(args: Any) -> Published | None:
  """Return the published checkpoint that is named, and put its address in SOURCE."""
  if args.like is not None:
    return find_published(args.like)
  is_name = "/" not in args.source and ":" not in args.source
  if not is_name or Path(args.source).exists():
    return None
  entry = find_published(args.source)
  args.source = address_of(entry)
  return entry


def parser() -> command_line.Parser:
  flags = command_line.Parser("import", description=__doc__)
  flags.add_argument("source", metavar="SOURCE", help="a file of weights, a folder of diffusers, "
                     "hf:OWNER/NAME, https://... or a name of --list")  # fmt: skip
  flags.add_argument("--list", action="version", version=published_table(),
                     help="list the published checkpoints with their figures")  # fmt: skip
  flags.add_argument("--like", metavar="NAME", help="take the settings of a published checkpoint")
  flags.add_argument("--out", type=run_folder, required=True, help="the run's folder")
  flags.add_argument("--group", help="group of a file's arrays to read, e.g. model; default: ema")
  flags.add_argument("--image_size", type=int, metavar="PIXELS",
                     help="side of the images, where the file does not tell it")  # fmt: skip
  flags.add_argument("--autoencoder", metavar="SOURCE", help="weights of the autoencoder (KL-f8) "
                     "that decodes a network's latents")  # fmt: skip
  flags.add_argument("--sha256", metavar="HEX", help="checksum that the file must have")
  flags.add_argument(
    "--architecture", help="layout of the file's tensors, where it is not the one assumed"
  )
  flags.add_argument("--config", help="config with the data, optimizer and training")
  return flags


if __name__ == "__main__":
  command_line.run_main(main)
