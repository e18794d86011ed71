"""Read a PyTorch state dict without PyTorch and without executing anything in a pickle.

Two containers hold the same pickled dict. Since PyTorch 1.6 it is a zip archive: `data.pkl` and
one member `data/KEY` per storage. Before, it was a stream: three pickles (magic number, protocol,
system), the dict, the list of storage keys, then for each key the number of elements (int64) and
the bytes. Format: `torch/serialization.py` of PyTorch.

A pickle can name any function and have it called. Here it can name only those that a dict of
tensors needs, and each is replaced by an inert object: plain tuples that are checked and turned
into arrays after unpickling. Anything that would fill the memory or the stack is rejected first: a
memo index far beyond the file's length, more opcodes or deeper tuples than any dict of tensors has,
members of an archive that share their bytes, one storage in very many tensors.
"""

import io
import math
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.types import UserError

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
"""First two pickles of the stream."""

STORAGE_TYPES = {
  "DoubleStorage": "<f8", "FloatStorage": "<f4", "HalfStorage": "<f2", "LongStorage": "<i8",
  "IntStorage": "<i4", "ShortStorage": "<i2", "CharStorage": "|i1", "ByteStorage": "|u1",
  "BoolStorage": "|b1",
}  # fmt: skip
"""NumPy's type of each allowed storage class."""


OPCODES = {
  "PROTO", "STOP", "MARK", "GLOBAL", "REDUCE", "BUILD", "BINPERSID", "BINPUT", "LONG_BINPUT",
  "BINGET", "LONG_BINGET", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1",
  "BINUNICODE", "SHORT_BINSTRING", "BINSTRING", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2",
  "TUPLE3", "EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_DICT", "SETITEM", "SETITEMS",
}  # fmt: skip
"""Opcodes of a dict of tensors in pickle protocol 2, written by Python 2 or 3."""


MAX_OPCODES = 200_000
"""Maximum opcodes per pickle; a tensor needs about 40, and each makes at most 500 bytes."""

MAX_DEPTH = 50
"""Maximum depth of nested tuples: comparing or hashing them recurses in C without a limit."""

MAX_DIMS = 64
"""Maximum number of axes of a tensor: NumPy's limit."""

MAX_COPIES = 4
"""Maximum size of all tensors over the file's size; several may share one storage."""


class _StorageType(NamedTuple):
  """Placeholder of a storage class. A tuple has no attributes to set and cannot be called."""

  dtype: str


class _Storage(NamedTuple):
  dtype: str
  key: str
  num_elements: int

  @property
  def num_bytes(self) -> int:
    return self.num_elements * np.dtype(self.dtype).itemsize


class _Tensor(NamedTuple):
  """Position of a tensor in its storage, in elements."""

  storage: _Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]


class _Damaged(Exception):
  """Raised for a damaged file; the text describes the fault."""


def read_state_dict(data: bytes, where: str) -> dict[str, np.ndarray]:
  """Return the arrays of a state dict written by `torch.save`.

  Args:
    data: the whole file, of either container.
    where: name of the file, for messages.

  Returns:
    Name -> array of its own memory, row-major, in the tensor's type and the machine's byte order.

  Raises:
    UserError: the file is truncated or damaged, names other objects than tensors, or is no dict of
      them. Nothing in it has been executed.
  """
  try:
    return _read_zip(data) if data.startswith(b"PK") else _read_stream(data)
  except Exception as error:  # an unpickler may raise anything on damaged bytes
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    raise UserError(f"{where} is no readable PyTorch state dict: {reason}; get a copy") from error


def _read_zip(data: bytes) -> dict[str, np.ndarray]:
  with zipfile.ZipFile(io.BytesIO(data)) as archive:
    stored = [info for info in archive.infolist() if info.compress_type == zipfile.ZIP_STORED]
    if sum(info.file_size for info in stored) > len(data):  # other members are not read at all
      raise _Damaged("its members are larger than the file")
    pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    if len(pickles) != 1:
      raise _Damaged(f"it is a zip archive with {len(pickles)} members data.pkl, not one")
    read = _member_reader(archive, pickles[0].removesuffix("data.pkl"))
    if read("version").strip() != b"3":
      raise _Damaged(f"version {read('version')[:8]!r} of the container is unknown, not 3")
    if read("byteorder", b"little") != b"little":
      raise _Damaged("it is not little-endian")
    tensors, storages = _unpickle_all(io.BytesIO(read("data.pkl")))
    contents = {key: read(f"data/{key}") for key in storages}
  _check_total(tensors, len(data))
  for key, storage in storages.items():
    _check_length(storage, len(contents[key]))
  return {name: _array(tensor, contents) for name, tensor in tensors.items()}


