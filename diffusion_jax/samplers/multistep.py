"""What the multistep samplers share: which order each step can have, and tables of its weights."""

import itertools
from collections.abc import Callable

import numpy as np

from diffusion_jax.processes import namespace
from diffusion_jax.samplers.grids import Grid, Values
from diffusion_jax.samplers.linear import half_log_snr_growth

OrderWeights = Callable[[int, slice], Values]


def orders(grid: Grid, order: int) -> list[int]:
  """The order of each step: rising from 1 at the start, 1 for a step to the data or to alpha = 0.

  An estimate at alpha = 0 is no base for extrapolation in the log-SNR, so the rise begins after it.
  """
  rising = [min(order, max(1, i + 1 - grid.from_noise)) for i in range(grid.num_steps)]
  return [*rising[:-1], 1] if grid.to_data or grid.to_noise else rising


def runs(orders_of_steps: list[int]) -> list[tuple[int, slice]]:
  """(order, the steps that have it in a row)."""
  found, begin = [], 0
  for order, group in itertools.groupby(orders_of_steps):
    end = begin + len(list(group))
    found.append((order, slice(begin, end)))
    begin = end
  return found


def table(orders_of_steps: list[int], num_columns: int, weights: OrderWeights) -> Values:
  """[S, K]: the weights of each step on the estimates, the newest first, 0 where it has none.

  Args:
    orders_of_steps: from `orders`.
    num_columns: K.
    weights: (order, steps) -> their weights [steps, at most K].
  """
  with np.errstate(invalid="ignore", over="ignore"):  # at infinite log-SNR; see first_order
    rows = [weights(order, steps) for order, steps in runs(orders_of_steps)]
  xp = namespace(*rows)
  return xp.concatenate([xp.pad(r, ((0, 0), (0, num_columns - r.shape[1]))) for r in rows])


def first_order(grid: Grid, steps: slice) -> Values:
  """Weight of an estimate that stays the same over the step: alpha' (1 - e^(-h)).

  Where alpha' is 0 that is 0 times infinity; alpha' - sigma' / sigma alpha is the same number.
  """
  xp, then, sigma_then = namespace(grid.alpha), grid.alpha[1:][steps], grid.sigma[1:][steps]
  growth = half_log_snr_growth(grid)[steps]
  plain = then - sigma_then / grid.sigma[:-1][steps] * grid.alpha[:-1][steps]
  return xp.where(then == 0, plain, -then * xp.expm1(-growth))


def earlier(values: Values, steps: slice, back: int) -> Values:
  """The values `back` steps before each of these."""
  return values[steps.start - back : steps.stop - back]


def check_order(name: str, order: int, num_steps: int) -> None:
  """Refuses an order that so few steps never reach.

  Raises:
    ValueError: order > steps.
  """
  if order > num_steps:
    raise ValueError(
      f"steps={num_steps} is too few for {name}, whose order is {order}; set "
      f"`sampler.steps={order}` or more"
    )
