"""A residual multilayer perceptron over the whole example: for points and small vectors.

It ignores which pixels are neighbours, so it fits data of any shape and compiles quickly. For
images of more than a few hundred values, use the U-Nets or the transformer.
"""

import dataclasses
import math
from typing import Literal

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from diffusion_jax.core.settings import setting
from diffusion_jax.models.base import Network, NetworkBase, as_network, with_fields
from diffusion_jax.models.embeddings import sinusoidal_embedding
from diffusion_jax.types import Condition, ImageSpec


@dataclasses.dataclass(frozen=True)
class MLP(NetworkBase):
  """A residual multilayer perceptron over the whole example, for points and small vectors.

  Attributes:
    hidden: width of every hidden layer, even and at least 4.
    depth: number of residual blocks.
    dropout: dropout rate before the last layer of each block.
    learned_variance: double the output's channels; the second half are variance logits.
    end_time: give it the condition's second time too, for maps from one time to another.
    dtype: compute type of the dense layers; parameters and the time embedding stay float32.
  """

  hidden: int = 256
  depth: int = 3
  dropout: float = 0.0
  learned_variance: bool = False
  end_time: bool = False
  dtype: Literal["float32", "bfloat16"] = setting("float32", may_change=True)

  def __post_init__(self):
    if self.hidden < 4 or self.hidden % 2:
      raise ValueError(f"hidden={self.hidden} must be even and at least 4")
    if self.depth < 1:
      raise ValueError(f"depth={self.depth} must be at least 1")
    if not 0 <= self.dropout < 1:
      raise ValueError(f"dropout={self.dropout} must be at least 0 and below 1")

  @property
  def takes(self) -> frozenset[str]:
    return frozenset({"label", "fields"} | ({"end_time"} if self.end_time else set()))

  def create(self, spec: ImageSpec, num_labels: int) -> Network:
    """Build the pure functions for data of `spec`.

    Args:
      spec: shape of the data, with the named arrays that it is given.
      num_labels: size of the label embedding (the null class included), 0 for unconditional.
    """
    out_channels = spec.channels * (2 if self.learned_variance else 1)
    return as_network(MLPModule(self, out_channels, num_labels), self, spec, num_labels)


class MLPModule(nn.Module):
  """The network; `MLP` describes its fields."""

  config: MLP
  out_channels: int
  num_labels: int

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B ..."],
    time: Float[Array, "B"],
    given: Condition,
    train: bool,
  ) -> Float[Array, "B ..."]:
    config, dtype = self.config, jnp.dtype(self.config.dtype)
    dense = lambda name, **more: nn.Dense(config.hidden, dtype=dtype, name=name, **more)  # noqa: E731
    condition = nn.swish(nn.Dense(config.hidden, name="time")(
      sinusoidal_embedding(time, config.hidden)))  # fmt: skip
    if config.end_time:
      end = sinusoidal_embedding(jnp.asarray(given.end_time), config.hidden)
      condition = condition + nn.Dense(config.hidden, name="end_time")(end)
    if self.num_labels and given.label is not None:
      condition = condition + nn.Embed(self.num_labels, config.hidden, name="label")(given.label)
    condition = with_fields(condition, given.fields)
    h = dense("in")(x.reshape(x.shape[0], -1))
    for i in range(config.depth):
      branch = nn.swish(dense(f"block{i}_in")(h) + dense(f"block{i}_condition")(condition))
      branch = nn.Dropout(config.dropout, deterministic=not train)(branch)
      h = h + dense(f"block{i}_out")(branch)
    shape = (*x.shape[1:-1], self.out_channels)
    out = nn.Dense(math.prod(shape), kernel_init=nn.initializers.zeros, dtype=dtype, name="out")
    return out(nn.swish(h)).reshape(x.shape[0], *shape).astype(x.dtype)