def _member_reader(archive: zipfile.ZipFile, folder: str) -> Callable[..., bytes]:
  members = {info.filename: info for info in archive.infolist()}

  def read(name: str, default: bytes | None = None) -> bytes:
    info = members.get(folder + name)
    if info is None and default is not None:
      return default
    if info is None or info.compress_type != zipfile.ZIP_STORED:
      raise _Damaged(f"its member {name[:40]!r} is missing or compressed")
    return archive.read(info)

  return read


def _read_stream(data: bytes) -> dict[str, np.ndarray]:
  file = io.BytesIO(data)
  if _plain(file) != MAGIC:
    raise _Damaged("it does not begin with PyTorch's magic number")
  if (protocol := _plain(file)) != PROTOCOL:
    raise _Damaged(f"protocol {protocol!r} is unknown, not {PROTOCOL}")
  if _plain(file)["little_endian"] is not True:
    raise _Damaged("it is not little-endian")
  tensors, storages = _unpickle_all(file)
  contents = _stream_contents(file, storages)
  _check_total(tensors, len(data))
  return {name: _array(tensor, contents) for name, tensor in tensors.items()}


def _stream_contents(file: io.BytesIO, storages: Mapping[str, _Storage]) -> dict[str, bytes]:
  """Return the storages' bytes, in the order of the list of keys before them."""
  keys, contents = _plain(file), {}
  if not isinstance(keys, list) or sorted(keys) != sorted(storages):
    raise _Damaged("its list of storages is not that of its tensors")
  for key in keys:
    num_elements = int.from_bytes(file.read(8), "little", signed=True)
    if num_elements != storages[key].num_elements:
      raise _Damaged(
        f"a storage has {num_elements} elements, {storages[key].num_elements} expected"
      )
    contents[key] = file.read(storages[key].num_bytes)
    _check_length(storages[key], len(contents[key]))
  if rest := len(file.read()):
    raise _Damaged(f"{rest} bytes follow its end")
  return contents


def _check_total(tensors: Mapping[str, _Tensor], num_bytes: int) -> None:
  total = sum(math.prod(t.shape) * np.dtype(t.storage.dtype).itemsize for t in tensors.values())
  if total > MAX_COPIES * num_bytes:
    raise _Damaged(f"its tensors would take {total:,} bytes, the file has {num_bytes:,}")


def _check_length(storage: _Storage, num_bytes: int) -> None:
  if num_bytes != storage.num_bytes:
    raise _Damaged(f"a storage has {num_bytes} bytes, {storage.num_bytes} expected")


def _array(tensor: _Tensor, contents: Mapping[str, bytes]) -> np.ndarray:
  """Return the tensor as an array of its own."""
  flat = np.frombuffer(contents[tensor.storage.key], tensor.storage.dtype)[tensor.offset :]
  strides = [step * flat.itemsize for step in tensor.strides]
  view = np.lib.stride_tricks.as_strided(flat, tensor.shape, strides, writeable=False)
  return np.array(view, view.dtype.newbyteorder("="), order="C")


def _plain(file: io.BytesIO) -> Any:
  """Unpickle numbers, texts, lists and dicts, without any names."""
  return _load(file, {}, {})


def _unpickle_all(file: io.BytesIO) -> tuple[dict[str, _Tensor], dict[str, _Storage]]:
  """Return the dict's tensors by name and their storages by key, both checked."""
  storages: dict[str, _Storage] = {}
  content = _load(file, storages, _GLOBALS)
  if not isinstance(content, dict):
    raise _Damaged("it holds no dict")
  tensors = dict(dict.items(content))  # dict's own method: the object's attributes may be anything
  for name, tensor in tensors.items():
    if not isinstance(name, str) or not isinstance(tensor, _Tensor):
      raise _Damaged(f"its entry {name!r:.60} is no tensor")
    _check_bounds(name, tensor)
  return tensors, storages


def _check_bounds(name: str, tensor: _Tensor) -> None:
  """Check that a tensor is inside its storage, so that a small file cannot fill the memory."""
  numbers = [tensor.offset, *tensor.shape, *tensor.strides]
  is_shape = len(tensor.shape) == len(tensor.strides) <= MAX_DIMS
  if not is_shape or any(type(n) is not int or not 0 <= n < 2**63 for n in numbers):
    raise _Damaged(f"tensor {name!r:.60} has no valid shape")
  size = math.prod(tensor.shape)
  steps = zip(tensor.shape, tensor.strides, strict=True)
  last = tensor.offset + sum((n - 1) * step for n, step in steps) if size else tensor.offset - 1
  if size > tensor.storage.num_elements or last >= tensor.storage.num_elements:
    raise _Damaged(f"tensor {name!r:.60} reaches beyond its storage")


