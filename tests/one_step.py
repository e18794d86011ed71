"""The coefficients of a sampler whose step takes one x0 estimate, as four arrays."""

from typing import NamedTuple

import numpy as np


class Coefficients(NamedTuple):
  """x_next = x0 * x0_hat + xt * x_t + noise * z at the times t."""

  t: np.ndarray
  x0: np.ndarray
  xt: np.ndarray
  noise: np.ndarray


def coefficients(sampler, process) -> Coefficients:
  tableau = sampler.tableau(process)
  state = tableau.state
  noise = np.zeros_like(state.xt) if state.noise is None else state.noise
  return Coefficients(tableau.t, state.x0[:, 0], state.xt, noise)
