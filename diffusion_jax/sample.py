"""Draws images from a run: python -m diffusion_jax.sample --workdir=runs/ddpm_digits --out=grid.png

Restores the newest good checkpoint's EMA weights, or those that --ema names, on whatever devices
are there. The run's sampler, steps and guidance are its config's; --config.sampler.*,
--config.guidance.* change them.
"""

import os
import time
from pathlib import Path

import numpy as np
from jax.sharding import Mesh

from diffusion_jax import distributed, flags, log, runs, sampling, sharding, weights
from diffusion_jax.config import Override
from diffusion_jax.experiment import Experiment
from diffusion_jax.job import stored_classes, stored_spec
from diffusion_jax.levels import as_pictures, to_uint8
from diffusion_jax.paths import replacing, run_folder, user_path
from diffusion_jax.types import Generative, Params, UserError


def main(argv: list[str]) -> None:
  args, overrides = parser().parse(argv)
  runs.enable_compilation_cache()
  check(args)
  if args.guide_workdir:
    if "guidance" not in runs.stored_config(args.workdir):
      raise UserError(f"--guide_workdir={args.guide_workdir}: this run is no diffusion model")
    overrides.append(Override("guidance", "against", "model"))
  experiment = runs.trained_experiment(args.workdir, overrides)
  runs.join_job(experiment)
  distributed.first_does(lambda: check_out(args.out))
  average = weights.parse_average(args.ema)
  directory = weights.folder_of(args.workdir, args.step, average)
  generative = experiment.create(stored_spec(directory, args.step))
  trained = stored_classes(directory, args.step) if generative.num_classes else []
  labels = sampling.choose_labels(args.labels, args.num, trained)
  mesh = sharding.create_mesh(experiment.mesh)
  params = weights.restore(args.workdir, args.step, mesh, generative, average).params
  if args.guide_workdir:
    generative, params = against(args, experiment, generative, params, mesh)
  begun = time.perf_counter()
  if args.reconstruct:
    images, labels, columns = reconstruct(experiment, generative, mesh, params, args.num)
  else:
    draw = sampling.make_draw(generative, mesh, min(args.batch_size, args.num))
    images = to_uint8(draw(params, labels, args.num, args.seed))
    asked = len(args.labels.split(",")) if args.labels else len(trained)
    columns = log.grid_columns(args.num, asked)
  distributed.first_does(lambda: write(args.out, images, labels, columns))
  seconds = time.perf_counter() - begun
  shown = "" if args.ema is None else f", {average.label}"
  print(f"{describe(experiment)}{shown}, seed {args.seed}: {len(images):,} images in {args.out}, "
        f"{seconds:.1f} s with compilation")  # fmt: skip
  for warning in experiment.warnings().values():
    print(f"warning: {warning}")


def parser() -> runs.Parser:
  own = runs.Parser("sample", description=__doc__)
  own.add_argument("--workdir", type=run_folder, required=True, help="the run's folder")
  own.add_argument("--num", type=int, default=64, help="images (64)")
  own.add_argument(
    "--out", type=user_path, required=True,
    help="a .png (one grid), an .npz (arrays images, labels) or a folder (one PNG an image)",
  )  # fmt: skip
  own.add_argument("--labels", help="classes in turn, e.g. 0,1,2; by default all trained ones")
  own.add_argument("--seed", type=int, default=0, help="image i depends on the seed and i alone")
  own.add_argument("--step", default="latest", help="latest, or the step of a checkpoint")
  own.add_argument("--ema", help=weights.EMA_HELP)
  own.add_argument(
    "--guide_workdir", type=run_folder,
    help="autoguidance: the run of an inferior model (smaller, or trained for less) to move away "
    "from, by --config.guidance.weight",
  )  # fmt: skip
  own.add_argument("--guide_step", default="latest", help="latest, or a step of that run")
  own.add_argument("--batch_size", type=int, default=64, help="images drawn at once (64)")
  own.add_argument("--reconstruct", action="store_true", help="held-out images above their "
                     "reconstructions, for models that encode")  # fmt: skip
  return own


