"""Compute reference statistics of a data set for FID and related metrics.

  python -m diffusion_jax.stats --config=ddpm_mnist --out=a.npz

Reads every image of a split once (uint8, without augmentation) through one feature network. The
file contains its own description; `evaluate` refuses it for samples of another kind.
"""

import json

from diffusion_jax.core.files import bucket_path, check_file, path_text
from diffusion_jax.data import load_pictures, load_split
from diffusion_jax.evaluation import external_images, reference
from diffusion_jax.evaluation.context import EXTRACT_BATCH
from diffusion_jax.extractors import make_extract
from diffusion_jax.parallel import sharding
from diffusion_jax.runs import command_line
from diffusion_jax.runs.stored import load_experiment
from diffusion_jax.types import UserError


def main(argv: list[str]) -> None:
  args, overrides = parser().parse(argv)
  if (args.config is None) == (args.images is None):
    raise UserError("give --config=FILE (its data set) or --images=DIR|file.npz, one of the two")
  if overrides and args.config is None:
    raise UserError(f"{overrides[0].flag}: --images takes no config")
  if args.out.suffix != ".npz":
    raise UserError(f"--out={args.out}: must end in .npz, e.g. --out=statistics.npz")
  check_file(args.out)
  command_line.enable_compilation_cache()
  if args.config is None:
    source, split = load_pictures(args.images, "--images"), "given"
  else:
    source, split = (
      load_split(load_experiment(args.config, overrides).data, args.split),
      args.split,
    )
  against = external_images.Against(source=source, split=split)
  chosen = ("none", args.inception) if args.features is None else (args.features, "none")
  extractors, _ = external_images.extractors_by_flags(
    *chosen, args.inception_sha256 == "any", against
  )
  extractor = extractors[0]
  external_images.check_resolution(extractor, source, "--config" if args.config else "--images")
  reference.check_num(source)
  mesh = sharding.create_mesh(sharding.MeshShape())
  result = reference.compute(source, split, extractor, make_extract(extractor, mesh, EXTRACT_BATCH))
  reference.save(args.out, result)
  print(f"{args.out}: {json.dumps(result.stamp)}")


def parser() -> command_line.Parser:
  flags = command_line.Parser("stats", description=__doc__)
  flags.add_argument("--config", help="config whose data set is measured: a shipped name or a file")
  flags.add_argument("--split", choices=["train", "test"], default="train", help="its split")
  flags.add_argument("--images", type=bucket_path, help="a folder of images or an .npz instead")
  flags.add_argument(
    "--features", type=path_text, help="file of the data set's own features, instead of Inception"
  )
  flags.add_argument(
    "--inception", type=path_text, help="file of Inception weights; the user's cache by default"
  )
  flags.add_argument("--inception_sha256", choices=["published", "any"], default="published",
                     help="any: accept other weights; their metric is never named fid")  # fmt: skip
  flags.add_argument("--out", type=bucket_path, required=True, help="the .npz to write")
  return flags


if __name__ == "__main__":
  command_line.run_main(main)
