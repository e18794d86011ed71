"""The network of variational diffusion models: a U-Net that never lowers the resolution.

Source: Kingma et al. 2021 (arXiv 2107.00630), appendix B and C. With its defaults and three
channels it has 30,577,667 parameters (published: 30.6M; the original has 512 more, for a constant
input).
"""

import dataclasses
from typing import Any, Literal

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from diffusion_jax.core.settings import setting
from diffusion_jax.kernels.attention import Implementation
from diffusion_jax.models.base import Network, NetworkBase, as_network
from diffusion_jax.models.embeddings import pixel_fourier_features, sinusoidal_embedding
from diffusion_jax.models.initializers import VDM_INIT
from diffusion_jax.models.layers import (
  Attention,
  Conv3,
  Norm,
  Recipe,
  Remat,
  ResBlock,
  check_norm_groups,
  rematerialized,
  settled_groups,
)
from diffusion_jax.types import Condition, ImageSpec


@dataclasses.dataclass(frozen=True)
class VDMUNet(NetworkBase):
  """VDM's network: one resolution throughout, with Fourier features of the input.

  Attributes:
    channels: width of all layers.
    num_blocks: residual blocks on the way down; one more on the way up, two in the middle.
    fourier_exponents: values of n for the input features sin and cos of 2 pi 2^n x.
    time_scale: factor of the time before its embedding: 1 for the processes here, whose times end
      at 1000 (for a learned schedule gamma, from gamma_min to gamma_max); 1000 for a noise level in
      [0, 1].
    dropout: dropout rate in the residual blocks.
    norm_groups: number of groups of the group normalisation, a divisor of `channels`; none: width /
      4, at most 32.
    dtype: compute type; parameters, statistics and softmax stay float32.
    remat: values that the backward pass recomputes to save memory: `none`; `block`, all of a block
      except its input; `dots_with_no_batch_dims_saveable`, all except the outputs of convolutions
      and of products with weights; `offload_dot_with_no_batch_dims`, the same with these on the
      host.
    attention: `xla`, the plain form; `cudnn` on NVIDIA GPUs or `splash` on TPUs, which store no
      scores; `auto`, the device's kernel if it takes the type and shapes, else the plain form.
  """

  channels: int = 128
  num_blocks: int = 32
  fourier_exponents: tuple[int, ...] = (6, 7)
  time_scale: float = 1.0
  dropout: float = 0.1
  norm_groups: int | None = None
  dtype: Literal["float32", "bfloat16"] = setting("float32", may_change=True)
  remat: Remat = setting("none", may_change=True, affects_figures=False)
  attention: Implementation = setting("auto", may_change=True)

  def __post_init__(self):
    if self.channels < 4 or self.channels % 2:
      raise ValueError(f"channels={self.channels} must be even and at least 4")
    if self.num_blocks < 1:
      raise ValueError(f"num_blocks={self.num_blocks} must be at least 1")
    if not 0 <= self.dropout < 1:
      raise ValueError(f"dropout={self.dropout} must be at least 0 and below 1")
    if self.time_scale <= 0:
      raise ValueError(f"time_scale={self.time_scale} must be positive")
    check_norm_groups(self.norm_groups, self.channels)

  def create(self, spec: ImageSpec, num_labels: int) -> Network:
    """Build the pure functions for images of `spec`.

    Args:
      spec: shape of the images.
      num_labels: size of the label embedding (the null class included), 0 for unconditional.
    """
    return as_network(VDMModule(self, spec.channels, num_labels), self, spec, num_labels)

  @property
  def recipe(self) -> Recipe:
    """Return the settings that its blocks share."""
    return Recipe(
      init=VDM_INIT, embed_bias=False, norm_groups=self.norm_groups, attention=self.attention
    )

  def settled(self) -> "VDMUNet":
    """Return the same network with an explicit number of groups, if both widths share one."""
    widths = (self.channels, 2 * self.channels)
    return dataclasses.replace(self, norm_groups=settled_groups(self.norm_groups, widths))


class VDMModule(nn.Module):
  """The network; `VDMUNet` describes its fields."""

  config: VDMUNet
  out_channels: int
  num_labels: int

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B H W C"],
    time: Float[Array, "B"],
    given: Condition,
    train: bool,
  ) -> Float[Array, "B H W C"]:
    embedding, init = self._embed(time, given.label), VDM_INIT
    features = [x, pixel_fourier_features(x, self.config.fourier_exponents)]
    h = jnp.concatenate(features, axis=-1)
    h = Conv3(self.config.channels, 1, init.kernel, self._dtype, name="conv_in")(h)
    h = self._blocks(h, embedding, train)
    h = Norm(self._dtype, swish=True, groups=self.config.norm_groups, name="norm_out")(h)
    h = Conv3(self.out_channels, 1, init.zero, self._dtype, name="conv_out")(h)
    return x + h.astype(x.dtype)  # at very high noise the input itself is nearly the noise

  @property
  def _dtype(self):
    return jnp.dtype(self.config.dtype)

  def _embed(self, time: Array, labels: Any) -> Array:
    """Embed noise level and class, float32 [B E]; the blocks apply the last swish."""
    width, init = 4 * self.config.channels, VDM_INIT
    h = sinusoidal_embedding(time * self.config.time_scale, self.config.channels)
    h = nn.swish(nn.Dense(width, kernel_init=init.kernel, name="time1")(h))
    h = nn.Dense(width, kernel_init=init.kernel, name="time2")(h)
    if self.num_labels and labels is not None:
      h = h + nn.Embed(self.num_labels, width, name="label")(labels)
    return h

  def _blocks(self, h: Array, embedding: Array, train: bool) -> Array:
    skips = [h]
    for i in range(self.config.num_blocks):
      h = self._block(h, embedding, train, f"down{i}")
      skips.append(h)
    h = self._block(h, embedding, train, "middle_block0")
    attention = rematerialized(Attention, self.config.remat)
    h = attention(self._dtype, self.config.recipe, name="middle_attention")(h)
    h = self._block(h, embedding, train, "middle_block1")
    for i in range(self.config.num_blocks + 1):
      h = jnp.concatenate([h, skips.pop()], axis=-1)
      h = self._block(h, embedding, train, f"up{i}")
    return h

  def _block(self, h: Array, embedding: Array, train: bool, name: str) -> Array:
    config, kind = self.config, rematerialized(ResBlock, self.config.remat, (3,))
    block = kind(config.channels, config.dropout, self._dtype, config.recipe, name=name)
    return block(h, embedding, train)
