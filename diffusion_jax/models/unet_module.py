"""The U-Net module, assembled from its blocks; `unet` has its config and its sources."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from diffusion_jax.models.base import with_fields
from diffusion_jax.models.embeddings import (
  FourierEmbedding,
  cosine_first_embedding,
  sinusoidal_embedding,
)
from diffusion_jax.models.layers import (
  Attention,
  Conv3,
  InputResidual,
  Norm,
  Resample,
  ResBlock,
  Upsample,
  rematerialized,
)
from diffusion_jax.types import Condition


def is_image(shape: Sequence[int], data: Sequence[int]) -> bool:
  """Return True for an array of the data's height and width, besides channels."""
  return len(shape) == 3 and tuple(shape[:2]) == tuple(data[:2])


class UNetModule(nn.Module):
  """The network; `UNet` describes its fields."""

  config: Any  # a UNet
  out_channels: int
  num_labels: int

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B H W C"],
    time: Float[Array, "B"],
    given: Condition,
    train: bool,
  ) -> Float[Array, "B H W D"]:
    images = {n: v for n, v in given.fields.items() if is_image(v.shape[1:], x.shape[1:])}
    vectors = {n: v for n, v in given.fields.items() if n not in images}
    embedding = with_fields(self._embed(time, given), vectors)
    if images:
      more = [jnp.asarray(images[name], x.dtype) for name in sorted(images)]
      x = jnp.concatenate([x, *more], axis=-1)
    h, skips = self._down(x, embedding, train)
    h = self._middle(h, embedding, train)
    h = self._up(h, skips, embedding, train)
    recipe = self.config.recipe
    h = Norm(self._dtype, recipe.epsilon, True, recipe.norm_groups, name="norm_out")(h)
    return Conv3(self.out_channels, kernel=recipe.init.zero, dtype=self._dtype, name="conv_out")(h)

  @property
  def _dtype(self):
    return jnp.dtype(self.config.dtype)

  def _embed(self, time: Array, given: Condition) -> Array:
    """Return the embedding for all blocks, float32 [B E]; the blocks apply the last swish."""
    width = self.config.channels * self.config.embedding_multiplier
    labels = given.label
    one_hot = self.config.label_embedding == "one_hot"
    h = self._embed_noise(time)
    if self.config.augmentation_labels:
      h = h + self._embed_augmentation(given.augmentation, len(h), h.shape[-1])
    if self.num_labels and labels is not None and one_hot:
      h = h + self._embed_one_hot(labels, h.shape[-1])
    h = nn.swish(self._dense(h, width, "time1"))
    h = self._dense(h, width, "time2")
    if self.num_labels and labels is not None and not one_hot:
      init = self.config.recipe.init.label
      h = h + nn.Embed(self.num_labels, width, embedding_init=init, name="label")(labels)
    return h

  def _embed_noise(self, time: Array) -> Array:
    width = self.config.channels * self.config.noise_multiplier
    time = time * self.config.time_scale
    time = time + self.config.time_offset if self.config.time_offset else time
    if self.config.embedding == "fourier":
      return FourierEmbedding(width, self.config.fourier_scale, name="fourier")(time)
    adm = self.config.embedding == "positional_adm"
    return (cosine_first_embedding if adm else sinusoidal_embedding)(time, width)

  def _embed_augmentation(self, vector: Any, num_images: int, width: int) -> Array:
    """Map an augmentation vector without a bias: an unaugmented image's zeros add nothing."""
    labels = jnp.zeros((num_images, self.config.augmentation_labels)) if vector is None else vector
    kernel = self.config.recipe.init.kernel
    return nn.Dense(width, use_bias=False, kernel_init=kernel, name="augmentation")(labels)

  def _embed_one_hot(self, labels: Any, width: int) -> Array:
    """Map a one-hot class; the null class, the last one, has the zero vector."""
    num_classes = self.num_labels - 1
    vector = jax.nn.one_hot(labels, num_classes) * math.sqrt(num_classes)
    return self._dense(vector, width, "label")

  def _dense(self, x: Array, width: int, name: str) -> Array:
    init = self.config.recipe.init
    bias = init.bias(x.shape[-1])
    return nn.Dense(width, kernel_init=init.kernel, bias_init=bias, name=name)(x)

  def _conv(self, x: Array, width: int, name: str, stride: int = 1) -> Array:
    init = self.config.recipe.init
    padding = self.config.downsample_padding if stride == 2 else None
    conv = Conv3(width, stride, init.kernel, self._dtype, init.bias, padding=padding, name=name)
    return conv(x)

  def _block(self, h, embedding, train, width, name, attention=False, resample=None):
    """Apply a residual block, followed by attention if `attention` is true."""
    config, kind = self.config, rematerialized(ResBlock, self.config.remat, (3,))
    block = kind(width, config.dropout, self._dtype, config.recipe, resample, name=name)
    h = block(h, embedding, train)
    return self._attention(h, name + "_attention") if attention else h

  def _attention(self, h: Array, name: str) -> Array:
    kind = rematerialized(Attention, self.config.remat)
    return kind(self._dtype, self.config.recipe, name=name)(h)

  def _has_attention(self, h: Array) -> bool:
    return h.shape[1] in self.config.attention_resolutions

  def _down(self, x, embedding, train):
    config, image = self.config, x
    h = self._conv(x, config.channels, "conv_in")
    skips = [h]
    for level, multiplier in enumerate(config.multipliers):
      for i in range(config.num_blocks):
        width, name = config.channels * multiplier, f"down{level}_block{i}"
        h = self._block(h, embedding, train, width, name, self._has_attention(h))
        skips.append(h)
      if level + 1 < len(config.multipliers):
        h = self._resized(h, embedding, train, "down", f"down{level}_half")
        if config.input_residual:
          h = image = self._join(h, image, f"down{level}_input")
        skips.append(h)
    return h, skips

  def _resized(self, h, embedding, train, direction: Literal["down", "up"], name: str):
    config, width = self.config, h.shape[-1]
    if config.resampling == "block":
      resample = Resample(direction, config.resample_filter, config.resample_projection)
      return self._block(h, embedding, train, width, name, resample=resample)
    if direction == "down":
      return self._conv(h, width, name, stride=2)
    return Upsample(self._dtype, config.recipe, name=name)(h)

  def _join(self, h: Array, image: Array, name: str) -> Array:
    """Add the image, at the features' width and resolution."""
    config, width = self.config, h.shape[-1]
    bring = InputResidual(width, config.resample_filter, self._dtype, config.recipe, name=name)
    return (h + bring(image)) * math.sqrt(0.5)

  def _middle(self, h, embedding, train):
    width = h.shape[-1]
    h = self._block(h, embedding, train, width, "middle_block0")
    h = self._attention(h, "middle_attention")
    return self._block(h, embedding, train, width, "middle_block1")

  def _up(self, h, skips, embedding, train):
    config, skips = self.config, list(skips)
    first = 0 if config.decoder_attention == "every" else config.num_blocks
    for level, multiplier in reversed(list(enumerate(config.multipliers))):
      for i in range(config.num_blocks + 1):
        h = jnp.concatenate([h, skips.pop()], axis=-1)
        width, name = config.channels * multiplier, f"up{level}_block{i}"
        h = self._block(h, embedding, train, width, name, self._has_attention(h) and i >= first)
      if level:
        h = self._resized(h, embedding, train, "up", f"up{level}_double")
    return h
