"""A denoising loss as the wiring sees it: with parameters and a memory of its own, if any."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array, Float

from diffusion_jax.processes import Process
from diffusion_jax.types import Aux, Key, Metrics, Params


class Objective(NamedTuple):
  """A loss for one process.

  Attributes:
    init: key -> parameters that the loss learns beside the network's; {} for most.
    memory: what it carries from step to step, as it is before the first; {} for most.
    loss: (network, process, params, own, memory, keys, x0, labels, dropout_key) -> (values [B],
      metrics [B] by name, memory); `own` are the parameters of `init`. Without a dropout key the
      loss is measured, and its memory is not kept.
  """

  init: Callable[[Key], Params]
  memory: Aux
  loss: Callable[..., tuple[Float[Array, "B"], Metrics, Aux]]


def plain(loss: Callable[..., Float[Array, "B"]], process: Process) -> Objective:
  """Of a loss (network, process, params, keys, x0, labels, dropout_key) -> values [B]."""
  del process

  def measured(network, process, params, own, memory, *rest: Any):
    del own
    return loss(network, process, params, *rest), {}, memory

  return Objective(lambda key: {}, {}, measured)
