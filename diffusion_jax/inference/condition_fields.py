"""Named arrays of the images that are drawn or edited, see `Condition.fields`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from diffusion_jax.core import npz
from diffusion_jax.data import Source
from diffusion_jax.types import FieldSpec, GenerativeModel, ImageSpec, UserError


def fields_source(generative: GenerativeModel, data: Any, spec: ImageSpec) -> Source | None:
  """Return the split whose named arrays samples are given; None for a model that takes none.

  Args:
    generative: the model.
    data: the data set, of which the held-out images are preferred.
    spec: spec of the training images.

  Raises:
    UserError: the data cannot be loaded, or have other named arrays than the training images.
  """
  if not generative.fields:
    return None
  source = data.load("test" if data.has_split("test") else "train")
  check_same_fields(generative, source, spec)
  return source


def check_same_fields(generative: GenerativeModel, source: Source, spec: ImageSpec) -> None:
  """Raise a UserError unless a source has the model's named arrays as in training."""
  for name in generative.fields:
    found, wanted = source.spec.fields.get(name), spec.fields[name]
    if found != wanted:
      has = f"has '{name}' as {_words(found)}" if found else f"has no named array '{name}'"
      raise UserError(f"{source.name} {has}; this model was trained with {_words(wanted)}")


def fields_in_turn(
  generative: GenerativeModel, source: Source, first: int, num: int
) -> dict[str, np.ndarray]:
  """Return the named arrays that samples first..first+num-1 are given: the source's, in turn."""
  if not generative.fields:
    return {}
  gathered = source.gather_fields((first + np.arange(num)) % len(source))
  return {name: np.asarray(gathered[name]) for name in generative.fields}


def given_fields(
  given: Any, generative: GenerativeModel, spec: ImageSpec, num: int
) -> dict[str, np.ndarray]:
  """Return the named arrays that a caller gives, checked, with one row per image.

  Args:
    given: arrays by name: rows [M ...], repeated in order over the images, or one array [...] for
      all images.
    generative, spec: the model and the spec of its training images.
    num: number of images.

  Raises:
    UserError: a name that the model does not take, or an array that does not fit its spec.
  """
  if not isinstance(given, Mapping):
    raise UserError(f"fields={given!r}: must be a dict of arrays by name")
  found = {}
  for name, array in given.items():
    _check_name(name, generative)
    rows = _rows(f"fields['{name}']", array, spec.fields[name])
    found[name] = rows[np.arange(num) % len(rows)]
  return found


def check_shapes(
  fields: Mapping[str, Any], generative: GenerativeModel, spec: ImageSpec, num: int
) -> None:
  """Raise a UserError unless the model takes each named array, with one row per example."""
  for name, array in fields.items():
    _check_name(name, generative)
    found, wanted = np.shape(array), (num, *spec.fields[name].shape)
    if found != wanted:
      raise UserError(f"fields['{name}'] has shape {list(found)}; it must be {list(wanted)}")


def _check_name(name: str, generative: GenerativeModel) -> None:
  if name not in generative.fields:
    takes = ", ".join(generative.fields)
    has = f"it takes {takes}" if takes else "it takes none; leave fields out"
    raise UserError(f"fields: '{name}' is no named array of this model; {has}")


def _rows(where: str, array: Any, wanted: FieldSpec) -> np.ndarray:
  """Return an array as rows [M ...] of the type that the spec declares."""
  try:
    values = np.asarray(array)
  except ValueError as error:  # rows of different lengths
    raise UserError(f"{where}: {error}") from error
  values = values[None] if values.shape == tuple(wanted.shape) else values
  if values.shape[1:] != tuple(wanted.shape) or not values.ndim or not len(values):
    shape = ", ".join(map(str, wanted.shape))
    raise UserError(
      f"{where} has shape {list(np.shape(array))}; it must be [N{', ' * bool(shape)}{shape}], or "
      f"[{shape}] for all images"
    )
  return _of_type(where, values, wanted)


def _of_type(where: str, values: np.ndarray, wanted: FieldSpec) -> np.ndarray:
  if values.dtype.kind not in "biuf" or (values.dtype.kind == "f" and wanted.dtype != "float32"):
    raise UserError(f"{where} is {values.dtype}; it must hold {wanted.dtype}")
  if wanted.dtype == "float32":
    with np.errstate(over="ignore"):
      values = values.astype(np.float32)
    bad = int((~np.isfinite(values)).sum())
    if bad:
      raise UserError(f"{where} has {bad} values that are not finite (NaN or infinity)")
    return values
  limits = np.iinfo(wanted.dtype)
  if not limits.min <= values.min() <= values.max() <= limits.max:
    found = f"{values.min()} to {values.max()}"
    raise UserError(f"{where} holds values from {found}; it must hold {wanted.dtype}")
  return values.astype(wanted.dtype)


def fields_of_pictures(
  path: Path, flag: str, names: Sequence[str], spec: ImageSpec, num: int
) -> dict[str, np.ndarray]:
  """Return the first rows of the named arrays in an .npz beside its images.

  Args:
    path: the .npz, or a folder, which has none.
    flag: flag that gave the path, for messages.
    names: names of the arrays.
    spec: spec of the training images.
    num: number of images.

  Raises:
    UserError: an array is missing or does not fit its spec.
  """
  where = f"{flag}={path}"
  there = npz.names(path, where) if path.is_file() else []
  missing = [name for name in names if name not in there]
  if missing:
    raise UserError(
      f"{where}: this model needs the named arrays {', '.join(names)} of each image; "
      f"give an .npz with the arrays images, {', '.join(names)}, or leave {flag} out for held-out "
      "images"
    )
  found = npz.read_npz(path, where, lambda name: name in names)
  rows = {n: _rows(f"{where}: {n}", found[n], spec.fields[n]) for n in names}
  for name, array in rows.items():
    if len(array) < num:
      raise UserError(f"{where}: {name} has {len(array)} rows, and {num} images are edited")
  return {name: array[:num] for name, array in rows.items()}


def mixed_fields(first: Mapping[str, Any], second: Mapping[str, Any], share: Any) -> dict[str, Any]:
  """Return the named arrays between two sets: mixed numbers, or the nearer integers.

  Args:
    first, second: named arrays of the two ends, float or integer.
    share: fraction of the way, 0 = first, 1 = second; may be traced.
  """
  return {name: _mixed(first[name], second[name], share) for name in first}


def _mixed(first: Any, second: Any, share: Any) -> Any:
  if first.dtype.kind == "f":
    return (1.0 - share) * first + share * second
  return jnp.where(share < 0.5, first, second)


def _words(field: FieldSpec) -> str:
  return f"{field.dtype}{list(field.shape)}"
