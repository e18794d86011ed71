"""Power-function averages: their shape, and how any of them is put together from stored ones.

The average of length sigma_rel after t updates weighs the parameters of time tau <= t by

  p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1),

whose standard deviation is sigma_rel t (Karras et al. 2024, arXiv 2312.02696, section 3.1). In
float64 on the host. Times may have any unit, as long as all have the same.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

MAX_WIDTH = 0.28
"""Just below 12^(-1/2), the width of gamma = 0, which weighs all parameters alike."""

ROUNDING = 2.0**-24
"""Relative error of a float32 number."""


class Combination(NamedTuple):
  """How stored averages make up another one.

  Attributes:
    weights: of each stored average; their sum is 1.
    error: norm of the difference between the profile that they give and the one that is wanted,
      divided by the norm of the latter.
    rounding: error that the rounding of the stored averages adds, divided by the parameters.
  """

  weights: Float[np.ndarray, "N"]
  error: float
  rounding: float


def width_of(gamma: float) -> float:
  """sigma_rel = (gamma + 1)^(1/2) (gamma + 2)^-1 (gamma + 3)^(-1/2): equation 123 of the paper."""
  return math.sqrt(gamma + 1) / ((gamma + 2) * math.sqrt(gamma + 3))


def exponent_of(width: float) -> float:
  """gamma of a relative width sigma_rel: the inverse of `width_of`, which falls from gamma = 0 on.

  Args:
    width: above 0 and at most MAX_WIDTH.
  """
  from scipy.optimize import brentq  # half a second that most starts do without

  # width_of(gamma) < 1 / gamma, so the root lies below 1 / width.
  root: Any = brentq(lambda gamma: width_of(gamma) - width, 0.0, 1 / width, xtol=1e-12)
  return root


def exponent_of_half_life(half_life: float, time: float) -> float:
  """gamma of the profile of which the last `half_life` before `time` has one half.

  The share that is older is (1 - half_life / time)^(gamma + 1).

  Args:
    half_life: above 0 and at most time / 2, the half-life of gamma = 0.
    time: of the average, in the same unit.
  """
  return math.log(0.5) / math.log1p(-half_life / time) - 1


def inner_products(
  times: Float[np.ndarray, "N"], gammas: Float[np.ndarray, "N"]
) -> Float[np.ndarray, "N N"]:
  """The integral of p q over time for each pair of profiles.

  With t, gamma of the profile that ends earlier and T, gamma' of the one that ends later:
  (gamma + 1) (gamma' + 1) / (gamma + gamma' + 1) (t / T)^gamma' / T: equation 151 of the paper.
  """
  row, column = times[None], times[:, None]
  later = np.where(column <= row, gammas[None], gammas[:, None])
  low, high = np.minimum(row, column), np.maximum(row, column)
  scale = np.outer(gammas + 1, gammas + 1) / (gammas[None] + gammas[:, None] + 1)
  return scale * (low / high) ** later / high


def rounding_of(updates: int, gamma: float, as_offsets: bool) -> float:
  """Return the relative rounding error of a stored float32 average of one parameter.

  Args:
    updates: made until then.
    gamma: exponent of its profile.
    as_offsets: whether it was tracked as its difference to the parameters. Then only the stored
      number is rounded: what 10^6 updates add was measured at 1e-7 of a parameter that moves
      noisily, as in training. If not, the average stands still once it is nearer to the parameter
      than 2^-25 / w of it, with w = (gamma + 1) / updates the weight of the newest.
  """
  return ROUNDING if as_offsets else ROUNDING * max(1.0, updates / (2 * (gamma + 1)))


def combine(
  times: Float[np.ndarray, "N"],
  gammas: Float[np.ndarray, "N"],
  time: float,
  gamma: float,
  rounding: float | Float[np.ndarray, "N"] = ROUNDING,
) -> Combination:
  """The weights with which stored averages give the one wanted: least squares of the profiles.

  Section 3.2 and appendix C of the paper, with two additions. The weights sum to 1: with few stored
  averages they would otherwise fall short of it and shrink every parameter (networks whose layers
  normalise their weights, as the paper's, do not notice). And each weight costs what it multiplies,
  the rounding of a stored average: this bounds the weights where stored profiles are nearly alike.

  Args:
    times: of the stored averages, above 0 and at most `time`.
    gammas: their exponents.
    time, gamma: of the average that is wanted.
    rounding: relative error of each stored average, see `rounding_of`.
  """
  cost = np.broadcast_to(np.asarray(rounding, np.float64), (len(times),))
  num, all_gammas = len(times), np.append(gammas, gamma).astype(np.float64)
  products = inner_products(np.append(np.asarray(times) / time, 1.0), all_gammas)
  gram, cross, norm = products[:num, :num], products[:num, num], products[num, num]
  system = np.ones((num + 1, num + 1))  # the last row and column are the sum's
  system[:num, :num] = gram + np.diag(cost**2)
  system[num, num] = 0.0
  # Not `solve`: two snapshots between which every update was skipped are the same profile.
  weights = np.linalg.lstsq(system, np.append(cross, 1.0))[0][:num]
  squared = weights @ gram @ weights - 2 * weights @ cross + norm
  error = math.sqrt(max(squared, 0.0) / norm)
  return Combination(weights, error, float(np.linalg.norm(weights * cost)))
