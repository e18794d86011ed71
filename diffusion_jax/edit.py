"""Edit images with a run: fill in a part of them, or interpolate between pairs.

  python -m diffusion_jax.edit --workdir=runs/ddpm_digits --out=grid.png
  --inpaint=left     hide a part of each image and fill it in; rows of the grid: the images, the
                     model's input, its output
  --interpolate=8    number of images between the two of each pair; one row per pair, which starts
                     and ends with the given images

Edits held-out images of the run's data, or those of --images (for a model of named arrays an .npz
with these arrays, one row per image). Weights, sampler and steps are chosen as in `sample`;
interpolation needs a deterministic sampler.
"""

import numpy as np

from diffusion_jax import parallel
from diffusion_jax.core.files import bucket_path, run_folder
from diffusion_jax.core.picture_grid import label_captions
from diffusion_jax.core.pixels import as_pictures, from_levels, to_uint8
from diffusion_jax.data import fetch_data, load_held_out, load_pictures, with_channels
from diffusion_jax.inference import condition_fields, draw, outputs, restore
from diffusion_jax.inference.masks import GREY, SIDES, known_pixels
from diffusion_jax.inference.restore import stored_class_names, stored_classes, stored_spec
from diffusion_jax.parallel import sharding
from diffusion_jax.runs import command_line, flags
from diffusion_jax.runs.experiment import Experiment
from diffusion_jax.runs.resumable import digest
from diffusion_jax.runs.stored import trained_experiment
from diffusion_jax.types import Batch, GenerativeModel, ImageSpec, UserError

MAX_COLUMNS = 16

ASKED = ("workdir", "inpaint", "interpolate", "images", "num", "seed", "step", "ema", "batch_size")
"""Flags that determine the images."""


def main(argv: list[str]) -> None:
  args, overrides = parser().parse(argv)
  command_line.enable_compilation_cache()
  check_flags(args)
  experiment = trained_experiment(args.workdir, overrides)
  command_line.join_job(experiment)
  with outputs.writing(args.out):
    edit(args, experiment)


def edit(args, experiment: Experiment) -> None:
  """Make the picture, continuing an interrupted command."""
  asked = outputs.asked_for(args, ASKED, experiment)
  left = outputs.left_over(args.out, asked)
  average = restore.parse_average(args.ema)
  directory = restore.folder_of(args.workdir, args.step, average)
  spec = stored_spec(directory, args.step)
  known = None if args.inpaint is None else known_pixels(args.inpaint, spec)
  generative = experiment.create(spec)
  given = load_given(args, experiment, generative, spec)
  if args.inpaint and args.images is None and (null := generative.num_classes):
    given = draw.with_trained_labels(given, stored_classes(directory, args.step), null)
  names = stored_class_names(directory, args.step)
  captions = []
  if args.images is None and (null := spec.num_classes):
    captions = label_captions(np.where(given.label < null, given.label, -1), names)
  mesh = sharding.create_mesh(experiment.mesh)
  restored = outputs.restore_for_output(args.workdir, args.step, left, mesh, generative, average)
  facts = {"asked": asked, "step": restored.step, "weights": digest(restored.facts)}
  named = [given.fields[name] for name in sorted(given.fields)]
  facts["given"] = outputs.hash_of(given.image, given.label, known, *named)
  work = blend_pairs if known is None else fill_in
  work(args, generative, mesh, restored.params, given, facts, known, captions)
  print(f"{args.num} {'pairs' if known is None else 'images'} in {args.out}")


def parser() -> command_line.Parser:
  cli = command_line.Parser("edit", description=__doc__)
  cli.add_argument("--workdir", type=run_folder, required=True, help="the run's folder")
  cli.add_argument("--out", type=bucket_path, required=True, help="a .png")
  cli.add_argument("--inpaint", help=f"part to hide: {', '.join(SIDES)}, or a .png "
                     "of the images' size, white where a pixel is to be filled in")  # fmt: skip
  cli.add_argument("--interpolate", type=int, help="number of images between the two of a pair")
  cli.add_argument("--images", type=bucket_path, help="a folder, .zip, .tar or .npz")
  cli.add_argument("--num", type=int, default=8, help="number of images or of pairs")
  cli.add_argument("--batch_size", type=int, default=64, help="images made at once")
  cli.add_argument("--seed", type=int, default=0, help="seed of the noise")
  cli.add_argument("--step", default="latest", help="latest, or a checkpoint's step")
  cli.add_argument("--ema", help=restore.EMA_HELP)
  return cli


