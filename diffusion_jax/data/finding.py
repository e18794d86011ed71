"""Find the data set that a user's word means: a folder, a file, or a name."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusion_jax.core.files import BUCKET, SCHEME, bucket_path, printable, user_path
from diffusion_jax.core.spelling import closest
from diffusion_jax.data.archives import find_archive
from diffusion_jax.data.tfds import prepared_names
from diffusion_jax.types import UserError

HUGGING_FACE = "hf:"
SAVED_BY_HUGGING_FACE = ("dataset_dict.json", "state.json")
"""Files of a folder that save_to_disk has written, of several splits or of one."""

ALLOWED = (
  "a folder of pictures, a .zip or .tar of one, an .npz, a folder of records, a data set of "
  "tensorflow-datasets such as cifar10, digits, or hf:NAME of Hugging Face"
)


def find_data(text: str) -> dict[str, Any]:
  """Return the config section `data` for --data=TEXT.

  Raises:
    UserError: there is nothing of this name, or nothing that can be read.
  """
  if not text:
    raise UserError(f"`data=` is empty; give {ALLOWED}")
  if text.startswith(HUGGING_FACE):
    name, _, subset = text.removeprefix(HUGGING_FACE).partition(":")
    if not name:
      raise UserError(f"`data={text}` names no data set; write hf:NAME or hf:NAME:SUBSET")
    return {"name": "hugging_face", "dataset": name} | ({"subset": subset} if subset else {})
  if SCHEME.match(text) and not BUCKET.match(text):
    raise UserError(f"`data={text}`: addresses are not supported; download it first")
  path = bucket_path(text).absolute()
  if path.is_dir() or find_archive(path, f"`data={printable(text)}`") is not None:
    return _in_place(_of_folder(path, text), text)
  if path.is_file():
    return _in_place(_of_file(path, text), text)
  if BUCKET.match(text):
    raise UserError(f"`data={text}`: the bucket has no such folder or file; give {ALLOWED}")
  return _of_name(text)


def _in_place(section: dict[str, Any], text: str) -> dict[str, Any]:
  """Return a section with the address of data in a bucket, in place of the copy's path."""
  return {**section, "path": text} if BUCKET.match(text) else section


def _of_folder(path: Path, text: str) -> dict[str, Any]:
  if any((path / name).is_file() for name in SAVED_BY_HUGGING_FACE):
    return {"name": "hugging_face", "path": str(path)}
  if path.is_dir() and (cifar := _cifar_in(path)):
    raise UserError(
      f"`data={text}` holds {cifar}'s own files; prepare it: diffusion-jax prepare {cifar} {text}, "
      f"then `data={cifar}`"
    )
  if path.is_dir() and any(path.glob("*.array_record*")):
    return {"name": "records", "path": str(path)}
  if path.is_dir() and (path / "latents.json").exists():
    raise UserError(f"`data={text}` holds latents; train on them with a config, see latent_digits")
  return {"name": "folder", "path": str(path)}


def _cifar_in(folder: Path) -> str | None:
  """Return cifar10 or cifar100 if the folder, or one in it, has that set's own files."""
  for name, file in (("cifar10", "data_batch_1"), ("cifar10", "data_batch_1.bin")):
    if (folder / file).is_file() or any(folder.glob(f"*/{file}")):
      return name
  has_all = all((folder / file).is_file() for file in ("train", "test", "meta"))
  return "cifar100" if has_all else None


def _of_file(path: Path, text: str) -> dict[str, Any]:
  if path.suffix == ".npz":
    return {"name": "arrays", "path": str(path)}
  if path.suffix == ".py":
    raise UserError(f"`data={text}` is a program; for a config file write `config={text}`")
  raise UserError(f"`data={text}`: a {path.suffix or 'file'} is no data set; give {ALLOWED}")


def _of_name(text: str) -> dict[str, Any]:
  names = {"digits", *prepared_names()}
  if text == "digits":
    return {"name": "digits"}
  if user_path(text).is_symlink():
    raise UserError(
      f"`data={printable(text)}` is a link that leads nowhere; repair it, or give {ALLOWED}"
    )
  base = text.partition("/")[0].partition(":")[0]
  is_name = re.fullmatch(r"[\w./:-]+", text) and not text.startswith((".", "/"))
  if text in names or base in names or (is_name and base in known_to_tfds()):
    return {"name": "tfds", "dataset": text}
  near = closest(text, sorted(names | known_to_tfds())) if is_name else None
  hint = f" Did you mean '{near}'?" if near else ""
  raise UserError(
    f"`data={printable(text)}`: no such folder, file or data set.{hint} Give {ALLOWED}"
  )


def known_to_tfds() -> set[str]:
  """Return the names of all data sets of tensorflow-datasets, prepared or not."""
  import tensorflow_datasets as tfds

  return set(tfds.list_builders(with_community_datasets=False))


def check_known_to_tfds(name: str, others: set[str]) -> None:
  """Raise a UserError with the nearest name if tensorflow-datasets has no such set.

  Args:
    name: "name", "name/config" or "name:version".
    others: further names that may be meant.
  """
  known = known_to_tfds()
  if name.partition("/")[0].partition(":")[0] not in known:
    near = closest(name, known | others)
    hint = f" Did you mean '{near}'?" if near else ""
    raise UserError(
      f"{printable(name)}: tensorflow-datasets has no such set.{hint} Its catalogue has all names"
    )


def name_of_data(text: str, section: Mapping[str, Any]) -> str:
  """Return a short name for messages and folders: the last part of a path, or the set's name."""
  path = section.get("path")
  if path:
    name = Path(path).resolve().name
    for suffix in (".npz", ".zip", ".gz", ".bz2", ".xz", ".tgz", ".tar"):
      name = name.removesuffix(suffix)
  else:
    name = text.removeprefix(HUGGING_FACE)
  return re.sub(r"[^\w.-]+", "_", name).strip("._") or "data"
