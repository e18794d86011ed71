"""What a training run carries from step to step: parameters, optimizer, averages and counters."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from diffusion_jax.types import Aux, Params

AS_OFFSETS = {"tracked_as": "offsets"}
"""Mark of stored averages that were tracked as differences; older ones have more rounding."""


class TrainState(NamedTuple):
  """One atomic unit; all floats are float32.

  Attributes:
    step: batches consumed so far, the skipped ones included.
    params: trained parameters.
    opt_state: of the optimizer; of several objectives, by their names.
    aux: state that the loss carries, likewise.
    num_skipped: updates skipped for a non-finite loss or gradient.
    num_skipped_in_a_row: the same since the last good update.
    offsets: each average minus the parameters, by its name: "ema", which is sampled and evaluated,
      and those of `EMA.names`. Differences, because a float32 average that moves by less than half
      of its last digit in an update would stand still; see `EMA.update`.
  """

  step: Int[Array, ""]
  params: Params
  opt_state: Any
  aux: Aux
  num_skipped: Int[Array, ""]
  num_skipped_in_a_row: Int[Array, ""]
  offsets: Mapping[str, Params]

  @property
  def ema(self) -> Params:
    """The average that is sampled and evaluated, computed anew at each access."""
    return average(self.params, self.offsets["ema"])


def create_state(
  params: Params,
  aux: Aux,
  opt_state: Any,
  averages: Sequence[str] = (),
) -> TrainState:
  """The state before the first step; all averages start at the initial parameters.

  Args:
    params, aux: the model's.
    opt_state: of the optimizer, see `training.objectives` for several.
    averages: names of those beside the first.
  """
  return TrainState(
    step=jnp.int32(0),
    params=params,
    opt_state=opt_state,
    aux=aux,
    num_skipped=jnp.int32(0),
    num_skipped_in_a_row=jnp.int32(0),
    offsets={name: jax.tree.map(jnp.zeros_like, params) for name in ("ema", *averages)},
  )


@jax.jit
def average(params: Params, offset: Params) -> Params:
  """Return an average from its distance to the parameters, see `TrainState.offsets`."""
  return jax.tree.map(jnp.add, params, offset)


def holds_averages(leaves: Iterable[str]) -> bool:
  """Return whether stored leaves hold averages themselves, as early versions stored them."""
  return any(name.startswith("ema/") for name in leaves)


def with_averages(state: TrainState) -> dict[str, Any]:
  """Return the tree of a state, or of its shapes, as early versions stored it."""
  offsets = dict(state.offsets)
  fields = {name: value for name, value in state._asdict().items() if name != "offsets"}
  return {**fields, "ema": offsets.pop("ema"), "averages": offsets}


def from_averages(stored: Mapping[str, Any]) -> TrainState:
  """Return the state that a tree of `with_averages` holds."""
  fields = dict(stored)
  averages = {"ema": fields.pop("ema"), **fields.pop("averages")}
  offsets = {name: _difference(tree, fields["params"]) for name, tree in averages.items()}
  return TrainState(**fields, offsets=offsets)


@jax.jit
def _difference(tree: Params, other: Params) -> Params:
  return jax.tree.map(jnp.subtract, tree, other)


def count_parameters(params: Params) -> int:
  """Number of trained numbers."""
  return sum(leaf.size for leaf in jax.tree.leaves(params))