def check(args) -> None:
  """Refuses bad flags before anything is loaded."""
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


def against(args, experiment: Experiment, good: Generative, params: Params, mesh: Mesh):
  """The model and its weights together with those of the inferior run that guides it."""
  where = f"--guide_workdir={args.guide_workdir}"
  if not (args.guide_workdir / "checkpoints").is_dir():
    raise UserError(f"{where}: no run there; give the folder of a training run")
  other = runs.stored_experiment(args.guide_workdir, [])
  mine, others = experiment.to_dict(), other.to_dict()
  if "guidance" in mine and mine["guidance"]["weight"] == 1.0:
    raise UserError(f"{where}: guidance.weight=1 is off; set --config.guidance.weight=2")
  if mine.get("process") != others.get("process"):
    raise UserError(
      f"{where}: its process is {others.get('process')}, this run's {mine.get('process')}; "
      "guidance needs two models of one process"
    )
  spec = stored_spec(args.guide_workdir / "checkpoints", args.guide_step)
  worse = other.create(spec)
  if spec != stored_spec(args.workdir / "checkpoints", args.step):
    raise UserError(f"{where}: its images are {spec}; guidance needs two models of the same images")
  if worse.num_classes and worse.num_classes != good.num_classes:
    raise UserError(
      f"{where}: it takes classes, and this model does not; choose an unconditional run"
    )
  pair = sampling.autoguided(good, worse)
  restored = weights.restore(args.guide_workdir, args.guide_step, mesh, worse, weights.Average())
  return pair, {"good": params, "worse": restored.params}


def check_out(out: Path) -> None:
  """Refuses a place that cannot be written, or a folder with something in it."""
  if out.suffix not in (".png", ".npz", ""):
    raise UserError(f"--out={out}: use a name ending in .png or .npz, or a folder without a dot")
  folder = out.parent if out.suffix else out
  try:
    folder.mkdir(parents=True, exist_ok=True)
    taken = not out.suffix and any(folder.iterdir())
  except OSError as error:
    raise UserError(f"--out={out} cannot be written ({error.strerror}); choose another") from error
  if taken:
    raise UserError(f"--out={out}: the folder is not empty; choose another or empty it")
  if not os.access(folder, os.W_OK) or out.is_dir() == bool(out.suffix):
    raise UserError(f"--out={out} cannot be written; choose another")


def reconstruct(
  experiment: Experiment, generative: Generative, mesh: Mesh, params: Params, num: int
):
  """Held-out images and their reconstructions in turn, their labels, and the grid's columns."""
  call = sampling.make_reconstruct(generative, mesh)
  data = experiment.data
  source = data.load("test" if data.has_split("test") else "train")
  batch = sampling.first_examples(source, num)
  decoded = to_uint8(call(params, batch))
  originals = as_pictures(batch.image, source.spec.num_levels)
  columns = log.grid_columns(len(decoded), 0)
  return sampling.rows_in_turn([originals, decoded], columns), None, columns


def write(out: Path, images: np.ndarray, labels: np.ndarray | None, columns: int) -> None:
  """Writes a grid, arrays, or one picture an image."""
  if out.suffix == ".png":
    log.write_png(out, log.image_grid(images, columns))
  elif out.suffix == ".npz":
    labels = np.full(len(images), -1, np.int32) if labels is None else labels
    with replacing(out) as file:
      np.savez_compressed(file, images=images, labels=labels)
  else:
    for i, image in enumerate(images):
      log.write_png(out / f"{i:06d}.png", image)


def describe(experiment: Experiment) -> str:
  """The model, its sampler with every option, and the guidance, as far as the model has them."""
  parts = experiment.to_dict()
  words = [parts["generative"]["name"]]
  if "sampler" in parts:
    options = {name: value for name, value in parts["sampler"].items() if name != "name"}
    words = [parts["sampler"]["name"], *(f"{name} {value}" for name, value in options.items())]
  if "guidance" in parts:
    words.append(f"guidance {parts['guidance']['weight']:g}")
  return ", ".join(words)


if __name__ == "__main__":
  runs.run_main(main)
