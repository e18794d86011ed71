"""Read and write safetensors files with NumPy alone, bfloat16 and float8 included.

The file is the length of a header (uint64), the header in JSON (name -> dtype, shape and first and
last byte; `__metadata__` has texts), and the bytes of the arrays, without gaps. Format:
https://github.com/huggingface/safetensors.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.core import files
from diffusion_jax.types import UserError
from diffusion_jax.weight_files.inert import DTYPES, Damaged, Refused, as_array

MAX_HEADER = 25_000_000
"""Maximum size of a header, bytes; an array needs about 150."""

METADATA = "__metadata__"

NAMES = {
  "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64",
  "I32": "int32", "I16": "int16", "I8": "int8", "U64": "uint64", "U32": "uint32",
  "U16": "uint16", "U8": "uint8", "BOOL": "bool", "C64": "complex64",
  "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
}  # fmt: skip
"""Allowed types by their names in the format."""

CODES = {DTYPES[name]: code for code, name in NAMES.items()}
ALIGNMENT = 8
ORDER = ("U64", "I64", "F64", "C64", "F32", "U32", "I32", "BF16", "F16", "U16", "I16", "F8_E4M3",
         "F8_E5M2", "I8", "U8", "BOOL")  # fmt: skip
"""Types in the order of their arrays in a file: wide ones first, so that all are aligned."""


def is_safetensors(data: Any) -> bool:
  """Return True if a file begins as a safetensors file does."""
  return data[8:9] == b"{" and int.from_bytes(data[:8], "little") < 2**40


def read_safetensors(data: Any) -> dict[str, Any]:
  """Return the arrays as views of the file's content, and its metadata under `__metadata__`.

  Args:
    data: bytes or a memory map.

  Raises:
    Damaged, Refused, ValueError: it is damaged, or arrays share bytes or have an unknown type.
  """
  view = memoryview(data)
  length = int.from_bytes(view[:8], "little")
  if length > min(MAX_HEADER, len(view) - 8):
    raise Damaged(f"its header of {length:,} bytes is cut short or too large")
  header = json.loads(bytes(view[8 : 8 + length]), object_pairs_hook=_without_duplicates)
  content = view[8 + length :]
  metadata = header.pop(METADATA, {})
  if type(metadata) is not dict or any(type(text) is not str for text in metadata.values()):
    raise Damaged("its metadata are no texts")
  found, end = {}, 0
  for name, entry in sorted(header.items(), key=lambda item: _offsets(*item)):
    begin, last = _offsets(name, entry)
    if begin != end:
      raise Damaged(f"array {name!r:.60} begins at byte {begin:,}, not at {end:,}")
    end = last
    found[name] = _array(name, entry, content[begin:end])
  if end != len(content):
    raise Damaged(f"its arrays take {end:,} bytes, the file has {len(content):,} for them")
  arrays = {name: found[name] for name in header}  # the order of the header
  return {**arrays, METADATA: metadata} if metadata else arrays


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  found = dict(pairs)
  if len(found) != len(pairs):
    raise Damaged("its header has two entries of one name")
  return found


def _offsets(name: str, entry: Any) -> tuple[int, int]:
  if type(entry) is not dict or set(entry) != {"dtype", "shape", "data_offsets"}:
    raise Damaged(f"array {name!r:.60} is not described by dtype, shape and data_offsets")
  offsets = entry["data_offsets"]
  is_range = type(offsets) is list and len(offsets) == 2
  if not is_range or any(type(n) is not int for n in offsets) or not 0 <= offsets[0] <= offsets[1]:
    raise Damaged(f"array {name!r:.60} has no valid place in the file")
  return offsets[0], offsets[1]


def _array(name: str, entry: Any, content: memoryview) -> np.ndarray:
  dtype, shape = entry["dtype"], entry["shape"]
  if type(dtype) is not str or dtype not in NAMES:
    raise Refused(f"array {name!r:.60} has the unknown type {dtype!r:.20}")
  if type(shape) is not list:
    raise Damaged(f"array {name!r:.60} has no valid shape")
  return as_array(content, DTYPES[NAMES[dtype]], tuple(shape), name)


def write_safetensors(
  path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
  """Write a safetensors file, which appears whole or not at all.

  The arrays come back bit for bit, and the order of the bytes is that of the library safetensors.

  Args:
    path: path of the file; its folder must exist.
    arrays: name -> array; others than row-major ones are copied, one at a time.
    metadata: texts by name.

  Raises:
    UserError: an array has a type that the format lacks, or a name that it does not allow.
    OSError: the file cannot be written.
  """
  order = sorted(arrays, key=lambda name: (ORDER.index(_code(name, arrays[name])), name))
  header: dict[str, Any] = {METADATA: dict(metadata)} if metadata else {}
  end = 0
  for name in order:
    array = arrays[name]
    begin, end = end, end + array.nbytes
    code = _code(name, array)
    header[name] = {"dtype": code, "shape": list(array.shape), "data_offsets": [begin, end]}
  text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
  text += b" " * (-len(text) % ALIGNMENT)
  with files.atomic_write(path) as file:
    file.write(len(text).to_bytes(8, "little") + text)
    for name in order:
      file.write(_little_endian(arrays[name]).reshape(-1).view(np.uint8).data)


def _code(name: str, array: np.ndarray) -> str:
  """Return the format's name of an array's type."""
  if name == METADATA:
    raise UserError(f"safetensors has no array named {METADATA}; rename it")
  code = CODES.get(array.dtype.newbyteorder("="))
  if code is None:
    raise UserError(f"array {name}: safetensors has no type {array.dtype}; convert it")
  return code


def _little_endian(array: np.ndarray) -> np.ndarray:
  if array.dtype.byteorder == ">" or (array.dtype.byteorder == "=" and sys.byteorder == "big"):
    array = array.astype(array.dtype.newbyteorder("<"))
  return np.ascontiguousarray(array)
