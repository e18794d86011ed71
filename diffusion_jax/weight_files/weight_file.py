"""Read a file or folder of weights of any known format, recognised by its content."""

import hashlib
import json
import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffusion_jax.types import UserError
from diffusion_jax.weight_files.flattening import WeightFile, sort_content
from diffusion_jax.weight_files.flax_file import is_msgpack_dict, read_flax
from diffusion_jax.weight_files.inert import Damaged, reading
from diffusion_jax.weight_files.safetensors_file import METADATA, is_safetensors, read_safetensors
from diffusion_jax.weight_files.torch_file import read_torch_pickle, read_torch_zip

INDEX = ".index.json"
"""End of the name of an index of shards."""

MAX_INDEX = 25_000_000
"""Maximum size of an index, bytes."""

USUAL = (
  "diffusion_pytorch_model.safetensors", "model.safetensors", "diffusion_pytorch_model.bin",
  "pytorch_model.bin",
)  # fmt: skip
"""Files of weights in folders of diffusers and transformers; the first one there is read."""

FORMATS = "safetensors, PyTorch (.pt, .bin, .ckpt), pickle of NVlabs or msgpack of flax"

OTHERS = {
  b"version https://git-lfs": "is a pointer of Git LFS and not the file: run git lfs pull",
  b"<": "is a page of HTML or XML and not the file: the download was refused",
  b"\x1f\x8b": "is compressed by gzip: unpack it",
  b"\x89HDF": "is an HDF5 file, which is not read",
}
"""First bytes of other files, and what to say of them."""


READERS: dict[str, Callable[[mmap.mmap], Any]] = {
  "safetensors": read_safetensors, "zip": read_torch_zip, "pickle": read_torch_pickle,
  "msgpack": read_flax,
}  # fmt: skip


def read_weights(path: Path) -> WeightFile:
  """Read a file or folder of weights without executing anything in it.

  Files are memory maps and their arrays are read-only views, so a file must not change while they
  are in use. The storages of a plain pickle and chunked arrays of flax are copied once.

  Args:
    path: a safetensors file, one of `torch.save` (zip or stream), a pickle of NVlabs, a msgpack of
      flax, an index of shards (*.index.json), or a folder of diffusers or transformers.

  Returns:
    Arrays by name with groups and facts, see `WeightFile`.

  Raises:
    UserError: the file is missing, damaged, of another kind, or has anything but weights and plain
      values; one line that names the file and the reason.
  """
  try:
    if path.is_dir():
      return _read_folder(path)
    if path.name.endswith(INDEX):
      return _read_shards(path)
    return _read_file(path)
  except OSError as error:
    raise UserError(f"{path} cannot be read ({error.strerror})") from error


def _read_file(path: Path) -> WeightFile:
  data = _mapped(path)
  kind, what = _kind(data, path)
  with reading(str(path), what):
    root = READERS[kind](data)
    metadata = root.pop(METADATA, {}) if kind == "safetensors" else None
    flat = sort_content(root, len(data))
  facts = flat.facts if metadata is None else metadata
  sha256 = hashlib.sha256(data).hexdigest()
  name = "pytorch" if kind == "zip" else kind
  return WeightFile(path, name, sha256, flat.arrays, flat.groups, facts)


def _kind(data: mmap.mmap, path: Path) -> tuple[str, str]:
  """Return the key of READERS for a file's first bytes, and the kind's name in messages."""
  if is_safetensors(data):
    return "safetensors", "safetensors file"
  for start, what in OTHERS.items():
    if data[: len(start)] == start:
      raise UserError(f"{path} {what}")
  if data[:2] == b"PK":
    return "zip", "PyTorch file"
  if data[:1] == b"\x80":
    return "pickle", "pickle of weights"
  if is_msgpack_dict(data[0]):
    return "msgpack", "msgpack file of flax"
  raise UserError(f"{path} is no file of weights that is known: {FORMATS}")


def _mapped(path: Path) -> mmap.mmap:
  if not path.exists():
    raise UserError(f"{path}: no such file; give a file or folder of weights")
  if not path.is_file():
    raise UserError(f"{path} is no regular file; give a file or folder of weights")
  with path.open("rb") as file:
    if not path.stat().st_size:
      raise UserError(f"{path} is empty; get a copy")
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _read_folder(folder: Path) -> WeightFile:
  """Read the usual file of a folder, or its only one."""
  for name in USUAL:
    if (folder / name).is_file():
      return _read_file(folder / name)
    if (folder / f"{name}{INDEX}").is_file():
      return _read_shards(folder / f"{name}{INDEX}")
  indices = sorted(folder.glob(f"*{INDEX}"))
  found = indices or sorted(folder.glob("*.safetensors"))
  if len(found) != 1:
    names = ", ".join(path.name for path in found[:5])
    what = f"{len(found)} files of weights ({names})" if found else "no file of weights"
    raise UserError(f"{folder} has {what}; give one file")
  return _read_shards(found[0]) if indices else _read_file(found[0])


def _read_shards(index: Path) -> WeightFile:
  """Read all files of an index as one."""
  if not index.is_file():
    raise UserError(f"{index}: no such file; give a file or folder of weights")
  with reading(str(index), "index of shards"):
    if index.stat().st_size > MAX_INDEX:
      raise Damaged(f"it has more than {MAX_INDEX:,} bytes")
    text = index.read_bytes()
    places = _places(json.loads(text))
  shards = {name: _read_file(index.parent / name) for name in sorted(set(places.values()))}
  with reading(str(index), "index of shards"):
    for name, array_names in _by_file(places).items():
      if shards[name].groups or set(shards[name].arrays) != array_names:
        raise Damaged(f"{name} has other arrays than the index gives it")
    arrays = {name: shards[file].arrays[name] for name, file in places.items()}
  sums = {index.name: hashlib.sha256(text).hexdigest()}
  sums |= {name: shard.sha256 for name, shard in shards.items()}
  listed = "".join(f"{sha256}  {name}\n" for name, sha256 in sums.items())
  sha256 = hashlib.sha256(listed.encode()).hexdigest()
  first = next(iter(shards.values()))
  return WeightFile(index.parent, first.format, sha256, arrays, {}, first.facts)


def _by_file(places: dict[str, str]) -> dict[str, set[str]]:
  found: dict[str, set[str]] = {}
  for array, file in places.items():
    found.setdefault(file, set()).add(array)
  return found


def _places(content: Any) -> dict[str, str]:
  """Return array -> file of an index; a file must be in the index's own folder."""
  places = content.get("weight_map") if type(content) is dict else None
  if type(places) is not dict or not places:
    raise Damaged("it has no weight_map")
  for array, file in places.items():
    if type(file) is not str or file in (".", "..", "") or "/" in file or "\0" in file:
      raise Damaged(f"array {array!r:.60} is in {file!r:.60}, which is no name of a file")
  return places
