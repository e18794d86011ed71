"""Make a run of a published model or of one trained elsewhere.

  python -m diffusion_jax.import ddpm-cifar10-32 --out=runs/ddpm --config=ddpm_cifar

SOURCE is a pipeline's folder of diffusers, or a file of weights of a known architecture. The run
has one checkpoint, of step 0, whose averaged weights are the imported ones; sample, evaluate, edit
and train take it like any other. What the source does not tell, such as data and optimizer, comes
from --config, or from --config.section.field=value. Nothing in a file is executed.
"""

from diffusion_jax.core.files import run_folder, user_path
from diffusion_jax.porting.imported import assumptions, experiment_of, write_run
from diffusion_jax.porting.opening import open_source
from diffusion_jax.runs import command_line
from diffusion_jax.runs.stored import load_experiment


def main(argv: list[str]) -> None:
  args, overrides = parser().parse(argv)
  base = {} if args.config is None else load_experiment(args.config, ()).to_dict()
  source = open_source(args.source, args.group, args.image_size, args.architecture)
  source = source._replace(origin={**source.origin, "source": str(args.source)})
  experiment = experiment_of(source, base, overrides)
  number = write_run(args.out, source, experiment)
  print(f"imported {number:,} parameters of a {source.layout.name} into {args.out}")
  for line in assumptions(source, experiment):
    print(f"  assumed    {line}")
  for note in source.described.notes:
    print(f"  note       {note}")
  print(f"  sample     diffusion-jax sample --workdir={args.out} --num=64 --out=samples.png")
  print(f"  evaluate   diffusion-jax evaluate --workdir={args.out}")


def parser() -> command_line.Parser:
  flags = command_line.Parser("import", description=__doc__)
  flags.add_argument("source", metavar="SOURCE", type=user_path, help="a folder of diffusers")
  flags.add_argument("--out", type=run_folder, required=True, help="the run's folder")
  flags.add_argument("--group", help="group of a file's arrays to read, e.g. model; default: ema")
  flags.add_argument("--image_size", type=int, metavar="PIXELS",
                     help="side of the images, where the file does not tell it")  # fmt: skip
  flags.add_argument(
    "--architecture", help="layout of the file's tensors, where it is not the one assumed"
  )
  flags.add_argument("--config", help="config with the data, optimizer and training")
  return flags


if __name__ == "__main__":
  command_line.run_main(main)
