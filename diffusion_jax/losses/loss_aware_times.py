"""Importance sampling of steps t: a history of each step's terms, and times drawn from it.

p_t is proportional to sqrt(E[L_t^2]), which minimises the variance of L_t / p_t; the mean is over
the last ten values for each t. Until every t has ten values, and in a thousandth of the draws,
times are uniform. Source: Nichol and Dhariwal 2021 (arXiv 2102.09672), section 3.3; the thousandth
is from their code.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer

from diffusion_jax.core import rng
from diffusion_jax.core.rng import Stream
from diffusion_jax.losses.base import BatchPosition

LENGTH = 10
UNIFORM_SHARE = 0.001
UNITS = 2.0**23
"""Probabilities are multiples of 1 / UNITS, as are float32 uniform numbers.

A time is therefore drawn with exactly the probability of its weight.
"""


class Drawn(NamedTuple):
  """Sampled time of each image.

  Attributes:
    number: step t of 1..T.
    probability: probability of drawing it.
  """

  number: Int[Array, "B"]
  probability: Float[Array, "B"]


def empty(num_timesteps: int) -> dict[str, np.ndarray]:
  """Return the history before the first step.

  Returns:
    squares [T 10]: squared terms, each row with the newest last. age [T 10]: 1 + global number of
    the example of each term, 0 for none. probability [T]: distribution of this step's draws.
    stamp []: stamp of this step.
  """
  return {
    "squares": np.zeros((num_timesteps, LENGTH), np.float32),
    "age": np.zeros((num_timesteps, LENGTH), np.uint32),
    "probability": np.full(num_timesteps, 1.0 / num_timesteps, np.float32),
    "stamp": np.zeros((), np.uint32),
  }


def begin(history: Any, position: BatchPosition) -> dict[str, Array]:
  """Return the history with the probabilities of this step.

  They depend only on earlier steps: all microbatches use the same ones, so that the times do not
  depend on how a batch is split.
  """
  history = {name: jnp.asarray(value) for name, value in history.items()}
  stamp = jax.random.bits(rng.stream(position.key, Stream.HISTORY), (), jnp.uint32)
  new = probabilities(history["squares"], history["age"])
  kept = jnp.where(stamp == history["stamp"], history["probability"], new)
  return {**history, "probability": kept, "stamp": stamp}


def probabilities(squares: Float[Array, "T H"], age: Integer[Array, "T H"]) -> Float[Array, "T"]:
  """Return p_t for a history; uniform until every step has its ten values."""
  num_steps = len(squares)
  root = jnp.sqrt(jnp.mean(squares, axis=1))
  mixed = (1.0 - UNIFORM_SHARE) * root / jnp.sum(root) + UNIFORM_SHARE / num_steps
  return jnp.where((age > 0).all() & (jnp.sum(root) > 0), mixed, 1.0 / num_steps)


def draw_times(probability: Float[Array, "T"], uniform: Float[Array, "B"]) -> Drawn:
  """Return one time per uniform number, by inverting the distribution function."""
  cdf = jnp.round(jnp.cumsum(probability) * UNITS) / UNITS
  cdf = jnp.minimum(cdf, 1.0).at[-1].set(1.0)
  row = jnp.searchsorted(cdf, uniform, side="right")
  return Drawn(row + 1, jnp.diff(cdf, prepend=0.0)[row])


def remember(
  history: dict[str, Array],
  position: BatchPosition,
  steps: Int[Array, "B"],
  terms: Float[Array, "B"],
) -> dict[str, Array]:
  """Return the history with new terms: per step, the last ten by the example's global number.

  The global number and not the order of arrival decides, so that the result does not depend on how
  the batch is split between devices and microbatches. Numbers are modulo 2^32, and of two the later
  one is that which follows within 2^31.
  """
  num_steps, age = len(history["age"]), _age(position.index)
  same = steps[:, None] == steps[None, :]
  place, order = _place(age, age[0]), jnp.arange(len(age))
  follows = (place[None, :] == place[:, None]) & (order[None, :] > order[:, None])
  later = jnp.sum(same & ((place[None, :] > place[:, None]) | follows), axis=1)
  row = jnp.where(later < LENGTH, steps - 1, num_steps)  # terms before the last ten are dropped
  put = functools.partial(_scatter, num_steps, row, jnp.maximum(LENGTH - 1 - later, 0))
  ages = jnp.concatenate([history["age"], put(age)], axis=1)
  squares = jnp.concatenate([history["squares"], put(jnp.square(terms))], axis=1)
  order = jnp.argsort(_place(ages, age[0]), axis=1)[:, LENGTH:]
  newest = {"age": ages, "squares": squares}
  return {**history, **{n: jnp.take_along_axis(v, order, axis=1) for n, v in newest.items()}}


def _age(index: Integer[Array, "B"]) -> Integer[Array, "B"]:
  """Return 1 + the example's number, modulo 2^32; never 0, which marks an empty place."""
  age = index.astype(jnp.uint32) + 1
  return jnp.where(age == 0, jnp.uint32(1), age)


def _place(age: Integer[Array, "..."], near: Integer[Array, ""]) -> Integer[Array, "..."]:
  """Return sort keys of ages within 2^31 of `near`; an empty place, of age 0, sorts first."""
  return jnp.where(age == 0, jnp.uint32(0), age - near + jnp.uint32(2**31))


def _scatter(num_steps: int, row: Int[Array, "B"], column: Int[Array, "B"], values: Array) -> Array:
  return jnp.zeros((num_steps, LENGTH), values.dtype).at[row, column].set(values, mode="drop")