class _Rebuild:
  """Replacement of torch._utils._rebuild_tensor_v2: keeps its arguments for later checks."""

  __slots__ = ()

  def __call__(self, storage, offset, shape, strides, requires_grad, hooks, metadata=None) -> Any:
    del requires_grad, hooks, metadata
    if type(storage) is not _Storage or type(shape) is not tuple or type(strides) is not tuple:
      raise _Damaged("a tensor has no storage or no shape")
    return _Tensor(storage, offset, shape, strides)


_GLOBALS: Mapping[tuple[str, str], Any] = {
  ("collections", "OrderedDict"): OrderedDict,
  ("torch._utils", "_rebuild_tensor_v2"): _Rebuild(),
  **{("torch", name): _StorageType(dtype) for name, dtype in STORAGE_TYPES.items()},
}
"""All names that a pickle may use, with their inert replacements."""


def _load(
  file: io.BytesIO, storages: dict[str, _Storage], allowed: Mapping[tuple[str, str], Any]
) -> Any:
  """Return the next pickle of the file, if it consists of OPCODES only."""
  begin, end, depths = file.tell(), file.getbuffer().nbytes, _Depths()
  for i, (opcode, value, _) in enumerate(pickletools.genops(file)):
    if i >= MAX_OPCODES:
      raise _Damaged(f"it has more than {MAX_OPCODES:,} opcodes")
    if opcode.name not in OPCODES:
      raise _Damaged(f"it uses pickle's {opcode.name}, which is refused")
    if opcode.name == "LONG_BINPUT" and int(value or 0) > min(end, MAX_OPCODES):
      raise _Damaged("its memo is larger than the file")
    depths.follow(opcode, value)
  file.seek(begin)
  return _Unpickler(file, storages, allowed).load()


class _Depths:
  """Track the nesting depth of each object on an unpickler's stack, without creating it."""

  IN_PLACE = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "BUILD")

  def __init__(self):
    self._stack: list[int | None] = []  # None is a mark
    self._memo: dict[int, int | None] = {}

  def follow(self, opcode: pickletools.OpcodeInfo, value: Any) -> None:
    """Process the next opcode.

    Raises:
      _Damaged: the nesting is too deep.
      LookupError: the opcode uses an object that does not exist.
    """
    if opcode.name == "MARK":
      self._stack.append(None)
    elif opcode.name in ("BINPUT", "LONG_BINPUT"):
      self._memo[value] = self._stack[-1]
    elif opcode.name in ("BINGET", "LONG_BINGET"):
      self._stack.append(self._memo[value])
    else:
      container, inside = self._take(opcode)
      depth = max([1 + n for n in inside] + [container])
      if depth > MAX_DEPTH:
        raise _Damaged(f"it is nested deeper than {MAX_DEPTH}")
      self._stack += [depth] * len(opcode.stack_after)

  def _take(self, opcode: pickletools.OpcodeInfo) -> tuple[int, list[int]]:
    """Return the depths of an opcode's operands: of a container that it fills, and of the rest."""
    inside, below = [], len(opcode.stack_before)
    if pickletools.markobject in opcode.stack_before:
      below = opcode.stack_before.index(pickletools.markobject)
      while (depth := self._stack.pop()) is not None:
        inside.append(depth)
    inside += [self._stack.pop() or 0 for _ in range(below)]
    container = inside.pop() if opcode.name in self.IN_PLACE else 0
    return container, inside


class _Unpickler(pickle.Unpickler):
  """Resolve only the names in `allowed`, and collect the storages."""

  def __init__(
    self,
    file: io.BytesIO,
    storages: dict[str, _Storage],
    allowed: Mapping[tuple[str, str], Any],
  ):
    super().__init__(file, encoding="utf-8")
    self._storages, self._allowed = storages, allowed

  def find_class(self, module: str, name: str) -> Any:
    if (module, name) not in self._allowed:
      raise _Damaged(f"it asks for {f'{module}.{name}'!r:.80}, which is refused")
    return self._allowed[module, name]

  def persistent_load(self, pid: Any) -> _Storage:
    """Parse ("storage", class, key, device, number of elements[, None])."""
    kind, storage_type, key, _, num_elements, *view = pid
    if kind != "storage" or type(storage_type) is not _StorageType or any(view):
      raise _Damaged("a storage is of an unknown kind")
    if type(key) is not str or type(num_elements) is not int or num_elements < 0:
      raise _Damaged("a storage has no valid key or length")
    storage = _Storage(storage_type.dtype, key, num_elements)
    if self._storages.setdefault(key, storage) != storage:
      raise _Damaged("a storage is described in two ways")
    return storage
