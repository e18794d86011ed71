"""Inert objects that stand for a file's tensors and classes, and the errors of bad files."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np

from diffusion_jax.core.printing import printable
from diffusion_jax.types import UserError

MAX_DIMS = 64
"""Maximum number of axes of a tensor: NumPy's limit."""

DTYPES = {
  name: np.dtype(kind)
  for name, kind in {
    "float64": "<f8", "float32": "<f4", "float16": "<f2", "bfloat16": ml_dtypes.bfloat16,
    "int64": "<i8", "int32": "<i4", "int16": "<i2", "int8": "|i1", "uint64": "<u8",
    "uint32": "<u4", "uint16": "<u2", "uint8": "|u1", "bool": "|b1", "complex64": "<c8",
    "complex128": "<c16", "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8_e5m2": ml_dtypes.float8_e5m2,
  }.items()
}  # fmt: skip
"""Allowed types of arrays by their usual names; all little-endian."""


class Damaged(Exception):
  """Raised for a damaged file; the text describes the fault."""


class Refused(Exception):
  """Raised for a file with other content than weights; the text names it."""


@contextlib.contextmanager
def reading(where: str, kind: str) -> Iterator[None]:
  """Turn any error of reading a file into one line.

  Args:
    where: name of the file, for messages.
    kind: kind of the file, for messages: "safetensors file".

  Raises:
    UserError: anything was raised in the block.
  """
  try:
    yield
  except UserError:
    raise
  except Refused as error:
    raise UserError(
      f"{where} is no readable {kind}: {_line(error)}; nothing in it was executed, use a file of "
      "weights alone, e.g. safetensors"
    ) from error
  except Exception as error:  # a reader may raise anything on damaged bytes
    raise UserError(f"{where} is no readable {kind}: {_line(error)}; get a copy") from error


def _line(error: Exception) -> str:
  return printable(" ".join(str(error).split()))[:200] or type(error).__name__


def as_array(content: Any, dtype: np.dtype, shape: tuple[int, ...], name: str) -> np.ndarray:
  """Return a row-major array that shares the memory of its bytes.

  Raises:
    Damaged: the bytes are not those of this shape and type.
  """
  check_shape(shape, name)
  if math.prod(shape) * dtype.itemsize != len(content):
    raise Damaged(f"array {name!r:.60} has {len(content):,} bytes, which its shape does not fit")
  array = np.frombuffer(content, dtype).reshape(shape)
  check_bools(array, name)
  return array


def check_shape(shape: Any, name: str) -> None:
  """Raise an error for a shape that no array has."""
  is_shape = isinstance(shape, tuple) and len(shape) <= MAX_DIMS
  if not is_shape or any(type(n) is not int or not 0 <= n < 2**63 for n in shape):
    raise Damaged(f"tensor {name!r:.60} has no valid shape")


def check_bools(array: np.ndarray, name: str) -> None:
  """Raise an error for booleans other than 0 and 1, of which NumPy makes anything."""
  if array.dtype == np.bool_ and array.size and array.view(np.uint8).max() > 1:
    raise Damaged(f"array {name!r:.60} has truth values other than 0 and 1")


class Storage:
  """Memory of tensors: a type and a length, and later the bytes."""

  __slots__ = ("content", "dtype", "num_elements")

  def __init__(self, dtype: np.dtype, num_elements: int):
    self.dtype, self.num_elements = dtype, num_elements
    self.content: Any = None

  @property
  def num_bytes(self) -> int:
    return self.num_elements * self.dtype.itemsize

  def fill(self, content: Any) -> None:
    """Set the bytes.

    Raises:
      Damaged: there are too few or too many.
    """
    if len(content) != self.num_bytes:
      raise Damaged(f"a storage has {len(content)} bytes, {self.num_bytes} expected")
    self.content = content


