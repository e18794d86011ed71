"""Make a run of a published model or of one trained elsewhere.

  python -m diffusion_jax.import ddpm-cifar10-32 --out=runs/ddpm --config=ddpm_cifar

SOURCE is a pipeline's folder of diffusers. The run has one checkpoint, of step 0, whose averaged
weights are the imported ones; sample, evaluate, edit and train take it like any other. What the
source does not tell, such as data and optimizer, comes from --config, or from
--config.section.field=value. Nothing in a file is executed.
"""

from diffusion_jax.core.files import run_folder, user_path
from diffusion_jax.porting.diffusers_folder import is_diffusers, read_folder
from diffusion_jax.porting.imported import experiment_of, write_run
from diffusion_jax.runs import command_line
from diffusion_jax.runs.stored import load_experiment
from diffusion_jax.types import UserError
from diffusion_jax.weight_files.weight_file import read_weights


def main(argv: list[str]) -> None:
  args, overrides = parser().parse(argv)
  base = {} if args.config is None else load_experiment(args.config, ()).to_dict()
  if not args.source.exists():
    raise UserError(f"{args.source}: no such file or folder")
  if not is_diffusers(args.source):
    raise UserError(f"{args.source} is no folder of diffusers: it has no model_index.json")
  weights = read_folder(args.source, read_weights)
  shown = {**weights.origin, "source": str(args.source)}
  experiment = experiment_of(weights, base, overrides)
  number = write_run(args.out, weights._replace(origin=shown), experiment)
  print(f"imported {number:,} parameters of a {shown['architecture']} into {args.out}")
  print(f"  sample     diffusion-jax sample --workdir={args.out} --num=64 --out=samples.png")
  print(f"  evaluate   diffusion-jax evaluate --workdir={args.out}")


def parser() -> command_line.Parser:
  flags = command_line.Parser("import", description=__doc__)
  flags.add_argument("source", metavar="SOURCE", type=user_path, help="a folder of diffusers")
  flags.add_argument("--out", type=run_folder, required=True, help="the run's folder")
  flags.add_argument("--config", help="config with the data, optimizer and training")
  return flags


if __name__ == "__main__":
  command_line.run_main(main)
