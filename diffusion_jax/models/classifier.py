"""A small convolutional classifier; its last hidden layer is a data set's features."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from diffusion_jax.models.layers import Conv3, Norm
from diffusion_jax.types import ImageSpec, Key, Params

SMALLEST_SIDE = 4
"""Side at which halving of the resolution stops, pixels."""


class ClassifierNetwork(NamedTuple):
  """A classifier as pure functions.

  Attributes:
    init: function from a key to params.
    apply: function (params, x [B H W C] in [-1, 1]) -> (features [B D], logits [B K]), float32.
  """

  init: Callable[[Key], Params]
  apply: Callable[[Params, Array], tuple[Float[Array, "B D"], Float[Array, "B K"]]]


@dataclasses.dataclass(frozen=True)
class Classifier:
  """Config of the network.

  Attributes:
    channels: width at full resolution; it doubles with each halving, up to 256.
    num_features: D, width of the last hidden layer.
  """

  channels: int = 32
  num_features: int = 64

  def create(self, spec: ImageSpec) -> ClassifierNetwork:
    """Build the pure functions for a labelled data set.

    Raises:
      ValueError: the data set has no labels.
    """
    if not spec.num_classes:
      raise ValueError("a classifier needs a labelled data set")
    module = _Module(self, spec.num_classes)
    images = jnp.zeros((1, *spec.shape))

    def apply(params: Params, x: Array) -> Any:
      return module.apply({"params": params}, x)

    return ClassifierNetwork(lambda key: jax.jit(module.init)(key, images)["params"], apply)


class _Module(nn.Module):
  """Convolutions with group normalisation, a hidden layer, and the logits."""

  config: Classifier
  num_classes: int

  @nn.compact
  def __call__(self, x: Float[Array, "B H W C"]) -> tuple[Float[Array, "B D"], Float[Array, "B K"]]:
    width = self.config.channels
    h = self._conv(x, width, 1, "conv_in")
    level = 0
    while min(h.shape[1:3]) > SMALLEST_SIDE:
      level, width = level + 1, min(2 * width, 256)
      h = self._conv(h, width, 2, f"half{level}")
      h = self._conv(h, width, 1, f"conv{level}")
    h = nn.Dense(self.config.num_features, name="hidden")(h.reshape(h.shape[0], -1))
    features = nn.swish(h)
    return features, nn.Dense(self.num_classes, name="classes")(features)

  def _conv(self, x: Array, width: int, stride: int, name: str) -> Array:
    h = Conv3(width, stride, name=name)(x)
    return Norm(swish=True, name=f"{name}_norm")(h)
