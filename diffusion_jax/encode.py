"""Encode a data set once, for latent diffusion.

  python -m diffusion_jax.encode --workdir=runs/autoencoder_digits --out=D

Takes a run of a VAE with spatial latents (model.latent_channels). The encoder's EMA weights encode
every image of every split, and the latents are written to the folder D. Latent diffusion trains on
it by --config.data.name=latents --config.data.path=D; see `diffusion-jax configs latent_digits`.
"""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from diffusion_jax import parallel
from diffusion_jax.core import buckets, progress
from diffusion_jax.core.files import bucket_path, run_folder
from diffusion_jax.core.pixels import from_levels
from diffusion_jax.data import Source, fetch_data, full_pass, latents, load_split, unfinished
from diffusion_jax.generative.latent_diffusion import flatten
from diffusion_jax.inference import outputs, restore
from diffusion_jax.inference.restore import stored_spec
from diffusion_jax.models import VAENetworks
from diffusion_jax.parallel import sharding
from diffusion_jax.parallel.spread import gathering, jit_spread
from diffusion_jax.runs import command_line, flags, signals
from diffusion_jax.runs.experiment import Experiment
from diffusion_jax.runs.stored import trained_experiment
from diffusion_jax.types import ImageSpec, Params, UserError

ASKED = ("workdir", "step", "ema", "batch_size")
"""Flags that determine the latents."""


def main(argv: list[str]) -> None:
  args, overrides = parser().parse(argv)
  check_flags(args)
  command_line.enable_compilation_cache()
  experiment = trained_experiment(args.workdir, overrides)
  command_line.join_job(experiment)
  with outputs.writing(
    args.out, unfinished.check_latents_out, unfinished.latents_lock_file(args.out)
  ):
    encode_all(args, experiment)


def encode_all(args, experiment: Experiment) -> None:
  """Encode every split, continuing an interrupted command."""
  average = restore.parse_average(args.ema)
  spec = stored_spec(restore.folder_of(args.workdir, args.step, average), args.step)
  networks = autoencoder(args.workdir, experiment, spec)
  mesh = sharding.create_mesh(experiment.mesh)
  asked = outputs.asked_for(args, ASKED, experiment, ["data"])
  left = parallel.first_says(lambda: unfinished.left_encoding(args.out, asked))
  generative = experiment.create(spec)
  restored = outputs.restore_for_output(args.workdir, args.step, left, mesh, generative, average)
  made_from = {
    "workdir": buckets.with_addresses(str(args.workdir)),
    "step": restored.step,
    "weights": average.label,
  }
  call = encoder(networks, restored.params, spec, mesh, args.batch_size)
  encoded = describe_latents(
    experiment, networks, restored.params, call, made_from, args.batch_size
  )
  encoded = encoded._replace(asked=asked)
  for source in encoded.sources.values():
    check_images(source, spec)
  done = parallel.first_says(lambda: unfinished.begin_encoding(args.out, encoded))
  first = parallel.is_first()
  scale = latents.write_latents(args.out, encoded, first, done, stopped=signals.StoppedEarly)
  counts = ", ".join(f"{len(source):,} of {name}" for name, source in encoded.sources.items())
  shape = "x".join(map(str, networks.latent_shape))
  print(f"{args.out}: latents {shape} of {counts}; scale {scale:.4g}, of step {restored.step:,}")


def parser() -> command_line.Parser:
  cli = command_line.Parser("encode", description=__doc__)
  cli.add_argument("--workdir", type=run_folder, required=True, help="the autoencoder's run")
  cli.add_argument("--out", type=bucket_path, required=True, help="the folder to make")
  cli.add_argument("--step", default="latest", help="latest, or a checkpoint's step")
  cli.add_argument("--ema", help=restore.EMA_HELP)
  cli.add_argument("--batch_size", type=int, default=256, help="images encoded at once")
  return cli


def check_flags(args) -> None:
  """Check the flags before anything is loaded; raise a UserError for a bad one."""
  if args.batch_size < 1:
    raise UserError(f"--batch_size={args.batch_size}: must be at least 1")
  args.step = flags.parse_step(args.step)


def autoencoder(workdir: Path, experiment: Experiment, spec: ImageSpec) -> VAENetworks:
  """Return the networks of a VAE run with spatial latents.

  Raises:
    UserError: the run is not such a VAE.
  """
  sections = experiment.sections
  is_vae = "decoder" in sections and "autoencoder" not in sections
  if not is_vae or not sections["model"].has_spatial_latents:
    raise UserError(
      f"--workdir={workdir} is no autoencoder with spatial latents; train one, e.g. "
      "--config=autoencoder_digits, or with --config.model.latent_channels=4"
    )
  return sections["model"].create(spec, sections["decoder"].num_outputs(spec.channels))


def check_images(source: Source, spec: ImageSpec) -> None:
  """Raise a UserError if the images differ in shape from the autoencoder's training images."""
  if source.spec.shape != spec.shape or source.spec.num_levels != spec.num_levels:
    raise UserError(
      f"{source.name} has images of {source.spec}, the autoencoder takes {spec}; leave "
      "--config.data out"
    )


def encoder(
  networks: VAENetworks, params: Params, spec: ImageSpec, mesh: Mesh, batch_size: int
) -> Callable[..., Iterator[tuple[np.ndarray, np.ndarray]]]:
  """Return a function (source, first) -> means and log-variances [B h w 2c] and labels [B]."""

  @functools.partial(jit_spread, mesh=mesh)
  def encode(params, image):
    x = from_levels(image, spec.num_levels)
    return jnp.concatenate(gathering(networks.encode)(params, x), -1)

  def call(source: Source, first: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    size = sharding.round_up(min(batch_size, len(source)), mesh)
    with progress.phase(f"encoding {source.name}", len(source), "images", first) as phase:
      for batch in full_pass(source, size, sharding.local_rows(mesh, size), first):
        signals.stop_here()
        sent = sharding.put_batch(batch, mesh)
        real = sharding.fetch(sent.mask) > 0
        yield sharding.fetch(encode(params, sent.image))[real], sharding.fetch(sent.label)[real]
        phase.advance(int(real.sum()))

  return call


def describe_latents(
  experiment: Experiment, networks: VAENetworks, params: Params, call: Callable, made_from: dict,
  batch_size: int,
) -> latents.Encoded:  # fmt: skip
  """Collect everything to be written."""
  data, sections = experiment.data, experiment.to_dict()
  splits = ["train"] + ["test"] * data.has_split("test")
  height, width, channels = networks.latent_shape
  parallel.fetch_at_once(lambda: fetch_data(data))
  return latents.Encoded(
    sources={
      split: parallel.process_0_first(lambda s=split: load_split(data, s)) for split in splits
    },
    encode=call,
    shape=(height, width, 2 * channels),
    weights=flatten(params),
    image_source=sections["data"],
    autoencoder={"autoencoder": sections["model"], "decoder": sections["decoder"]},
    made_from=made_from,
    batch_size=batch_size,
    scale=sections["model"].get("latent_scale"),
  )


if __name__ == "__main__":
  command_line.run_main(main)
