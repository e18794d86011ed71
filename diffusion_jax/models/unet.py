"""The U-Net of DDPM.

Source: Ho et al. 2020 (arXiv 2006.11239), appendix B. With its defaults and three channels at
32x32 it has 35,746,307 parameters, as published.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from diffusion_jax.models.layers import (
  Attention,
  Conv3,
  Norm,
  Remat,
  ResBlock,
  Upsample,
  kernel_init,
  rematerialized,
  sinusoidal_embedding,
  zero_init,
)
from diffusion_jax.types import ImageSpec, Key, Params


class Network(NamedTuple):
  """A denoising network as pure functions.

  Attributes:
    init: key -> params.
    apply: (params, x [B H W C], time [B], labels [B] or None, dropout_key or None) -> [B H W C].
      Without a dropout key the network is in evaluation mode.
  """

  init: Callable[[Key], Params]
  apply: Callable[..., Float[Array, "B H W C"]]


@dataclasses.dataclass(frozen=True)
class UNet:
  """Config of the U-Net.

  Attributes:
    channels: width at full resolution.
    multipliers: width of each level over `channels`; every level halves the resolution.
    num_blocks: residual blocks a level going down; one more going up.
    attention_resolutions: pixels a side at which every block is followed by attention. The
      middle always has it.
    dropout: rate inside the residual blocks.
    dtype: compute type; parameters, statistics and softmax stay float32.
    remat: what the backward pass recomputes to save memory: `none`; `block`, all of a block but its
      input; `products`, all but the outputs of convolutions and matrix products.
  """

  channels: int = 128
  multipliers: tuple[int, ...] = (1, 2, 2, 2)
  num_blocks: int = 2
  attention_resolutions: tuple[int, ...] = (16,)
  dropout: float = 0.1
  dtype: Literal["float32", "bfloat16"] = "float32"
  remat: Remat = "none"

  def __post_init__(self):
    if self.channels < 4 or self.channels % 2:
      raise ValueError(f"channels={self.channels} must be even and at least 4")
    if not self.multipliers or min(self.multipliers) < 1 or self.num_blocks < 1:
      raise ValueError(
        f"multipliers={self.multipliers}, num_blocks={self.num_blocks}: all must be at least 1"
      )
    if not 0 <= self.dropout < 1:
      raise ValueError(f"dropout={self.dropout} must be at least 0 and below 1")

  def create(self, spec: ImageSpec, num_labels: int) -> Network:
    """Builds the pure functions for images of `spec`.

    Args:
      spec: shape of the images.
      num_labels: size of the label embedding (the null class included), 0 for unconditional.

    Raises:
      ValueError: the image's sides cannot be halved once a level.
    """
    factor = 2 ** (len(self.multipliers) - 1)
    if spec.height % factor or spec.width % factor:
      raise ValueError(
        f"images of {spec.height}x{spec.width} cannot be halved {len(self.multipliers) - 1} times; "
        f"use sides divisible by {factor} or fewer multipliers"
      )
    module = UNetModule(self, spec.channels, num_labels)
    return Network(_make_init(module, spec, num_labels), _make_apply(module))


def _make_init(module: nn.Module, spec: ImageSpec, num_labels: int):
  def init(key: Key) -> Params:
    labels = jnp.zeros(1, jnp.int32) if num_labels else None
    return module.init(key, jnp.zeros((1, *spec.shape)), jnp.zeros(1), labels, False)["params"]

  return init


def _make_apply(module: nn.Module):
  def apply(params, x, time, labels, dropout_key=None) -> Any:
    rngs = {} if dropout_key is None else {"dropout": dropout_key}
    return module.apply({"params": params}, x, time, labels, dropout_key is not None, rngs=rngs)

  return apply


class UNetModule(nn.Module):
  """The network itself; see `UNet` for its fields."""

  config: UNet
  out_channels: int
  num_labels: int

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B H W C"],
    time: Float[Array, "B"],
    labels: Int[Array, "B"] | None,
    train: bool,
  ) -> Float[Array, "B H W C"]:
    embedding = self._embed(time, labels)
    h = Conv3(self.config.channels, dtype=self._dtype, name="conv_in")(x)
    h, skips = self._down(h, embedding, train)
    h = self._middle(h, embedding, train)
    h = self._up(h, skips, embedding, train)
    h = nn.swish(Norm(self._dtype, name="norm_out")(h))
    return Conv3(self.out_channels, kernel=zero_init, dtype=self._dtype, name="conv_out")(h)

  @property
  def _dtype(self):
    return jnp.dtype(self.config.dtype)

  def _embed(self, time, labels):
    width = 4 * self.config.channels
    h = sinusoidal_embedding(time, self.config.channels)
    h = nn.swish(nn.Dense(width, kernel_init=kernel_init, name="time1")(h))
    h = nn.Dense(width, kernel_init=kernel_init, name="time2")(h)
    if self.num_labels and labels is not None:
      h = h + nn.Embed(self.num_labels, width, name="label")(labels)
    return h

  def _block(self, h, embedding, train, width, name):
    """A residual block, followed by attention at the resolutions that have it."""
    kind = rematerialized(ResBlock, self.config.remat, (3,))
    h = kind(width, self.config.dropout, self._dtype, name=name)(h, embedding, train)
    if h.shape[1] in self.config.attention_resolutions:
      h = self._attention(name + "_attention")(h)
    return h

  def _attention(self, name):
    kind = rematerialized(Attention, self.config.remat)
    return kind(self._dtype, name=name)

  def _down(self, h, embedding, train):
    config, skips = self.config, [h]
    for level, multiplier in enumerate(config.multipliers):
      for i in range(config.num_blocks):
        width = config.channels * multiplier
        h = self._block(h, embedding, train, width, f"down{level}_block{i}")
        skips.append(h)
      if level + 1 < len(config.multipliers):
        h = Conv3(h.shape[-1], stride=2, dtype=self._dtype, name=f"down{level}_half")(h)
        skips.append(h)
    return h, skips

  def _middle(self, h, embedding, train):
    block = rematerialized(ResBlock, self.config.remat, (3,))
    width, rate = h.shape[-1], self.config.dropout
    h = block(width, rate, self._dtype, name="middle_block0")(h, embedding, train)
    h = self._attention("middle_attention")(h)
    return block(width, rate, self._dtype, name="middle_block1")(h, embedding, train)

  def _up(self, h, skips, embedding, train):
    config, skips = self.config, list(skips)
    for level, multiplier in reversed(list(enumerate(config.multipliers))):
      for i in range(config.num_blocks + 1):
        h = jnp.concatenate([h, skips.pop()], axis=-1)
        width = config.channels * multiplier
        h = self._block(h, embedding, train, width, f"up{level}_block{i}")
      if level:
        h = Upsample(self._dtype, name=f"up{level}_double")(h)
    return h
