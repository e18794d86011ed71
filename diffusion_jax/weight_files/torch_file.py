"""Read files of `torch.save`, and plain pickles of tensors, without PyTorch.

Two containers hold the same pickled value. Since PyTorch 1.6 it is a zip archive: `data.pkl` and
one member `data/KEY` per storage. Before, it was a stream: three pickles (magic number, protocol,
system), the value, the list of storage keys, then for each key the number of elements (int64) and
the bytes. A plain pickle has each storage as such a stream in a byte string. Format:
`torch/serialization.py` of PyTorch.

Nothing in a pickle is executed, see `pickles.py`. The bytes of storages are not copied: arrays are
views of the file's content, which may be a memory map. Members of an archive that share their bytes
are rejected, and so is one storage in very many tensors.
"""

import io
import mmap
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from diffusion_jax.weight_files.flattening import sort_content
from diffusion_jax.weight_files.inert import Damaged, Refused, Storage, Tensor, reading
from diffusion_jax.weight_files.persistent import PERSISTENT_NAMES
from diffusion_jax.weight_files.pickles import Budget, Machine, Name, Source
from diffusion_jax.weight_files.torch_names import inert_name, storage_dtype

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
"""First two pickles of the stream."""

LOCAL_HEADER = 30
"""Size of the fixed part of a member's header in a zip archive, bytes."""

Content = bytes | mmap.mmap
"""A file: its bytes or its memory map."""


def read_state_dict(data: bytes, where: str) -> dict[str, np.ndarray]:
  """Return the arrays of a flat state dict written by `torch.save`.

  Args:
    data: the whole file, of either container.
    where: name of the file, for messages.

  Returns:
    Name -> array of its own memory, row-major, in the tensor's type and the machine's byte order.

  Raises:
    UserError: the file is truncated or damaged, names other objects than tensors, or is no dict of
      them. Nothing in it has been executed.
  """
  with reading(where, "PyTorch state dict"):
    root = read_torch_zip(data) if data.startswith(b"PK") else read_torch_pickle(data)
    if type(root) is not dict:
      raise Damaged("it holds no dict")
    for name, tensor in root.items():
      if type(name) is not str or type(tensor) is not Tensor:
        raise Damaged(f"its entry {name!r:.60} is no tensor")
    arrays = sort_content(root, len(data)).arrays
    return {n: np.array(a, a.dtype.newbyteorder("="), order="C") for n, a in arrays.items()}


def read_torch_zip(data: Content) -> Any:
  """Return the value in a zip archive of `torch.save`, with its storages filled."""
  with zipfile.ZipFile(_open(data)) as archive:
    members = _Members(archive, data)
    pickles = [name for name in members.places if name.endswith("/data.pkl")]
    if len(pickles) != 1:
      raise Damaged(f"it is a zip archive with {len(pickles)} members data.pkl, not one")
    folder = pickles[0].removesuffix("data.pkl")
    if f"{folder}constants.pkl" in members.places:
      raise Refused("it is a TorchScript program")
    version = bytes(members.read(f"{folder}version"))
    if version.strip() != b"3":
      raise Damaged(f"version {version[:8]!r} of the container is unknown, not 3")
    byteorder = f"{folder}byteorder"
    if byteorder in members.places and bytes(members.read(byteorder)) != b"little":
      raise Damaged("it is not little-endian")
    storages: dict[str, Storage] = {}
    root = _load(io.BytesIO(members.read(f"{folder}data.pkl")), storages, Budget(), to_end=True)
    for key, storage in storages.items():
      storage.fill(members.read(f"{folder}data/{key}"))
  return root


class _Members:
  """Members of an archive, none of which shares its bytes with another.

  Attributes:
    places: name -> first and last byte.
  """

  def __init__(self, archive: zipfile.ZipFile, data: Content):
    self._view = memoryview(data)
    self._infos = {info.filename: info for info in archive.infolist()}
    self._has_sums = any(info.CRC for info in archive.infolist())  # torch.save may leave them out
    infos = sorted(archive.infolist(), key=lambda info: info.header_offset)
    if len(self._infos) != len(infos):
      raise Damaged("two of its members have one name")
    self.places, end = {}, 0
    for info in infos:
      if info.header_offset < end:
        raise Damaged("its members share their bytes")
      begin = self._begin(info.header_offset)
      end = begin + info.compress_size
      self.places[info.filename] = (begin, end)
    if end > len(self._view):
      raise Damaged("its members are larger than the file")

  def _begin(self, header: int) -> int:
    fixed = bytes(self._view[header : header + LOCAL_HEADER])
    if len(fixed) < LOCAL_HEADER or not fixed.startswith(b"PK\3\4"):
      raise Damaged("a member has no header")
    lengths = np.frombuffer(fixed, "<u2", 2, LOCAL_HEADER - 4)
    return header + LOCAL_HEADER + int(lengths.sum(dtype=np.int64))

  def read(self, name: str) -> memoryview:
    """Return the bytes of a member, without a copy."""
    info = self._infos.get(name)
    is_plain = info is not None and info.compress_type == zipfile.ZIP_STORED
    if info is None or not is_plain or info.flag_bits & 1:
      short = name.partition("/")[2]
      raise Damaged(f"its member {short[:40]!r} is missing or compressed")
    begin, end = self.places[name]
    content = self._view[begin:end]
    if len(content) != info.file_size or (self._has_sums and zlib.crc32(content) != info.CRC):
      raise Damaged(f"its member {name[:40]!r} has another CRC than its bytes")
    return content


