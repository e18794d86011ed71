"""Draw images from a run.

  python -m diffusion_jax.sample --workdir=runs/ddpm_digits --out=grid.png

Restores the EMA weights of the newest readable checkpoint (or those given by --ema) on the
available devices. The run's config sets the sampler, its steps and the guidance; --config.sampler.*
and --config.guidance.* override them. After a kill the same command continues with the next batch.
"""

import time

import jax
import numpy as np
from jax.sharding import Mesh

from diffusion_jax import parallel
from diffusion_jax.core.buckets import checkpoint_folder
from diffusion_jax.core.class_names import class_numbers
from diffusion_jax.core.config import Override
from diffusion_jax.core.files import bucket_path, run_folder, write_png
from diffusion_jax.core.picture_grid import grid_columns, image_grid
from diffusion_jax.core.pixels import as_pictures, to_uint8
from diffusion_jax.data import load_held_out
from diffusion_jax.inference import outputs, restore
from diffusion_jax.inference.condition_fields import fields_in_turn, fields_source
from diffusion_jax.inference.draw import (
  autoguided,
  choose_labels,
  first_examples,
  make_draw,
  make_reconstruct,
  rows_in_turn,
)  # fmt: skip
from diffusion_jax.inference.restore import stored_class_names, stored_classes, stored_spec
from diffusion_jax.parallel import sharding
from diffusion_jax.runs import command_line, flags
from diffusion_jax.runs.experiment import Experiment
from diffusion_jax.runs.resumable import digest
from diffusion_jax.runs.stored import stored_config, stored_experiment, trained_experiment
from diffusion_jax.types import GenerativeModel, Params, UserError

ASKED = (
  "workdir", "num", "labels", "seed", "step", "ema", "guide_workdir", "guide_step", "batch_size",
)  # fmt: skip
"""Flags that determine the images."""


def main(argv: list[str]) -> None:
  args, overrides = parser().parse(argv)
  command_line.enable_compilation_cache()
  check_flags(args)
  if args.guide_workdir:
    if "guidance" not in stored_config(args.workdir):
      raise UserError(f"--guide_workdir={args.guide_workdir}: this run is no diffusion model")
    overrides.append(Override("guidance", "against", "model"))
  experiment = trained_experiment(args.workdir, overrides)
  command_line.join_job(experiment)
  with outputs.writing(args.out):
    draw_images(args, experiment)


def draw_images(args, experiment: Experiment) -> None:
  """Draw the images, or the remaining ones of an interrupted command, and write them."""
  average = restore.parse_average(args.ema)
  size = min(args.batch_size, args.num)
  asked = outputs.asked_for(args, ASKED, experiment)
  left = outputs.left_over(args.out, asked)
  directory = restore.folder_of(args.workdir, args.step, average)
  spec = stored_spec(directory, args.step)
  generative = experiment.create(spec)
  trained = stored_classes(directory, args.step) if generative.num_classes else []
  names = stored_class_names(directory, args.step) if trained else []
  labels = choose_labels(args.labels, args.num, trained, names)
  classes = class_numbers(args.labels, names, "--labels") if args.labels else trained
  mesh = sharding.create_mesh(experiment.mesh)
  restored = outputs.restore_for_output(args.workdir, args.step, left, mesh, generative, average)
  params, made_of = restored.params, {"step": restored.step, "weights": digest(restored.facts)}
  if args.guide_workdir:
    generative, params, made_of["guide"] = against(args, experiment, generative, params, mesh)
  begun = time.perf_counter()
  if args.reconstruct:
    num, columns = reconstruct(args, experiment, generative, mesh, params)
  else:
    source = fields_source(generative, experiment.data, spec)
    call = make_draw(generative, mesh, size)

    def compute(first: int) -> dict[str, np.ndarray]:
      given = None if labels is None else labels[(first + np.arange(size)) % args.num]
      fields = fields_in_turn(generative, source, first, size) if source else {}
      images = to_uint8(call(params, given, size, args.seed, first, fields))
      return {"images": images, "labels": np.full(size, -1) if given is None else given}

    facts = {"asked": asked, **made_of}
    chunks = outputs.make(args.out, facts, args.num, size, compute, "sampling")
    num, columns = args.num, grid_columns(args.num, len(classes))
    parallel.on_process_0(lambda: outputs.finish(args.out, chunks, num, size, columns, names))
  seconds = time.perf_counter() - begun
  shown = "" if args.ema is None else f", {average.label}"
  print(f"{describe_sampling(experiment)}{shown}, seed {args.seed}: {num:,} images in {args.out}, "
        f"{seconds:.1f} s with compilation")  # fmt: skip
  for warning in experiment.warnings().values():
    print(f"warning: {warning}")


