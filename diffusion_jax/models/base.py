"""What every denoising network is to the rest of the package: two pure functions."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from diffusion_jax.types import ImageSpec, Key, Params


class Network(NamedTuple):
  """A denoising network as pure functions.

  Attributes:
    init: key -> params.
    apply: (params, x [B H W C], time [B], labels [B] or None, dropout_key or None) -> [B H W C];
      of a network with learned variance [B H W 2C], whose second half are variance logits.
      Without a dropout key the network is in evaluation mode. What a module takes besides goes in
      by name, as a U-Net's augmentation labels [B 9].
  """

  init: Callable[[Key], Params]
  apply: Callable[..., Float[Array, "B H W D"]]


def as_network(module: nn.Module, spec: ImageSpec, num_labels: int) -> Network:
  """The pure functions of a module that is called with (x, time, labels, train).

  Args:
    module: the network.
    spec: shape of the images.
    num_labels: size of the label embedding, 0 for unconditional.
  """

  def init(key: Key) -> Params:
    labels = jnp.zeros(1, jnp.int32) if num_labels else None
    return module.init(key, jnp.zeros((1, *spec.shape)), jnp.zeros(1), labels, False)["params"]

  def apply(params, x, time, labels, dropout_key=None, **more: Any) -> Any:
    rngs = {} if dropout_key is None else {"dropout": dropout_key}
    train = dropout_key is not None
    return module.apply({"params": params}, x, time, labels, train, rngs=rngs, **more)

  return Network(init, apply)
