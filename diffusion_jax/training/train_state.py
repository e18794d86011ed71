"""State of a training run between steps: parameters, optimizer, averages and counters."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from diffusion_jax.types import Aux, Params

AS_OFFSETS = {"tracked_as": "offsets"}
"""Mark of averages stored as differences; older checkpoints have larger rounding errors."""


class TrainState(NamedTuple):
  """The complete training state; all floats are float32.

  Attributes:
    step: number of batches consumed so far, including skipped ones.
    params: trained parameters.
    opt_state: state of the optimizer; for several objectives a dict by their names.
    aux: state of the loss; for several objectives a dict by their names.
    num_skipped: number of updates skipped for a non-finite loss or gradient.
    num_skipped_in_a_row: number of skipped updates since the last good one.
    offsets: each average minus the parameters, by name: "ema", which is sampled and evaluated, and
      those of `EMA.names`. Differences are stored because a float32 average stops moving when an
      update is less than half of its last digit; see `EMA.update`.
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
    """The average that is sampled and evaluated, computed at each access."""
    return average(self.params, self.offsets["ema"])


def create_state(
  params: Params,
  aux: Aux,
  opt_state: Any,
  averages: Sequence[str] = (),
) -> TrainState:
  """Return the state before the first step; all averages start at the initial parameters.

  Args:
    params, aux: initial parameters and loss state of the model.
    opt_state: initial optimizer state; see `training.objectives` for several.
    averages: names of the averages after the first.
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
  """Return an average from its difference to the parameters, see `TrainState.offsets`."""
  return jax.tree.map(jnp.add, params, offset)


def holds_averages(leaves: Iterable[str]) -> bool:
  """Return True if stored leaves contain the averages themselves, as in early versions."""
  return any(name.startswith("ema/") for name in leaves)


def with_averages(state: TrainState) -> dict[str, Any]:
  """Return the tree of a state, or of its shapes, in the format of early versions."""
  offsets = dict(state.offsets)
  fields = {name: value for name, value in state._asdict().items() if name != "offsets"}
  return {**fields, "ema": offsets.pop("ema"), "averages": offsets}


def from_averages(stored: Mapping[str, Any]) -> TrainState:
  """Return the state for a stored tree in the format of `with_averages`."""
  fields = dict(stored)
  averages = {"ema": fields.pop("ema"), **fields.pop("averages")}
  offsets = {name: _difference(tree, fields["params"]) for name, tree in averages.items()}
  return TrainState(**fields, offsets=offsets)


@jax.jit
def _difference(tree: Params, other: Params) -> Params:
  return jax.tree.map(jnp.subtract, tree, other)


def count_parameters(params: Params) -> int:
  """Return the total number of elements of the parameters."""
  return sum(leaf.size for leaf in jax.tree.leaves(params))