def check_flags(args) -> None:
  """Check the flags before anything is loaded; raise a UserError for a bad one."""
  if (args.inpaint is None) == (args.interpolate is None):
    raise UserError("give one of --inpaint=left and --interpolate=8")
  for name in ("num", "interpolate", "batch_size"):
    if getattr(args, name) is not None and getattr(args, name) < 1:
      raise UserError(f"--{name}={getattr(args, name)}: must be at least 1")
  flags.check_seed(args.seed)
  if args.out.suffix != ".png":
    raise UserError(f"--out={args.out}: must be a name ending in .png")
  args.step = flags.parse_step(args.step)


def load_given(args, experiment: Experiment, model: GenerativeModel, spec: ImageSpec) -> Batch:
  """Return the images to edit in [-1, 1] with the model's named arrays, as many as needed."""
  if args.images is None:
    parallel.fetch_at_once(lambda: fetch_data(experiment.data))
    source = load_held_out(experiment.data)
    condition_fields.check_same_fields(model, source, spec)
  else:
    source = with_channels(load_pictures(args.images, "--images", 1, spec), spec.channels)
  shape, wanted = source.spec.shape, args.num * (2 if args.interpolate else 1)
  if shape != spec.shape:
    raise UserError(f"--images={args.images} have shape {shape}, the model needs {spec.shape}")
  if len(source) < wanted:
    raise UserError(f"--num={args.num} needs {wanted} images, there are {len(source)}: lower --num")
  batch, names = draw.first_examples(source, wanted), model.fields
  if args.images is not None and names:
    fields = condition_fields.fields_of_pictures(args.images, "--images", names, spec, wanted)
  else:
    fields = {name: batch.fields[name] for name in names}
  image = np.asarray(from_levels(batch.image, source.spec.num_levels))
  return batch._replace(image=image, fields=fields)


def fill_in(args, model: GenerativeModel, mesh, params, given, facts: dict, known, captions):
  """Write rows of images, of their visible pixels and of the filled-in images.

  A class-conditional model gets the label of a held-out image if it was trained on that class, and
  the null class otherwise. A model of named arrays gets each image's own.
  """
  is_known = np.broadcast_to(known, given.image.shape)
  is_told = model.num_classes and args.images is None
  labels = given.label.astype(np.int32) if is_told else None
  fill, size = draw.make_inpaint(model, mesh), args.batch_size

  def compute(first: int) -> dict[str, np.ndarray]:
    rows = slice(first, first + size)
    batch_labels = None if labels is None else labels[rows]
    fields = {name: array[rows] for name, array in given.fields.items()}
    filled = fill(params, batch_labels, args.seed, given.image[rows], is_known[rows], first, fields)
    return {"images": to_uint8(filled)}

  columns = min(args.num, MAX_COLUMNS)
  images = as_pictures(given.image, None)
  shown = np.where(is_known, images, GREY).astype(np.uint8)
  rows_of = lambda filled: [images, shown, filled]  # noqa: E731
  outputs.write_grid(args.out, facts, args.num, size, compute, rows_of, columns, captions)


def blend_pairs(args, model: GenerativeModel, mesh, params, given, facts: dict, known, captions):
  """Write one row per pair: the first image, the images in between, the second."""
  del known
  firsts, seconds = given.image[0::2], given.image[1::2]
  weights = np.arange(1, args.interpolate + 1) / (args.interpolate + 1)
  way, size = draw.make_interpolate(model, mesh), -(-args.batch_size // args.interpolate)

  def compute(first: int) -> dict[str, np.ndarray]:
    rows = slice(first, first + size)
    ends = tuple({n: a[end::2][rows] for n, a in given.fields.items()} for end in (0, 1))
    between = way(params, firsts[rows], seconds[rows], weights, ends)
    return {"images": to_uint8(between.reshape(-1, *between.shape[2:])).reshape(between.shape)}

  start, end = (as_pictures(image, None)[:, None] for image in (firsts, seconds))

  def rows_of(between: np.ndarray) -> list[np.ndarray]:
    rows = np.concatenate([start, between, end], axis=1)
    return [rows.reshape(-1, *rows.shape[2:])]

  columns = args.interpolate + 2
  between = [""] * args.interpolate
  pairs = zip(captions[0::2], captions[1::2], strict=True)
  texts = [text for start, end in pairs for text in (start, *between, end)]
  outputs.write_grid(args.out, facts, args.num, size, compute, rows_of, columns, texts)


if __name__ == "__main__":
  command_line.run_main(main)
