"""Checks of features that all metrics share: a 2-D table, enough rows, finite numbers.

Annotations of public functions number the widths (D1, D2) so that unequal widths reach the body,
which raises a clear error.
"""

from typing import Any

import numpy as np
from jaxtyping import Float

ROWS_AT_ONCE = 4096
"""Rows converted to float64 at a time, besides the input: 64 MiB at D = 2048."""


def feature_table(features: Any, name: str, min_num: int = 2) -> np.ndarray:
  """Return features as a NumPy array; raise a ValueError unless it is a finite [N, D].

  Args:
    features: one row per image: an array of NumPy or JAX, or nested lists of numbers.
    name: plural name of the features in the error, e.g. "samples" or "reference features".
    min_num: minimum number of rows.
  """
  table = number_array(features, name)
  if table.ndim != 2 or table.shape[1] == 0:
    raise ValueError(f"{name} must be a table [images, features], not of shape {table.shape}")
  if len(table) < min_num:
    raise ValueError(f"{len(table)} {name} are too few: at least {min_num} are needed")
  damaged = int((~np.isfinite(table)).any(axis=1).sum())
  if damaged:
    raise ValueError(f"{damaged} of {len(table)} {name} are not finite (NaN or infinity)")
  return table


def number_array(values: Any, name: str) -> np.ndarray:
  """Return values as a NumPy array of floats, without a copy if they are one.

  Raises:
    ValueError: they are texts, None, complex, or lists of unequal lengths.
  """
  try:
    array = np.asarray(values)
    if array.dtype.kind == "V":  # bfloat16 and other types that NumPy itself does not have
      array = array.astype(np.float32)
  except (TypeError, ValueError, RuntimeError):
    array = np.asarray(None)
  if array.dtype.kind not in "biuf":
    raise ValueError(f"{name} must be an array of real numbers, not {type(values).__name__}")
  return array if array.dtype.kind == "f" else as_float64(array)


def check_integers(**values: Any) -> None:
  """Raise a ValueError that names the first value that is no integer."""
  for name, value in values.items():
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
      raise ValueError(f"{name}={value!r}: must be an integer")


def check_numpy_seed(seed: Any) -> None:
  """Raise a ValueError for a seed that NumPy does not take."""
  check_integers(seed=seed)
  if not 0 <= seed < 2**32:
    raise ValueError(f"seed={seed}: must be between 0 and {2**32 - 1}")


def check_same_width(
  features1: np.ndarray,
  features2: np.ndarray,
  name1: str = "samples",
  name2: str = "reference features",
) -> None:
  """Raise a ValueError unless both tables have the same number of features."""
  if features1.shape[1] != features2.shape[1]:
    raise ValueError(
      f"{features1.shape[1]} features per image ({name1}) against {features2.shape[1]} ({name2}): "
      "both sides must come from the same extractor"
    )


def row_blocks(num_rows: int, rows: int = ROWS_AT_ONCE) -> list[slice]:
  """Return consecutive slices of at most `rows` elements that cover 0..num_rows-1."""
  return [slice(start, min(start + rows, num_rows)) for start in range(0, num_rows, rows)]


def as_float64(features: np.ndarray) -> Float[np.ndarray, "..."]:
  """Return the array in float64, without a copy if it is float64 already."""
  return np.asarray(features, np.float64)
