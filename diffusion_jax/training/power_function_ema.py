"""Power-function averages: their profiles, and how to combine stored ones into any other.

The average of relative width sigma_rel after t updates weights the parameters of time tau <= t by

  p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1),

whose standard deviation is sigma_rel t (Karras et al. 2024, arXiv 2312.02696, section 3.1).
Computed in float64 on the host. Times may have any common unit.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

MAX_WIDTH = 0.28
"""Just below 12^(-1/2), the width for gamma = 0, which weights all parameters equally."""

ROUNDING = 2.0**-24
"""Relative error of a float32 number."""


class Combination(NamedTuple):
  """The combination of stored averages that approximates another one.

  Attributes:
    weights: weight of each stored average; they sum to 1.
    error: norm of the difference between the resulting and the wanted profile, divided by the norm
      of the wanted profile.
    rounding: error due to the rounding of the stored averages, relative to the parameters.
  """

  weights: Float[np.ndarray, "N"]
  error: float
  rounding: float


def width_of(gamma: float) -> float:
  """Return sigma_rel = (gamma + 1)^(1/2) (gamma + 2)^-1 (gamma + 3)^(-1/2), equation 123."""
  return math.sqrt(gamma + 1) / ((gamma + 2) * math.sqrt(gamma + 3))


def exponent_of(width: float) -> float:
  """Return gamma for a relative width sigma_rel, the inverse of `width_of` for gamma >= 0.

  Args:
    width: relative width, above 0 and at most MAX_WIDTH.
  """
  from scipy.optimize import brentq  # imported here: it takes half a second, rarely needed

  # width_of(gamma) < 1 / gamma, so the root is below 1 / width.
  root: Any = brentq(lambda gamma: width_of(gamma) - width, 0.0, 1 / width, xtol=1e-12)
  return root


def exponent_of_half_life(half_life: float, time: float) -> float:
  """Return gamma of the profile with half of its weight in the last `half_life` of `time`.

  The share older than that is (1 - half_life / time)^(gamma + 1).

  Args:
    half_life: above 0 and at most time / 2, the half-life for gamma = 0.
    time: time of the average, in the same unit.
  """
  return math.log(0.5) / math.log1p(-half_life / time) - 1


def inner_products(
  times: Float[np.ndarray, "N"], gammas: Float[np.ndarray, "N"]
) -> Float[np.ndarray, "N N"]:
  """Return the integral of p q over time for each pair of profiles.

  With t, gamma of the profile that ends earlier and T, gamma' of the one that ends later:
  (gamma + 1) (gamma' + 1) / (gamma + gamma' + 1) (t / T)^gamma' / T, equation 151 of the paper.
  """
  row, column = times[None], times[:, None]
  later = np.where(column <= row, gammas[None], gammas[:, None])
  low, high = np.minimum(row, column), np.maximum(row, column)
  scale = np.outer(gammas + 1, gammas + 1) / (gammas[None] + gammas[:, None] + 1)
  return scale * (low / high) ** later / high


def rounding_of(updates: int, gamma: float, as_offsets: bool) -> float:
  """Return the relative rounding error of a stored float32 average of one parameter.

  Args:
    updates: number of updates so far.
    gamma: exponent of its profile.
    as_offsets: True if the difference to the parameters was stored. Then only the stored number is
      rounded: the effect of 10^6 updates was measured as 1e-7 of a parameter that moves noisily, as
      in training. Otherwise the average stops moving once its distance to the parameter is less
      than 2^-25 / w of it, with w = (gamma + 1) / updates the weight of the newest parameters.
  """
  return ROUNDING if as_offsets else ROUNDING * max(1.0, updates / (2 * (gamma + 1)))


def combine(
  times: Float[np.ndarray, "N"],
  gammas: Float[np.ndarray, "N"],
  time: float,
  gamma: float,
  rounding: float | Float[np.ndarray, "N"] = ROUNDING,
) -> Combination:
  """Return the weights of stored averages that best give the wanted one, by least squares.

  Section 3.2 and appendix C of the paper, with two additions. The weights sum to 1: with few stored
  averages they would otherwise sum to less and shrink every parameter (networks with normalised
  weights, as in the paper, are not affected). And each weight is penalised by the rounding error of
  its stored average, which bounds the weights if stored profiles are nearly equal.

  Args:
    times: times of the stored averages, above 0 and at most `time`.
    gammas: exponents of the stored averages.
    time, gamma: time and exponent of the wanted average.
    rounding: relative error of each stored average, see `rounding_of`.
  """
  cost = np.broadcast_to(np.asarray(rounding, np.float64), (len(times),))
  n, all_gammas = len(times), np.append(gammas, gamma).astype(np.float64)
  products = inner_products(np.append(np.asarray(times) / time, 1.0), all_gammas)
  gram, cross, norm = (
    products[:n, :n],
    products[:n, n],
    products[n, n],
  )
  system = np.ones((n + 1, n + 1))  # the last row and column constrain the sum to 1
  system[:n, :n] = gram + np.diag(cost**2)
  system[n, n] = 0.0
  # Not `solve`: snapshots with only skipped updates between them have the same profile.
  weights = np.linalg.lstsq(system, np.append(cross, 1.0))[0][:n]
  squared = weights @ gram @ weights - 2 * weights @ cross + norm
  error = math.sqrt(max(squared, 0.0) / norm)
  return Combination(weights, error, float(np.linalg.norm(weights * cost)))