def read_torch_pickle(data: Content) -> Any:
  """Return the value in a stream of `torch.save` or in a plain pickle."""
  file, budget = _open(data), Budget()
  root = Machine(budget, _plain_finder(budget)).run(file)
  if type(root) is int:
    return _read_stream(root, file, memoryview(data), budget)
  if len(data) > file.tell():
    raise Damaged(f"{len(data) - file.tell():,} bytes follow its end")
  return root


def _read_stream(magic: int, file: Source, view: memoryview, budget: Budget) -> Any:
  """Return the value of a stream whose magic number has been read."""
  if magic != MAGIC:
    raise Damaged("it does not begin with PyTorch's magic number")
  if (protocol := Machine(budget).run(file)) != PROTOCOL:
    raise Damaged(f"protocol {protocol!r:.20} is unknown, not {PROTOCOL}")
  system = Machine(budget).run(file)
  if type(system) is not dict or system.get("little_endian") is not True:
    raise Damaged("it is not little-endian")
  storages: dict[str, Storage] = {}
  root = _load(file, storages, budget)
  _fill(file, view, storages, budget)
  return root


def _fill(file: Source, view: memoryview, storages: Mapping[str, Storage], budget: Budget) -> None:
  """Give each storage its bytes, in the order of the list of keys before them."""
  keys = Machine(budget).run(file)
  if type(keys) is not list or any(type(key) is not str for key in keys):
    raise Damaged("its list of storages is no list of texts")
  if sorted(keys) != sorted(storages):
    raise Damaged("its list of storages is not that of its tensors")
  place = file.tell()
  for key in keys:
    num_elements = int.from_bytes(view[place : place + 8], "little", signed=True)
    if num_elements != storages[key].num_elements:
      raise Damaged(f"a storage has {num_elements} elements, {storages[key].num_elements} expected")
    place += 8
    storages[key].fill(view[place : place + storages[key].num_bytes])
    place += storages[key].num_bytes
  if rest := len(view) - place:
    raise Damaged(f"{rest} bytes follow its end")


def _load(file: Source, storages: dict[str, Storage], budget: Budget, to_end: bool = False) -> Any:
  """Return the next pickle's value and collect its storages, still without their bytes."""

  def storage(pid: Any) -> Storage:
    """Parse ("storage", class, key, device, number of elements[, None])."""
    if type(pid) is not tuple or len(pid) not in (5, 6):
      raise Damaged("a storage is of an unknown kind")
    kind, storage_type, key, _, num_elements, *view = pid
    if kind != "storage" or any(view):
      raise Damaged("a storage is of an unknown kind")
    dtype = storage_dtype(storage_type)
    if type(key) is not str or type(num_elements) is not int or not 0 <= num_elements < 2**60:
      raise Damaged("a storage has no valid key or length")
    found = storages.setdefault(key, Storage(dtype, num_elements))
    if (found.dtype, found.num_elements) != (dtype, num_elements):
      raise Damaged("a storage is described in two ways")
    return found

  root = Machine(budget, _find_all, storage).run(file)
  if to_end and (rest := len(file.read())):
    raise Damaged(f"{rest} bytes follow its end")
  return root


def _find_all(module: str, name: str) -> Any:
  return PERSISTENT_NAMES.get((module, name)) or inert_name(module, name)


def _plain_finder(budget: Budget) -> Any:
  """Return the lookup of names in a plain pickle, where a storage is a stream in a text."""

  def load_from_bytes(content: Any) -> Storage:
    if type(content) is not bytes:
      raise Refused("it loads a storage in an unknown way")
    file = io.BytesIO(content)
    magic = Machine(budget).run(file)
    found = _read_stream(magic, file, memoryview(content), budget)
    if type(found) is not Storage:
      raise Refused("it loads something else than a storage")
    return found

  def look_up(module: str, name: str) -> Any:
    if (module, name) == ("torch.storage", "_load_from_bytes"):
      return Name("load", load_from_bytes)
    return _find_all(module, name)

  return look_up


def _open(data: Content) -> Any:
  """Return an open file of the content, which is not copied."""
  if isinstance(data, bytes):
    return io.BytesIO(data)
  data.seek(0)
  return data
