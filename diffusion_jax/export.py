"""Write a run's averaged weights for other libraries.

  python -m diffusion_jax.export --workdir=runs/ddpm_cifar --format=diffusers --out=ddpm_cifar

diffusers: a folder for DDPMPipeline.from_pretrained, or AutoencoderKL.from_pretrained from a VAE
with the network autoencoder_kl, with a model card (config, data and figures). safetensors: one file
with the parameters under our names, the config in its metadata.
"""

import json

import jax
import numpy as np

from diffusion_jax.core.files import run_folder, user_path
from diffusion_jax.core.trees import named_leaves
from diffusion_jax.inference import restore
from diffusion_jax.parallel import sharding
from diffusion_jax.porting.diffusers_export import (
  describe_pipeline,
  make_pipeline,
  usage_of,
  with_ddpm_scheduler,
  write_pipeline,
)
from diffusion_jax.porting.downloads import check_upload, upload_folder
from diffusion_jax.porting.imported import is_imported
from diffusion_jax.porting.model_card import newest_metrics, write_card
from diffusion_jax.porting.whole_folder import cannot_write, check_new, whole_folder
from diffusion_jax.runs import command_line
from diffusion_jax.runs.flags import parse_step
from diffusion_jax.runs.stored import trained_experiment
from diffusion_jax.training.train_state import count_parameters
from diffusion_jax.types import UserError
from diffusion_jax.weight_files.safetensors_file import write_safetensors


def main(argv: list[str]) -> None:
  args, overrides = parser().parse(argv)
  args.step = parse_step(args.step)
  experiment = trained_experiment(args.workdir, overrides)
  average = restore.parse_average(args.ema)
  directory = restore.folder_of(args.workdir, args.step, average)
  spec = restore.stored_spec(directory, args.step)
  if args.push is not None:
    if args.format != "diffusers":
      raise UserError(f"--push={args.push}: needs --format=diffusers, a folder with a model card")
    check_upload(args.push)
  written = experiment
  if args.scheduler == "ddpm" or (args.scheduler is None and not is_imported(args.workdir)):
    written = with_ddpm_scheduler(experiment)
  if args.format == "diffusers":
    describe_pipeline(written, spec)  # refuses before anything is read
  check_new(args.out)
  mesh = sharding.create_mesh(sharding.MeshShape(), jax.devices()[:1])
  generative = experiment.create(spec)
  weights = restore.restore_weights(args.workdir, args.step, mesh, generative, average)
  config = experiment.to_dict()
  if args.format == "safetensors":
    leaves = {name: np.asarray(leaf) for name, leaf in named_leaves(weights.params).items()}
    try:
      args.out.parent.mkdir(parents=True, exist_ok=True)
      write_safetensors(args.out, leaves, {"config": json.dumps(config)})
    except OSError as error:
      raise cannot_write(args.out, error) from error
  else:
    pipeline = make_pipeline(written, spec, weights.params)
    metrics = newest_metrics(args.workdir, weights.step)
    usage = usage_of(pipeline, generative.num_classes)
    card = write_card(args.workdir.name, config, weights.meta, weights.step, metrics, usage)
    with whole_folder(args.out) as folder:
      write_pipeline(folder, pipeline, write_safetensors)
      (folder / "README.md").write_text(card)
    if written is not experiment:
      print("  note       written with DDPMScheduler; --scheduler=own writes the run's ddim")
    if pipeline.lacks:
      print(f"  note       {pipeline.lacks}")
  print(f"exported {count_parameters(weights.params):,} parameters to {args.out}")
  if args.push is not None:
    print(f"uploaded to {upload_folder(args.out, args.push)}")


def parser() -> command_line.Parser:
  flags = command_line.Parser("export", description=__doc__)
  flags.add_argument("--workdir", type=run_folder, required=True, help="the run's folder")
  flags.add_argument("--format", choices=["diffusers", "safetensors"], required=True,
                     metavar="LAYOUT", help="diffusers or safetensors")  # fmt: skip
  flags.add_argument("--out", type=user_path, required=True, help="a new folder or file")
  flags.add_argument("--scheduler", choices=["ddpm", "own"], help="of a U-Net for diffusers; "
                     "default: ddpm, and of an imported run its own")  # fmt: skip
  flags.add_argument("--push", metavar="OWNER/NAME",
                     help="upload the folder to Hugging Face (extra hub)")  # fmt: skip
  flags.add_argument("--step", default="latest", help="latest, or a checkpoint's step")
  flags.add_argument("--ema", help=restore.EMA_HELP)
  return flags


if __name__ == "__main__":
  command_line.run_main(main)
