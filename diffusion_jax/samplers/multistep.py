"""Shared parts of the multistep samplers: the order of each step, and tables of weights."""

import itertools
from collections.abc import Callable

import numpy as np

from diffusion_jax.processes import namespace
from diffusion_jax.samplers.grids import Grid, Values
from diffusion_jax.samplers.linear import half_log_snr_growth

OrderWeights = Callable[[int, slice], Values]


def orders(grid: Grid, order: int) -> list[int]:
  """Return each step's order: rising from 1, and 1 for a step to the data or to alpha = 0.

  An estimate at alpha = 0 cannot be used to extrapolate in the log-SNR, so the rise starts after
  it.
  """
  rising = [min(order, max(1, i + 1 - grid.from_noise)) for i in range(grid.num_steps)]
  return [*rising[:-1], 1] if grid.to_data or grid.to_noise else rising


def runs(orders_of_steps: list[int]) -> list[tuple[int, slice]]:
  """Return pairs (order, consecutive steps of this order)."""
  steps_of_order, begin = [], 0
  for order, group in itertools.groupby(orders_of_steps):
    end = begin + len(list(group))
    steps_of_order.append((order, slice(begin, end)))
    begin = end
  return steps_of_order


def table(orders_of_steps: list[int], num_columns: int, weights: OrderWeights) -> Values:
  """Return the weights [S, K] of each step's estimates, newest first, 0 for unused ones.

  Args:
    orders_of_steps: orders, from `orders`.
    num_columns: number of columns K.
    weights: (order, steps) -> their weights [steps, at most K].
  """
  with np.errstate(invalid="ignore", over="ignore"):  # at infinite log-SNR; see first_order
    blocks = [weights(order, steps) for order, steps in runs(orders_of_steps)]
  xp = namespace(*blocks)
  return xp.concatenate([xp.pad(r, ((0, 0), (0, num_columns - r.shape[1]))) for r in blocks])


def first_order(grid: Grid, steps: slice) -> Values:
  """Return the weight of an estimate that is constant over the step: alpha' (1 - e^(-h)).

  If alpha' is 0 this is 0 times infinity; alpha' - sigma' / sigma alpha is the same number.
  """
  xp, then, sigma_then = namespace(grid.alpha), grid.alpha[1:][steps], grid.sigma[1:][steps]
  growth = half_log_snr_growth(grid)[steps]
  plain = then - sigma_then / grid.sigma[:-1][steps] * grid.alpha[:-1][steps]
  return xp.where(then == 0, plain, -then * xp.expm1(-growth))


def earlier(values: Values, steps: slice, back: int) -> Values:
  """Return the values `back` steps before each of these."""
  return values[steps.start - back : steps.stop - back]


def check_order(name: str, order: int, num_steps: int) -> None:
  """Raise a ValueError if the number of steps is too small to reach the order.

  Raises:
    ValueError: order > steps.
  """
  if order > num_steps:
    raise ValueError(
      f"steps={num_steps} is too few for {name}, whose order is {order}; set "
      f"`sampler.steps={order}` or more"
    )
