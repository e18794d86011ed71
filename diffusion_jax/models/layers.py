"""Layers of the DDPM U-Net: embeddings, normalisation, residual and attention blocks.

Parameters are float32. `dtype` is the compute type of convolutions and dense layers; group
statistics, softmax and time embeddings stay float32.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

Dtype = jnp.dtype

Remat = Literal["none", "block", "products"]
"""What the backward pass recomputes: nothing; all of a block but its input; all of a block but the
outputs of its convolutions and matrix products (norms, activations and dropout are cheap)."""

# Variance scaling with the mean of fan-in and fan-out, uniform: DDPM's initialisation.
kernel_init = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
# Nearly zero, so that a residual block starts as the identity (the recipe's scale is 1e-10, not 0).
zero_init = nn.initializers.variance_scaling(1e-10, "fan_avg", "uniform")


def rematerialized(kind: Any, remat: Remat, static_argnums: tuple[int, ...] = ()) -> Any:
  """A module's class whose activations are recomputed in the backward pass as `remat` says."""
  if remat == "none":
    return kind
  policy = _is_product if remat == "products" else None
  return nn.remat(kind, static_argnums=static_argnums, policy=policy)


def _is_product(primitive: Any, *_: Any, **__: Any) -> bool:
  return primitive in (jax.lax.conv_general_dilated_p, jax.lax.dot_general_p)


def sinusoidal_embedding(time: Float[Array, "B"], dim: int) -> Float[Array, "B D"]:
  """[sin, cos] of the time at `dim / 2` frequencies from 1 down to 1/10000, float32.

  Source: Ho et al. 2020, after Vaswani et al. 2017, with denominator dim / 2 - 1.
  """
  half = dim // 2
  frequency = jnp.exp(-jnp.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / (half - 1))
  angle = time.astype(jnp.float32)[:, None] * frequency[None, :]
  return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


class Norm(nn.Module):
  """GroupNorm of 32 groups, of fewer where they would hold less than 4 channels or not divide.

  A group of one channel would remove that channel's mean, and with it the time and class
  embedding that the block has added to it.
  """

  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
    width = x.shape[-1]
    groups = next(g for g in range(max(min(32, width // 4), 1), 0, -1) if width % g == 0)
    return nn.GroupNorm(num_groups=groups, epsilon=1e-6, dtype=self.dtype, name="group")(x)


class Conv3(nn.Module):
  """A 3x3 convolution that keeps the resolution (stride 1) or halves it (stride 2)."""

  features: int
  stride: int = 1
  kernel: nn.initializers.Initializer = kernel_init
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H2 W2 D"]:
    strides = (self.stride, self.stride)
    return nn.Conv(
      self.features, (3, 3), strides, kernel_init=self.kernel, dtype=self.dtype, name="conv"
    )(x)


class Upsample(nn.Module):
  """Doubles the resolution: nearest neighbour, then a 3x3 convolution."""

  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H2 W2 C"]:
    x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
    return Conv3(x.shape[-1], dtype=self.dtype, name="conv3")(x)


class ResBlock(nn.Module):
  """Norm, swish, conv, (add embedding,) norm, swish, dropout, conv; plus the shortcut.

  A 1x1 convolution carries the shortcut only where the width changes.
  """

  features: int
  dropout: float = 0.0
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, "B H W C"], embedding: Float[Array, "B E"] | None, train: bool
  ) -> Float[Array, "B H W D"]:
    h = nn.swish(Norm(self.dtype, name="norm1")(x))
    h = Conv3(self.features, dtype=self.dtype, name="conv1")(h)
    if embedding is not None:
      dense = nn.Dense(self.features, kernel_init=kernel_init, dtype=self.dtype, name="embed")
      h = h + dense(nn.swish(embedding))[:, None, None, :]
    h = nn.swish(Norm(self.dtype, name="norm2")(h))
    h = nn.Dropout(self.dropout, deterministic=not train)(h)
    h = Conv3(self.features, kernel=zero_init, dtype=self.dtype, name="conv2")(h)
    if x.shape[-1] != self.features:
      x = nn.Dense(self.features, kernel_init=kernel_init, dtype=self.dtype, name="shortcut")(x)
    return x + h


class Attention(nn.Module):
  """Self-attention of one head over all pixels, scaled by C^-1/2, added to its input."""

  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
    batch, height, width, channels = x.shape
    tokens = Norm(self.dtype, name="norm")(x).reshape(batch, height * width, channels)
    query, key, value = (self._dense(channels, n)(tokens) for n in ("query", "key", "value"))
    scores = jnp.einsum("bqc,bkc->bqk", query, key, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(scores * channels**-0.5, axis=-1).astype(value.dtype)
    h = jnp.einsum("bqk,bkc->bqc", weights, value)
    h = self._dense(channels, "out", zero_init)(h)
    return x + h.reshape(x.shape)

  def _dense(self, features: int, name: str, init=kernel_init) -> nn.Dense:
    return nn.Dense(features, kernel_init=init, dtype=self.dtype, name=name)
