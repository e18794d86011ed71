"""A denoising loss as the wiring sees it: with parameters and a memory of its own, if any."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array, Float, Integer

from diffusion_jax.processes import Process
from diffusion_jax.types import Aux, Key, Metrics, Params


class Place(NamedTuple):
  """Where a batch, or a microbatch of it, stands in the run.

  Attributes:
    key: of the step; the same for all its microbatches, and no other step's.
    index: the global number of each example: step * batch_size + position.
  """

  key: Key
  index: Integer[Array, "B"]  # pyright: ignore[reportIncompatibleMethodOverride]


class Objective(NamedTuple):
  """A loss for one process.

  Attributes:
    init: key -> parameters that the loss learns beside the network's; {} for most.
    memory: what it carries from step to step, as it is before the first; {} for most.
    loss: (network, process, params, own, memory, place, keys, x0, labels, dropout_key) -> (values
      [B], metrics [B] by name, memory); `own` are the parameters of `init`, `place` says which
      examples of which step these are. Without a dropout key the loss is measured, and its memory
      is not kept.
  """

  init: Callable[[Key], Params]
  memory: Aux
  loss: Callable[..., tuple[Float[Array, "B"], Metrics, Aux]]


def plain(
  loss: Callable[..., Float[Array, "B"]], process: Process, num_levels: int | None = None
) -> Objective:
  """Of a loss (network, process, params, keys, x0, labels, dropout_key) -> values [B]."""
  del process, num_levels

  def measured(network, process, params, own, memory, place, *rest: Any):
    del own, place
    return loss(network, process, params, *rest), {}, memory

  return Objective(lambda key: {}, {}, measured)
