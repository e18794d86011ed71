"""Prepare data sets, record shards of images, and the weights of feature networks.

  python -m diffusion_jax.prepare mnist --data_dir=DIR
  python -m diffusion_jax.prepare cifar10 cifar-10-python.tar.gz
  python -m diffusion_jax.prepare inception [FILE.pth]
  python -m diffusion_jax.prepare dinov2 FILE.pth
  python -m diffusion_jax.prepare records PICTURES --out=DIR --image_size=64

cifar10, cifar100, mnist and fashion_mnist of tensorflow-datasets need nothing else. Other data sets
are built by TensorFlow, once: pip install 'diffusion_jax[tfds-prepare]'. The weights for FID are
downloaded (or read from the given file), those of dinov2 and clip are read from their files; all
are checked and stored in the user's cache. Records are shards for --config.data.name=records, made
from a folder whose sub-folders are the classes; the same command continues after an interruption.
DIR may be in a bucket, as in --out=gs://bucket/set.
"""

import argparse
import http.client
import queue
import threading
import urllib.request
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from diffusion_jax.core.files import BUCKET, bucket_path, flag_path
from diffusion_jax.data import shards, standard
from diffusion_jax.data.finding import check_known_to_tfds
from diffusion_jax.data.tfds import data_dir_text, default_data_dir, set_path
from diffusion_jax.models.inception import weights as inception_weights
from diffusion_jax.models.vision.vision_weights import RECIPES, prepare_vision
from diffusion_jax.runs import command_line
from diffusion_jax.types import UserError


def main(argv: list[str]) -> None:
  args, overrides = parser().parse(argv)
  if overrides:
    raise UserError(f"{overrides[0].flag}: prepare takes no config; see --help")
  _check(args)
  data_dir = args.data_dir or default_data_dir()
  if args.name == "inception":
    print(f"prepared {prepare_inception(args.source)}")
  elif args.name in RECIPES:
    print(f"prepared {prepare_vision(args.name, args.source)}")
  elif args.name == "records":
    options = {name: value for name, value in _record_options(args).items() if value is not None}
    print(f"prepared {shards.write_shards(shards.Task(args.source, **options))}")
  elif args.name in standard.STANDARD:
    folder = set_path(data_dir, args.name).parent
    print(f"prepared {standard.prepare_standard(args.name, folder, args.source)}")
  else:
    print(f"prepared {prepare_with_tensorflow(args.name, data_dir)}")


def parser() -> command_line.Parser:
  flags = command_line.Parser("prepare", description=__doc__)
  flags.add_argument(
    "name",
    help="a data set (name, name/config or name:version), records, or the weights of a feature "
    "network: inception (FID's), dinov2 or clip",
  )
  flags.add_argument(
    "source", nargs="?", type=bucket_path,
    help="dinov2, clip: their file; inception: its file, if already downloaded; records: the "
    "images' folder or archive; cifar10, cifar100, mnist, fashion_mnist: likewise their own",
  )  # fmt: skip
  flags.add_argument("--data_dir", type=flag_path("--data_dir", data_dir_text),
                     help="default: $TFDS_DATA_DIR or ~/tensorflow_datasets")  # fmt: skip
  only = flags.add_argument_group("records")
  only.add_argument("--out", type=bucket_path, help="folder of the shards")
  only.add_argument("--split", help="train (the default) or test; both can share one folder")
  only.add_argument("--image_size", type=int, help="resize and store as PNG; default: unchanged")
  only.add_argument("--channels", type=int, choices=(1, 3), help="1: grey; 3, the default: colour")
  only.add_argument("--unreadable", choices=("refuse", "skip"), help="images that cannot be "
                    "read: list all and stop (refuse, the default), or skip them")  # fmt: skip
  only.add_argument("--shards", type=int, help="number of shards, at most one per picture and "
                    "10,000; default: of about 256 MiB")  # fmt: skip
  return flags


def _record_options(args: argparse.Namespace) -> dict[str, Any]:
  """Return the options that only `prepare records` takes, named as in shards.Task."""
  return {
    "out": args.out,
    "split": args.split,
    "image_size": args.image_size,
    "channels": args.channels,
    "num_shards": args.shards,
    "unreadable": args.unreadable,
  }