def parser() -> command_line.Parser:
  cli = command_line.Parser("sample", description=__doc__)
  cli.add_argument("--workdir", type=run_folder, required=True, help="the run's folder")
  cli.add_argument("--num", type=int, default=64, help="number of images")
  cli.add_argument("--out", type=bucket_path, required=True, help="a .png (one grid), "
                   "an .npz (arrays images, labels, class_names) or a folder of PNGs")  # fmt: skip
  cli.add_argument("--labels", help="classes in order, e.g. cat,ship or 0,1; default: all trained")
  cli.add_argument("--seed", type=int, default=0, help="seed; image i depends only on it and i")
  cli.add_argument("--step", default="latest", help="latest, or a checkpoint's step")
  cli.add_argument("--ema", help=restore.EMA_HELP)
  cli.add_argument(
    "--guide_workdir", type=run_folder,
    help="autoguidance: run of an inferior model (smaller, or trained for fewer steps); "
    "--config.guidance.weight moves the images away from it",
  )  # fmt: skip
  cli.add_argument("--guide_step", default="latest", help="latest, or a step of that run")
  cli.add_argument("--batch_size", type=int, default=64, help="images drawn at once")
  cli.add_argument("--reconstruct", action="store_true", help="write held-out images above their "
                     "reconstructions (models with an encoder)")  # fmt: skip
  return cli


def check_flags(args) -> None:
  """Check the flags before anything is loaded; raise a UserError for a bad one."""
  for name in ("num", "batch_size"):
    if getattr(args, name) < 1:
      raise UserError(f"--{name}={getattr(args, name)}: must be at least 1")
  flags.check_seed(args.seed)
  args.step = flags.parse_step(args.step)
  args.guide_step = flags.parse_step(args.guide_step, "guide_step")
  if args.guide_workdir and args.reconstruct:
    raise UserError(f"--guide_workdir={args.guide_workdir}: reconstructions are not guided")
  if args.reconstruct and args.out.suffix != ".png":
    raise UserError(f"--out={args.out}: --reconstruct writes a grid; use a name ending in .png")


def against(args, experiment: Experiment, good: GenerativeModel, params: Params, mesh: Mesh):
  """Return the model guided by the inferior run, the weights of both, and their hash."""
  where = f"--guide_workdir={args.guide_workdir}"
  if not checkpoint_folder(args.guide_workdir).is_dir():
    raise UserError(f"{where}: no run there; give the folder of a training run")
  other = stored_experiment(args.guide_workdir, [])
  mine, others = experiment.to_dict(), other.to_dict()
  if "guidance" in mine and mine["guidance"]["weight"] == 1.0:
    raise UserError(f"{where}: guidance.weight=1 is off; set --config.guidance.weight=2")
  if mine.get("process") != others.get("process"):
    raise UserError(
      f"{where}: its process is {others.get('process')}, this run's {mine.get('process')}; "
      "guidance needs two models of one process"
    )
  spec = stored_spec(checkpoint_folder(args.guide_workdir), args.guide_step)
  guide = other.create(spec)
  if spec != stored_spec(checkpoint_folder(args.workdir), args.step):
    raise UserError(f"{where}: its images are {spec}; guidance needs two models of the same images")
  if guide.num_classes and guide.num_classes != good.num_classes:
    raise UserError(
      f"{where}: it takes classes, and this model does not; choose an unconditional run"
    )
  pair = autoguided(good, guide)
  restored = restore.restore_weights(
    args.guide_workdir, args.guide_step, mesh, guide, restore.Average()
  )
  return pair, {"good": params, "guide": restored.params}, digest(restored.facts)


def reconstruct(
  args, experiment: Experiment, generative: GenerativeModel, mesh: Mesh, params: Params
):
  """Write held-out images above their reconstructions; return the count and grid columns."""
  call = make_reconstruct(generative, mesh)
  source = load_held_out(experiment.data)
  batch = first_examples(source, args.num)
  batches = [jax.tree.map(lambda x, i=i: x[i : i + args.batch_size], batch)
           for i in range(0, len(batch.index), args.batch_size)]  # fmt: skip
  decoded = np.concatenate([to_uint8(call(params, batch_part)) for batch_part in batches])
  originals = as_pictures(batch.image, source.spec.num_levels)
  columns = grid_columns(len(decoded), 0)
  images = rows_in_turn([originals, decoded], columns)
  parallel.on_process_0(lambda: write_png(args.out, image_grid(images, columns)))
  return len(images), columns


def describe_sampling(experiment: Experiment) -> str:
  """Describe the model, its sampler with every option, and its guidance if it has any."""
  sections = experiment.to_dict()
  words = [sections["generative"]["name"]]
  if "sampler" in sections:
    options = {name: value for name, value in sections["sampler"].items() if name != "name"}
    words = [sections["sampler"]["name"], *(f"{name} {value}" for name, value in options.items())]
  if "guidance" in sections:
    words.append(f"guidance {sections['guidance']['weight']:g}")
  return ", ".join(words)


if __name__ == "__main__":
  command_line.run_main(main)
