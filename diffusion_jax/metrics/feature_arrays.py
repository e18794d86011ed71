"""Checks of features that all metrics share: a 2-D table, enough rows, finite numbers.

Annotations of public functions number the widths (D1, D2) so that unequal widths reach the body,
which raises a clear error.
"""

import numpy as np
from jaxtyping import Float

ROWS_AT_ONCE = 4096
"""Rows converted to float64 at a time, besides the input: 64 MiB at D = 2048."""


def check_features(features: np.ndarray, name: str, min_num: int = 2) -> None:
  """Raise a ValueError unless `features` is a finite [N, D] with N >= min_num.

  Args:
    features: one row per image.
    name: plural name of the features in the error, e.g. "samples" or "reference features".
    min_num: minimum number of rows.
  """
  if features.ndim != 2 or features.shape[1] == 0:
    raise ValueError(f"{name} must be a table [images, features], not of shape {features.shape}")
  if len(features) < min_num:
    raise ValueError(f"{len(features)} {name} are too few: at least {min_num} are needed")
  damaged = int((~np.isfinite(features)).any(axis=1).sum())
  if damaged:
    raise ValueError(f"{damaged} of {len(features)} {name} are not finite (NaN or infinity)")


def check_same_width(features1: np.ndarray, features2: np.ndarray) -> None:
  """Raise a ValueError unless both tables have the same number of features."""
  if features1.shape[1] != features2.shape[1]:
    raise ValueError(
      f"{features1.shape[1]} features per image against {features2.shape[1]}: "
      "both sides must come from the same extractor"
    )


def row_blocks(num_rows: int, rows: int = ROWS_AT_ONCE) -> list[slice]:
  """Return consecutive slices of at most `rows` elements that cover 0..num-1."""
  return [slice(start, min(start + rows, num_rows)) for start in range(0, num_rows, rows)]


def as_float64(features: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N D"]:
  """Return the array in float64, without a copy if it is float64 already."""
  return np.asarray(features, np.float64)