def _check(args: argparse.Namespace) -> None:
  """Raise a UserError for flags without effect or a missing folder."""
  if args.name == "records":
    if args.source is None or args.out is None:
      raise UserError("prepare records needs a folder of pictures and --out=DIR for the shards")
    if args.data_dir is not None:
      raise UserError(f"--data_dir={args.data_dir}: prepare records writes to --out; leave it out")
    return
  take_file = ("inception", *RECIPES, "records", *standard.STANDARD)
  if args.name not in take_file and args.source is not None:
    raise UserError(f"{args.source}: only {', '.join(take_file)} take a file; leave it out")
  given = [name for name, value in _record_options(args).items() if value is not None]
  if given:
    flag = given[0].removeprefix("num_")
    raise UserError(f"--{flag}: only `prepare records` takes it; leave it out")


def prepare_with_tensorflow(name: str, data_dir: str) -> str:
  """Run the data set's official builder, write array_record files and return their folder."""
  import tensorflow_datasets as tfds

  check_known_to_tfds(name, {"inception", "records", *RECIPES})
  if BUCKET.match(data_dir):
    raise UserError(f"--data_dir={data_dir}: prepare {name} in a folder, and copy that there")
  if find_spec("tensorflow") is None:
    raise UserError(f"{name} needs TensorFlow: pip install 'diffusion_jax[tfds-prepare]'")
  builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
  builder.download_and_prepare()
  return str(builder.data_dir)


def prepare_inception(source: Path | None) -> Path:
  """Check and store the Inception weights, downloading them if no file is given.

  Returns:
    Path of the stored weights; a valid stored file is kept.

  Raises:
    UserError: no network, the wrong file, or a cache that cannot be written.
  """
  target = inception_weights.default_weights_path()
  if source is None and _is_stored(target):
    return target
  data, where = _download() if source is None else (_read(source), str(source))
  inception_weights.store(data, where, target)
  return target


def _is_stored(target: Path) -> bool:
  try:
    return inception_weights.load_weights(target).is_published
  except UserError:  # missing or damaged: store it again
    return False


def _read(source: Path) -> bytes:
  try:
    with source.open("rb") as file:
      return file.read(inception_weights.MAX_BYTES)  # enough to detect a wrong file
  except OSError as error:
    raise UserError(f"{source} cannot be read ({error.strerror}); give the .pth file") from error


def _download() -> tuple[bytes, str]:
  """Return the published file and its URL."""
  answer, url = _connect()
  print(f"downloading {url}", flush=True)
  try:
    with answer:
      return answer.read(inception_weights.SIZE + 1), url  # at most this, whatever the server sends
  except (OSError, http.client.HTTPException) as error:
    raise _cannot_download(f"{url}: {error}") from error


def _connect() -> tuple[Any, str]:
  """Return the first URL to respond, within CONNECT_SEC despite a slow resolver or network."""
  answers: queue.Queue[tuple[Any, str]] = queue.Queue()

  def connect(url: str) -> None:
    try:
      answers.put((urllib.request.urlopen(url, timeout=standard.CONNECT_SEC), url))
    except Exception as error:
      answers.put((error, url))

  reason = "no answer"
  for url in inception_weights.URLS:
    threading.Thread(target=connect, args=(url,), daemon=True).start()
    try:
      answer, source = answers.get(timeout=standard.CONNECT_SEC / len(inception_weights.URLS))
    except queue.Empty:
      continue
    if not isinstance(answer, Exception):
      return answer, source
    reason = str(answer)
  raise _cannot_download(f"{inception_weights.URLS[0]}: {reason}")


def _cannot_download(reason: str) -> UserError:
  return UserError(
    f"cannot download {reason}; on a machine with a network fetch {inception_weights.URLS[0]} "
    f"({inception_weights.SIZE:,} bytes, SHA-256 {inception_weights.SHA256}), copy it here and "
    f"start {inception_weights.COMMAND} FILE.pth"
  )


if __name__ == "__main__":
  command_line.run_main(main)
