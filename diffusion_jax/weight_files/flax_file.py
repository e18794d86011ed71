"""Read the msgpack files of flax.serialization, with a parser that makes only plain values.

A file is one msgpack value: nested dicts of texts, whose arrays are extension type 1, a packed
(shape, dtype's name, bytes); type 3 is the same for a scalar and type 2 a complex number. An array
of more than 1 GiB is a dict of its shape and its flat chunks. Formats: msgpack's specification and
`flax/serialization.py`. Arrays are views of the file's content; only chunked ones are joined.
"""

import math
import struct
from typing import Any

import numpy as np

from diffusion_jax.weight_files.inert import DTYPES, Damaged, Refused, as_array, check_shape

MAX_VALUES = 1_000_000
"""Maximum number of values in a file."""

MAX_DEPTH = 60
"""Maximum depth of nested dicts and lists."""

NDARRAY, COMPLEX, SCALAR = 1, 2, 3
"""Extension types of flax."""

CHUNKED = "__msgpack_chunked_array__"

NUMBERS = {
  0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q", 0xD0: ">b",
  0xD1: ">h", 0xD2: ">i", 0xD3: ">q",
}  # fmt: skip
"""First byte -> format of the number that follows."""

CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}

SIZED = {
  0xC4: ("bytes", 1), 0xC5: ("bytes", 2), 0xC6: ("bytes", 4), 0xC7: ("ext", 1), 0xC8: ("ext", 2),
  0xC9: ("ext", 4), 0xD9: ("text", 1), 0xDA: ("text", 2), 0xDB: ("text", 4), 0xDC: ("list", 2),
  0xDD: ("list", 4), 0xDE: ("dict", 2), 0xDF: ("dict", 4),
}  # fmt: skip
"""First byte -> kind of value and number of bytes of its length."""

FIXED_EXT = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}


def is_msgpack_dict(first: int) -> bool:
  """Return True if a file's first byte is that of a msgpack dict with an entry."""
  return 0x81 <= first <= 0x8F or first in (0xDE, 0xDF)


def read_flax(data: Any) -> Any:
  """Return the nested dicts of arrays and plain values in a file.

  Args:
    data: bytes or a memory map.

  Raises:
    Damaged, Refused, ValueError: it is damaged, or has values that flax does not write.
  """
  parser = _Parser(memoryview(data))
  root = parser.value(0)
  parser.check_end()
  return root


class _Parser:
  """A position in msgpack bytes."""

  def __init__(self, view: memoryview, raw: bool = False):
    self._view, self._raw = view, raw
    self._place, self._values = 0, 0

  def check_end(self) -> None:
    if rest := len(self._view) - self._place:
      raise Damaged(f"{rest:,} bytes follow its end")

  def take(self, number: int) -> memoryview:
    if number > len(self._view) - self._place:
      raise Damaged("it is cut short")
    self._place += number
    return self._view[self._place - number : self._place]

  def value(self, depth: int) -> Any:
    """Return the next value."""
    self._values += 1
    if depth > MAX_DEPTH:
      raise Damaged(f"it is nested deeper than {MAX_DEPTH}")
    if self._values > MAX_VALUES:
      raise Damaged(f"it has more than {MAX_VALUES:,} values")
    first = self.take(1)[0]
    if first <= 0x7F:
      return first
    if first >= 0xE0:
      return first - 0x100
    if first in CONSTANTS:
      return CONSTANTS[first]
    if first in NUMBERS:
      return struct.unpack(NUMBERS[first], self.take(struct.calcsize(NUMBERS[first])))[0]
    kind, length = self._kind(first)
    return getattr(self, f"_{kind}")(length, depth)

  def _kind(self, first: int) -> tuple[str, int]:
    """Return the kind of a value and its length."""
    if first <= 0x8F:
      return "dict", first & 0x0F
    if first <= 0x9F:
      return "list", first & 0x0F
    if first <= 0xBF:
      return "text", first & 0x1F
    if first in FIXED_EXT:
      return "ext", FIXED_EXT[first]
    if first not in SIZED:
      raise Damaged(f"byte 0x{first:02x} begins no value")
    kind, width = SIZED[first]
    return kind, int.from_bytes(self.take(width), "big")

  def _text(self, length: int, _: int) -> Any:
    return bytes(self.take(length)).decode()

  def _bytes(self, length: int, _: int) -> Any:
    view = self.take(length)
    return view if self._raw else bytes(view)

  def _list(self, length: int, depth: int) -> Any:
    return [self.value(depth + 1) for _ in range(length)]

  def _dict(self, length: int, depth: int) -> Any:
    found: dict[Any, Any] = {}
    for _ in range(length):
      key = self.value(depth + 1)
      if type(key) not in (str, int):
        raise Refused(f"a dict has a key that is a {type(key).__name__}, not a text")
      if key in found:
        raise Damaged(f"a dict has two entries {key!r:.60}")
      found[key] = self.value(depth + 1)
    return _joined(found) if CHUNKED in found else found

  def _ext(self, length: int, _: int) -> Any:
    code = self.take(1)[0]
    parser = _Parser(self.take(length), raw=True)
    if code not in (NDARRAY, COMPLEX, SCALAR):
      raise Refused(f"it has values of the unknown extension type {code}")
    parts = parser.value(MAX_DEPTH - 2)
    parser.check_end()
    if code == COMPLEX:
      return _complex(parts)
    array = _array(parts)
    return array if code == NDARRAY else array[()].item()


def _complex(parts: Any) -> complex:
  if type(parts) is not list or len(parts) != 2 or any(type(part) is not float for part in parts):
    raise Damaged("a complex number has no two parts")
  return complex(*parts)


def _array(parts: Any) -> np.ndarray:
  if type(parts) is not list or len(parts) != 3 or type(parts[2]) is not memoryview:
    raise Damaged("an array has no shape, type and bytes")
  shape, name, content = parts
  if type(shape) is not list:
    raise Damaged("an array has no valid shape")
  if type(name) is not str or name not in DTYPES:
    raise Refused(f"an array has the type {name!r:.20}")
  return as_array(content, DTYPES[name], tuple(shape), "")


def _joined(chunked: dict[Any, Any]) -> np.ndarray:
  """Return the array of a dict of chunks, joined in new memory."""
  if set(chunked) != {CHUNKED, "shape", "chunks"}:
    raise Damaged("a chunked array has no shape and chunks")
  shape, chunks = (_in_order(chunked[key]) for key in ("shape", "chunks"))
  check_shape(tuple(shape), "")
  if not chunks or any(not isinstance(c, np.ndarray) or c.ndim != 1 for c in chunks):
    raise Damaged("a chunked array has chunks that are no flat arrays")
  if len({chunk.dtype for chunk in chunks}) > 1 or math.prod(shape) != sum(map(len, chunks)):
    raise Damaged("the chunks of an array do not fit its shape")
  return np.concatenate(chunks).reshape(shape)


def _in_order(entries: Any) -> list[Any]:
  """Return the values of a dict with the keys "0", "1", ..., which flax writes for a tuple."""
  if type(entries) is not dict or set(entries) != {str(i) for i in range(len(entries))}:
    raise Damaged("a chunked array has a list without its indices")
  return [entries[str(i)] for i in range(len(entries))]
