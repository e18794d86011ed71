"""Sort the content of a file into arrays by name, groups of arrays and plain facts."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.weight_files.inert import (
  Damaged,
  Encoded,
  Module,
  Namespace,
  NumpyArray,
  Refused,
  Tensor,
  as_bytes,
)
from diffusion_jax.weight_files.persistent import children_of, description, tensors_of

MAX_NODES = 1_000_000
"""Maximum number of values; a value in a pickle's memo counts wherever it is used."""

MAX_DEPTH = 60
"""Maximum depth of nested containers; one that contains itself is deeper."""

MAX_KEY, MAX_CHARACTERS = 1000, 100_000_000
"""Maximum length of a key, and of all paths; a key in the memo costs two bytes a use."""

MAX_COPIES = 4
"""Maximum size of all arrays over the file's size; several may share one storage."""

PLAIN = (str, int, float, bool, complex, type(None), bytes)

_ARRAY = object()
"""Fact of an array: none."""


class WeightFile(NamedTuple):
  """Content of a file of weights.

  Attributes:
    path: the file or the folder of shards.
    format: "safetensors", "pytorch" (a zip archive of torch.save), "pickle" (its older stream, or
      NVlabs') or "msgpack".
    sha256: SHA-256 of the file; for shards, that of their sha256sum list (index first).
    arrays: name -> read-only array; bfloat16 is ml_dtypes.bfloat16. A name is the path to the
      array: keys of nested dicts and indices of lists, joined by "/". A key is left as it is, so a
      state dict's dotted names stay dotted: "ema/blocks.0.weight".
    groups: key of the outermost dict -> the arrays below it, named from there; {} of a flat file.
    facts: values that are no arrays, at their places: numbers, texts, None, lists and dicts. A
      Namespace is a dict; a module of NVlabs is one of "class_name", "init_args", "init_kwargs",
      "attributes" and "modules" (dotted name -> class name).
  """

  path: Path
  format: str
  sha256: str
  arrays: Mapping[str, np.ndarray]
  groups: Mapping[str, Mapping[str, np.ndarray]]
  facts: Mapping[str, Any]


class Flat(NamedTuple):
  """Arrays, groups and facts, see `WeightFile`."""

  arrays: dict[str, np.ndarray]
  groups: dict[str, dict[str, np.ndarray]]
  facts: dict[str, Any]


def sort_content(root: Any, num_bytes: int) -> Flat:
  """Sort the content of a file.

  Args:
    root: nested dicts and lists of arrays, plain values and inert objects.
    num_bytes: size of the file.

  Raises:
    Refused: it holds anything else.
    Damaged: an array does not fit its bytes, two have one name, or all are too large.
  """
  if type(root) not in (dict, Module):
    raise Refused("it holds no dict of arrays")
  if type(root) is dict and any(type(key) is not str for key in root):
    raise Refused("its outermost dict has a key that is no text")
  walk = _Walk(num_bytes, Counter())
  facts = walk.visit(root, ())
  groups: dict[str, dict[str, np.ndarray]] = {}
  for path, array in walk.arrays.items():
    if len(path) > 1:
      groups.setdefault(path[0], {})["/".join(path[1:])] = array
  arrays = {"/".join(path): array for path, array in walk.arrays.items()}
  if len(arrays) != len(walk.arrays):
    raise Damaged("two of its arrays have one name when their paths are joined by '/'")
  if not arrays:
    raise Damaged("it holds no arrays")
  return Flat(arrays, groups, {} if facts is _ARRAY else facts)


