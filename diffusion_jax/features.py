"""Train a small classifier; its features measure samples of a data set.

  python -m diffusion_jax.features --config=ddpm_digits

Trains on the training split. Metrics such as fd_digits use its last hidden layer. For a data set
without labels it standardises fixed random convolutions instead. `evaluate` does either
automatically if needed.
"""

from diffusion_jax.core.files import bucket_path, check_file
from diffusion_jax.data import load_splits
from diffusion_jax.extractors import train_domain
from diffusion_jax.extractors.domain import Recipe, default_features_path
from diffusion_jax.runs import command_line, flags
from diffusion_jax.runs.stored import load_experiment
from diffusion_jax.types import UserError


def main(argv: list[str]) -> None:
  args, overrides = parser().parse(argv)
  for name in ("num_steps", "batch_size"):
    if getattr(args, name) < 1:
      raise UserError(f"--{name}={getattr(args, name)}: must be at least 1")
  flags.check_seed(args.seed)
  if args.out is not None and args.out.suffix != ".npz":
    raise UserError(f"--out={args.out}: must end in .npz, e.g. --out=features.npz")
  if args.out is not None:
    check_file(args.out)
  command_line.enable_compilation_cache()
  data = load_experiment(args.config, overrides).data
  train, test = load_splits(data)
  recipe = Recipe(num_steps=args.num_steps, batch_size=args.batch_size, seed=args.seed)
  path = args.out or default_features_path(train)
  extractor = train_domain(train, test, path, recipe)
  accuracy = extractor.stamp["accuracy"]
  right = "" if accuracy is None else f", right on {accuracy:.1%} of the held-out images"
  print(f"{path}: features of {train.name}{right}, sha256 {extractor.stamp['sha256']}")


def parser() -> command_line.Parser:
  cli = command_line.Parser("features", description=__doc__)
  defaults = Recipe()
  cli.add_argument(
    "--config", required=True, help="config whose data set is learned: a shipped name or a file"
  )
  cli.add_argument("--num_steps", type=int, default=defaults.num_steps, help="number of updates")
  cli.add_argument("--batch_size", type=int, default=defaults.batch_size, help="images per update")
  cli.add_argument("--seed", type=int, default=defaults.seed, help="seed of weights and order")
  cli.add_argument("--out", type=bucket_path, help="the .npz to write; the user's cache by default")
  return cli


if __name__ == "__main__":
  command_line.run_main(main)