class Tensor:
  """Position of a tensor in its storage, in elements."""

  __slots__ = ("dtype", "offset", "shape", "storage", "strides")

  def __init__(self, storage: Storage, dtype: np.dtype, offset: Any, shape: Any, strides: Any):
    self.storage, self.dtype = storage, dtype
    self.offset, self.shape, self.strides = offset, shape, strides

  def num_bytes(self, name: str) -> int:
    """Return the size of the array before it is made.

    Raises:
      Damaged: it reaches beyond its storage, so that a small file could fill the memory.
    """
    for numbers in (self.shape, self.strides, (self.offset,)):
      check_shape(numbers, name)
    if len(self.shape) != len(self.strides):
      raise Damaged(f"tensor {name!r:.60} has no valid shape")
    size = math.prod(self.shape)
    steps = zip(self.shape, self.strides, strict=True)
    last = self.offset + sum((n - 1) * step for n, step in steps) if size else self.offset - 1
    if max(size, last + 1) > self.storage.num_bytes // self.dtype.itemsize:
      raise Damaged(f"tensor {name!r:.60} reaches beyond its storage")
    return size * self.dtype.itemsize

  def array(self, name: str) -> np.ndarray:
    """Return a read-only view of the storage.

    Raises:
      Damaged: as for `num_bytes`.
    """
    if not self.num_bytes(name):
      return np.zeros(self.shape, self.dtype)
    content = memoryview(self.storage.content)[self.offset * self.dtype.itemsize :]
    flat = np.frombuffer(content, self.dtype, len(content) // self.dtype.itemsize)
    check_bools(flat, name)
    strides = [step * flat.itemsize for step in self.strides]
    return np.lib.stride_tricks.as_strided(flat, self.shape, strides, writeable=False)


class Encoded:
  """Bytes that protocol 2 writes as text. They are made on demand, since calls share a text."""

  __slots__ = ("text",)

  def __init__(self, text: str):
    self.text = text

  def __len__(self) -> int:
    return len(self.text)


def as_bytes(content: Any) -> bytes:
  """Return bytes of either form.

  Raises:
    Damaged: it is something else.
  """
  if type(content) is Encoded:
    return content.text.encode("latin-1")
  if type(content) is not bytes:
    raise Damaged("it has something else than bytes")
  return content


class NumpyArray:
  """Placeholder of a NumPy array; BUILD gives it its content."""

  __slots__ = ("state",)

  def __init__(self):
    self.state: Any = None

  def set_state(self, state: Any) -> None:
    """Keep (version, shape, type, is column-major, bytes)."""
    self.state = state

  def num_bytes(self, name: str) -> int:
    """Return the size of the array before it is made."""
    if type(self.state) is not tuple or len(self.state) != 5:
      raise Damaged(f"array {name!r:.60} has no content")
    return len(self.state[-1])

  def array(self, name: str) -> np.ndarray:
    """Return the array.

    Raises:
      Damaged: it has no valid content.
    """
    _, shape, dtype, is_column_major, content = self.state
    check_shape(shape, name)
    if type(dtype) is not NumpyType:
      raise Damaged(f"array {name!r:.60} has no valid type")
    if is_column_major:
      return as_array(as_bytes(content), dtype.dtype, shape[::-1], name).T
    return as_array(as_bytes(content), dtype.dtype, shape, name)


class NumpyType:
  """Placeholder of a NumPy type, little-endian numbers only."""

  __slots__ = ("dtype",)

  def __init__(self, dtype: np.dtype):
    self.dtype = dtype

  def set_state(self, state: Any) -> None:
    """Check (version, byte order, ...)."""
    if type(state) is not tuple or len(state) < 2 or state[1] not in ("<", "|", "="):
      raise Refused("it has NumPy arrays that are not little-endian")


class Instance:
  """Placeholder of an object of a class that is never imported: its name and its attributes.

  Attributes:
    class_name: name of the class.
    state: attributes by name.
    facts: what else is known of it, plain values.
  """

  __slots__ = ("class_name", "facts", "state")

  def __init__(self, class_name: str):
    self.class_name = class_name
    self.state: dict[Any, Any] = {}
    self.facts: dict[str, Any] = {}

  def set_state(self, state: Any) -> None:
    """Keep the attributes."""
    if type(state) is not dict:
      raise Damaged(f"the attributes of a {self.class_name:.60} are no dict")
    self.state = state


class Namespace(Instance):
  """Placeholder of argparse.Namespace: arguments of a program."""

  __slots__ = ()


class Module(Instance):
  """Placeholder of a torch.nn module or of a persistent object of NVlabs."""

  __slots__ = ()