class _Walk:
  """A depth-first visit of all values.

  Args:
    num_bytes: size of the file.
    counter: numbers of values, bytes and characters of names so far, shared with other visits.
  """

  def __init__(self, num_bytes: int, counter: Counter[str]):
    self.arrays: dict[tuple[str, ...], np.ndarray] = {}
    self._num_bytes, self._counter = num_bytes, counter

  def visit(self, value: Any, path: tuple[str, ...], depth: int = 0) -> Any:
    """Collect the arrays of a value and return its facts, or _ARRAY if it has none."""
    self._enter(depth)
    kind = type(value)
    if isinstance(value, np.ndarray) or kind in (Tensor, NumpyArray):
      return self._add(value, path)
    if kind in (dict, Namespace):
      entries = value if kind is dict else value.state
      return self._visit_entries(entries.items(), path, depth)
    if kind in (list, tuple):
      return self._visit_list(value, path, depth)
    if kind is Module:
      return self._visit_module(value, path, depth)
    if kind is Encoded:
      self._take(len(value))
      return as_bytes(value)
    if kind not in PLAIN:
      raise Refused(f"its entry {'/'.join(path)!r:.60} is neither an array nor a plain value")
    return value

  def _enter(self, depth: int) -> None:
    self._counter["values"] += 1
    if depth > MAX_DEPTH:
      raise Damaged(f"it is nested deeper than {MAX_DEPTH}")
    if self._counter["values"] > MAX_NODES:
      raise Damaged(f"it has more than {MAX_NODES:,} values")

  def _below(self, path: tuple[str, ...], key: Any) -> tuple[str, ...]:
    name = str(key)
    if len(name) > MAX_KEY:
      raise Damaged(f"it has a name of {len(name):,} characters")
    self._counter["characters"] += len(name) + sum(map(len, path))
    if self._counter["characters"] > MAX_CHARACTERS:
      raise Damaged(f"its names have more than {MAX_CHARACTERS:,} characters")
    return (*path, name)

  def _take(self, num_bytes: int) -> None:
    self._counter["bytes"] += num_bytes
    if self._counter["bytes"] > MAX_COPIES * self._num_bytes:
      raise Damaged(
        f"its tensors would take {self._counter['bytes']:,} bytes, the file has {self._num_bytes:,}"
      )

  def _add(self, value: Any, path: tuple[str, ...]) -> Any:
    name = "/".join(path)
    self._take(value.nbytes if isinstance(value, np.ndarray) else value.num_bytes(name))
    if path in self.arrays:
      raise Damaged(f"it has two arrays named {name!r:.60}")
    self.arrays[path] = value if isinstance(value, np.ndarray) else value.array(name)
    return _ARRAY

  def _visit_entries(self, entries: Any, path: tuple[str, ...], depth: int) -> Any:
    facts, seen = {}, set()
    for key, value in entries:
      if str(key) in seen:
        raise Damaged(f"it has two entries named {str(key)!r:.60}")
      seen.add(str(key))
      found = self.visit(value, self._below(path, key), depth + 1)
      if found is not _ARRAY:
        facts[str(key)] = found
    return facts if facts or not seen else _ARRAY

  def _visit_list(self, values: Any, path: tuple[str, ...], depth: int) -> Any:
    """Return a list; with arrays in it, a dict of the other values by their indices."""
    facts = [self.visit(v, self._below(path, i), depth + 1) for i, v in enumerate(values)]
    rest = {str(i): fact for i, fact in enumerate(facts) if fact is not _ARRAY}
    if len(rest) == len(facts):
      return facts
    return rest or _ARRAY

  def _visit_module(self, module: Module, path: tuple[str, ...], depth: int) -> Any:
    """Collect a module's arrays by their dotted names and return its description."""
    classes: dict[str, str] = {}
    self._collect(module, path, depth, "", classes)
    about = {"class_name": module.class_name, **description(module), "modules": classes}
    return _Walk(self._num_bytes, self._counter).visit(about, (), depth + 1)

  def _collect(
    self, module: Module, path: tuple[str, ...], depth: int, prefix: str, classes: dict[str, str]
  ) -> None:
    self._enter(depth)
    for name, value in tensors_of(module):
      if type(value) not in (Tensor, NumpyArray):
        raise Refused(f"its parameter {prefix + name!r:.60} is no tensor")
      self.visit(value, self._below(path, prefix + name), depth + 1)
    for name, child in children_of(module):
      dotted = self._below(path, prefix + name)[-1]
      if dotted in classes:
        raise Damaged(f"it has two modules named {dotted!r:.60}")
      classes[dotted] = child.class_name
      self._collect(child, path, depth + 1, f"{dotted}.", classes)
