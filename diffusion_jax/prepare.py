"""Prepares a tensorflow-datasets set: python -m diffusion_jax.prepare mnist --data_dir=DIR

cifar10, cifar100, mnist and fashion_mnist need nothing more; others are built by TensorFlow, once:
pip install 'diffusion_jax[tfds-prepare]'.
"""

from importlib.util import find_spec
from pathlib import Path

from diffusion_jax import runs
from diffusion_jax.data import standard
from diffusion_jax.data.tfds import default_data_dir
from diffusion_jax.types import UserError


def main(argv: list[str]) -> None:
  args, overrides = parser().parse(argv)
  if overrides:
    raise UserError(f"{overrides[0].flag}: prepare takes no config; see --help")
  data_dir = args.data_dir or default_data_dir()
  if args.name in standard.STANDARD:
    print(f"prepared {standard.prepare(args.name, data_dir)}")
  else:
    print(f"prepared {prepare_with_tensorflow(args.name, data_dir)}")


def parser() -> runs.Parser:
  flags = runs.Parser("prepare", description=__doc__)
  flags.add_argument("name", help="a data set: name, name/config or name:version")
  flags.add_argument("--data_dir", type=Path, help="$TFDS_DATA_DIR or ~/tensorflow_datasets")
  return flags


def prepare_with_tensorflow(name: str, data_dir: Path) -> str:
  """Runs the set's official builder, writing array_record files; returns their folder."""
  import tensorflow_datasets as tfds

  if name.partition("/")[0].partition(":")[0] not in tfds.list_builders(
    with_community_datasets=False
  ):
    raise UserError(f"{name}: tensorflow-datasets has no such set; see its catalogue for names")
  if find_spec("tensorflow") is None:
    raise UserError(f"{name} needs TensorFlow: pip install 'diffusion_jax[tfds-prepare]'")
  builder = tfds.builder(name, data_dir=str(data_dir), file_format="array_record")
  builder.download_and_prepare()
  return str(builder.data_dir)


if __name__ == "__main__":
  runs.run_main(main)
