"""What every sample metric asks of its features: a table, enough rows, finite numbers.

Where a public function's annotations number the widths (D1, D2), they must agree all the same: the
body refuses others with a sentence that a user understands.
"""

import numpy as np
from jaxtyping import Float

ROWS_AT_ONCE = 4096
"""Rows that are held in float64 beside the features as they came: 64 MiB at D = 2048."""


def check_features(features: np.ndarray, name: str, min_num: int = 2) -> None:
  """Raises ValueError, one sentence, unless `features` is a finite [N, D] with N >= min_num.

  Args:
    features: one row an image.
    name: what the sentence calls them, in the plural: "samples", "reference features".
    min_num: rows that the metric needs.
  """
  if features.ndim != 2 or features.shape[1] == 0:
    raise ValueError(f"{name} must be a table [images, features], not of shape {features.shape}")
  if len(features) < min_num:
    raise ValueError(f"{len(features)} {name} are too few: at least {min_num} are needed")
  damaged = int((~np.isfinite(features)).any(axis=1).sum())
  if damaged:
    raise ValueError(f"{damaged} of {len(features)} {name} are not finite (NaN or infinity)")


def check_same_width(features1: np.ndarray, features2: np.ndarray) -> None:
  """Raises ValueError unless both tables have the same number of features."""
  if features1.shape[1] != features2.shape[1]:
    raise ValueError(
      f"{features1.shape[1]} features an image against {features2.shape[1]}: "
      "both sides must come from the same extractor"
    )


def row_blocks(num: int, rows: int = ROWS_AT_ONCE) -> list[slice]:
  """Consecutive slices of at most `rows` that cover 0..num-1."""
  return [slice(start, min(start + rows, num)) for start in range(0, num, rows)]


def as_float64(features: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N D"]:
  """The same numbers in float64; no copy where they are already."""
  return np.asarray(features, np.float64)
