"""Layers of the networks: normalisation, convolutions, residual and attention blocks.

Parameters are float32. `dtype` is the compute type of convolutions and dense layers; group
statistics and softmax stay float32. Without a `recipe` the blocks are DDPM's.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import Offloadable
from jax.nn.initializers import Initializer
from jaxtyping import Array, Float

from diffusion_jax.kernels.attention import Implementation, attend
from diffusion_jax.kernels.group_norm import Modulation, group_norm
from diffusion_jax.kernels.pointwise import pointwise
from diffusion_jax.kernels.upsampled_conv import upsampled_conv
from diffusion_jax.models.initializers import INITS, Init, kernel_init, zero_bias
from diffusion_jax.models.resample import double, halve

Dtype = jnp.dtype
FLOAT32 = jnp.dtype("float32")

POINTWISE = frozenset(
  (
    *("add", "sub", "mul", "div", "neg", "max", "integer_pow", "square", "rsqrt", "exp", "tanh"),
    *("logistic", "select_n", "convert_element_type", "broadcast_in_dim", "reshape", "transpose"),
    *("squeeze", "slice", "split", "sharding_constraint"),
  )
)
"""Operations that take less time than storing their results and reading them again.

The last one gathers a layer's parameters; kept from all layers, they would be the whole network.
"""

OFFLOAD = ("device", "pinned_host")
"""JAX's names of the memories of the device and of its host."""

Pointwise = functools.partial(nn.Dense, dot_general=pointwise)
"""A dense layer applied to each pixel or token."""

Remat = Literal[
  "none", "block", "dots_with_no_batch_dims_saveable", "offload_dot_with_no_batch_dims"
]
"""Values that the backward pass recomputes.

none: nothing. block: all of a block except its input. dots_with_no_batch_dims_saveable: all of a
block except the outputs of convolutions and of products with weights; attention's scores, which
grow with the square of the tokens, are recomputed. offload_dot_with_no_batch_dims: the same, with
these outputs in the host's memory until they are needed. The last two are policies of
`jax.checkpoint_policies`.
"""


@dataclasses.dataclass(frozen=True)
class Recipe:
  """Settings shared by the blocks of a network.

  Attributes:
    init: initial distributions.
    epsilon: constant added to the variance in the group normalisation.
    adaptive_scale: if true, the embedding scales and shifts the second norm's output; otherwise it
      is added to that norm's input.
    embed_bias: true if the embedding's projection has a bias.
    skip_scale: factor of every sum of a block's input and output.
    num_heads: number of attention heads, unless `channels_per_head` is given.
    channels_per_head: width of a head.
    norm_groups: number of groups of the group normalisation; see `num_groups`.
    attention: implementation of attention; see `kernels.attention.attend`.
  """

  init: Init = INITS["ddpm"]
  epsilon: float = 1e-6
  adaptive_scale: bool = False
  embed_bias: bool = True
  skip_scale: float = 1.0
  num_heads: int = 1
  channels_per_head: int | None = None
  norm_groups: int | None = None
  attention: Implementation = "auto"

  def heads(self, width: int) -> int:
    """Return the number of heads of an attention layer of `width` channels."""
    return width // self.channels_per_head if self.channels_per_head else self.num_heads


DDPM = Recipe()


class Resample(NamedTuple):
  """A change of resolution in both the branch and the shortcut of a residual block.

  Attributes:
    direction: halving or doubling of the sides.
    taps: filter coefficients; see `resample`.
    projection: true for a 1x1 convolution on the shortcut even if the width stays the same.
  """

  direction: Literal["down", "up"]
  taps: tuple[int, ...]
  projection: bool

  @property
  def is_nearest(self) -> bool:
    """Return whether it doubles by nearest neighbour, which the next convolution can include."""
    return self.direction == "up" and self.taps == (1, 1)

  def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H2 W2 C"]:
    return halve(x, self.taps) if self.direction == "down" else double(x, self.taps)


def rematerialized(
  kind: Any, remat: Remat, static_argnums: tuple[int, ...] = (), in_scan: bool = False
) -> Any:
  """Wrap a module's class so that the backward pass recomputes activations as in `remat`.

  Args:
    kind: the class.
    remat: see the field `remat` of a network.
    static_argnums: arguments of its call that are not arrays.
    in_scan: True if a scan calls it. The scan stores everything that its backward pass needs, and
      the compiler cannot choose to compute some of it again, as it does otherwise; so for `none`
      the pointwise operations are computed again here.
  """
  if remat == "none" and not in_scan:
    return kind
  policy = _all_but_pointwise if remat == "none" else remat_policy(remat)
  return nn.remat(kind, static_argnums=static_argnums, policy=policy, prevent_cse=not in_scan)


def _all_but_pointwise(primitive: Any, *args: Any, **params: Any) -> bool:
  del args, params
  return primitive.name not in POINTWISE


def remat_policy(remat: Remat) -> Callable[..., Any] | None:
  """Return a policy for `jax.checkpoint` that keeps convolutions and products with weights."""
  policies, kept = jax.checkpoint_policies, True
  if remat in ("none", "block"):
    return None
  stock = policies.dots_with_no_batch_dims_saveable
  if remat == "offload_dot_with_no_batch_dims":
    stock = policies.offload_dot_with_no_batch_dims(*OFFLOAD)
    kept = Offloadable(*OFFLOAD)
  is_convolution = lambda primitive: primitive is jax.lax.conv_general_dilated_p  # noqa: E731
  return lambda primitive, *args, **params: (
    kept if is_convolution(primitive) else stock(primitive, *args, **params)
  )


def num_groups(width: int, norm_groups: int | None) -> int:
  """Return the number of groups for the normalisation of `width` channels.

  Without a setting it is width / 4, at most 32, or the next smaller divisor of the width. This is
  the rule of score_sde and EDM, whose groups have at least 4 channels. A group of one channel would
  lose its mean, and with it the time and class embedding that the block has added.

  Args:
    width: number of channels.
    norm_groups: number of groups at any width, as in DDPM, Improved DDPM, ADM and diffusers (32);
      None: by the rule above.
  """
  if norm_groups is not None:
    return norm_groups
  return next(g for g in range(max(min(32, width // 4), 1), 0, -1) if width % g == 0)


def check_norm_groups(norm_groups: int | None, channels: int) -> None:
  """Raise an error if groups do not divide a network's widths, multiples of `channels`.

  Raises:
    ValueError: they do not; the message has valid settings.
  """
  if norm_groups is not None and (norm_groups < 1 or channels % norm_groups):
    divisors = (g for g in range(1, channels + 1) if channels % g == 0)
    near = min(divisors, key=lambda g: abs(g - norm_groups))
    raise ValueError(
      f"norm_groups={norm_groups} must divide channels={channels}; use e.g. {near}, or none for a "
      "quarter of each width, at most 32"
    )


def settled_groups(norm_groups: int | None, widths: Iterable[int]) -> int | None:
  """Return the number of groups if it is equal at all widths, or the setting unchanged."""
  numbers = {num_groups(width, norm_groups) for width in widths}
  return numbers.pop() if len(numbers) == 1 else norm_groups


class Norm(nn.Module):
  """GroupNorm with a scale and a bias per channel.

  Attributes:
    dtype: type of the result; statistics are float32.
    epsilon: constant added to the variance.
    swish: true to apply swish to the result.
    groups: number of groups; see `num_groups`.
  """

  dtype: Dtype = FLOAT32
  epsilon: float = 1e-6
  swish: bool = False
  groups: int | None = None

  @nn.compact
  def __call__(
    self, x: Float[Array, "B H W C"], modulation: Modulation | None = None
  ) -> Float[Array, "B H W C"]:
    width = x.shape[-1]
    groups = num_groups(width, self.groups)
    scale, bias = ScaleAndBias(name="group")(width)
    return group_norm(
      x.astype(self.dtype), scale, bias, groups, self.epsilon, modulation, self.swish
    )


class ScaleAndBias(nn.Module):
  """The parameters of a normalisation, initially ones and zeros."""

  @nn.compact
  def __call__(self, width: int) -> tuple[Float[Array, "C"], Float[Array, "C"]]:
    scale = self.param("scale", nn.initializers.ones, (width,))
    bias = self.param("bias", nn.initializers.zeros, (width,))
    return jnp.asarray(scale), jnp.asarray(bias)  # a stored network may have NumPy arrays


class Conv3(nn.Module):
  """A 3x3 convolution that keeps the resolution (stride 1) or halves it (stride 2).

  Attributes:
    features: width of the result.
    stride: 1 or 2.
    bias: function from the fan-in to an initialiser.
    double: true to double the image by nearest neighbour before the convolution.
    padding: zeros before and after each axis; none: enough to keep the resolution over the stride,
      with an odd one at the end.
  """

  features: int
  stride: int = 1
  kernel: Initializer = kernel_init
  dtype: Dtype = FLOAT32
  bias: Callable[[int], Initializer] = zero_bias
  double: bool = False
  padding: tuple[int, ...] | None = None

  @nn.compact
  def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H2 W2 D"]:
    sides = "SAME" if self.padding is None else [(self.padding[0], self.padding[1])] * 2
    conv = nn.Conv(
      self.features,
      (3, 3),
      (self.stride, self.stride),
      padding=sides,
      kernel_init=self.kernel,
      bias_init=self.bias(9 * x.shape[-1]),
      dtype=self.dtype,
      conv_general_dilated=_convolve_doubled if self.double else None,
      name="conv",
    )
    return conv(x)


def _convolve_doubled(x: Array, kernel: Array, *_: Any, **__: Any) -> Array:
  """Replace flax's convolution, whose other arguments equal those of `upsampled_conv`."""
  return upsampled_conv(x, kernel)


class Upsample(nn.Module):
  """Double the resolution: nearest neighbour, then a 3x3 convolution."""

  dtype: Dtype = FLOAT32
  recipe: Recipe = DDPM

  @nn.compact
  def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H2 W2 C"]:
    init = self.recipe.init
    conv = Conv3(x.shape[-1], 1, init.kernel, self.dtype, init.bias, double=True, name="conv3")
    return conv(x)


class InputResidual(nn.Module):
  """The image (or its last such residual), convolved and halved, for the encoder of NCSN++.

  The original fuses the two operations, so beyond the border the filter sees the convolution's own
  values instead of zeros.
  """

  features: int
  taps: tuple[int, ...]
  dtype: Dtype = FLOAT32
  recipe: Recipe = DDPM

  @nn.compact
  def __call__(self, image: Float[Array, "B H W C"]) -> Float[Array, "B H2 W2 D"]:
    conv = nn.Conv(
      self.features,
      (3, 3),
      padding=len(self.taps) // 2,
      kernel_init=self.recipe.init.kernel,
      bias_init=self.recipe.init.bias(9 * image.shape[-1]),
      dtype=self.dtype,
      name="conv",
    )
    return halve(conv(image), self.taps, pad=False)


class ResBlock(nn.Module):
  """Norm, swish, conv, (embedding,) norm, swish, dropout, conv; plus the shortcut.

  The embedding is added before the second norm, or scales and shifts its output, depending on the
  recipe. The shortcut has a 1x1 convolution only if the width changes or `resample` requires it;
  `resample` acts before the first convolution and on the shortcut.
  """

  features: int
  dropout: float = 0.0
  dtype: Dtype = FLOAT32
  recipe: Recipe = DDPM
  resample: Resample | None = None

  @nn.compact
  def __call__(
    self, x: Float[Array, "B H W C"], embedding: Float[Array, "B E"] | None, train: bool
  ) -> Float[Array, "B H2 W2 D"]:
    init = self.recipe.init
    h = _norm(self, "norm1", swish=True)(x)
    nearest = self.resample is not None and self.resample.is_nearest
    h = h if self.resample is None or nearest else self.resample(h)
    conv = Conv3(self.features, 1, init.kernel, self.dtype, init.bias, nearest, name="conv1")
    h = conv(h)
    h = self._activated(h, embedding)
    h = nn.Dropout(self.dropout, deterministic=not train)(h)
    h = Conv3(self.features, 1, init.zero, self.dtype, name="conv2")(h)
    return (self._shortcut(x) + h) * self.recipe.skip_scale

  def _activated(self, h: Array, embedding: Array | None) -> Array:
    norm, recipe = _norm(self, "norm2", swish=True), self.recipe
    if embedding is None:
      return norm(h)
    project = nn.Dense(
      self.features * (2 if recipe.adaptive_scale else 1),
      use_bias=recipe.embed_bias,
      kernel_init=recipe.init.embed,
      bias_init=recipe.init.bias(embedding.shape[-1]),
      dtype=self.dtype,
      name="embed",
    )
    projected = project(nn.swish(embedding))
    if not recipe.adaptive_scale:
      return norm(h + projected[:, None, None, :])
    return norm(h, Modulation(*jnp.split(projected, 2, axis=-1)))

  def _shortcut(self, x: Array) -> Array:
    width, init = x.shape[-1], self.recipe.init
    x = x if self.resample is None else self.resample(x)
    if width != self.features or (self.resample is not None and self.resample.projection):
      bias = init.bias(width)
      x = Pointwise(
        self.features, kernel_init=init.kernel, bias_init=bias, dtype=self.dtype, name="shortcut"
      )(x)
    return x


def _norm(block: Any, name: str, swish: bool = False) -> Norm:
  """Return the normalisation of a residual or attention block, by its recipe."""
  recipe = block.recipe
  return Norm(block.dtype, recipe.epsilon, swish, recipe.norm_groups, name=name)


class Attention(nn.Module):
  """Self-attention over all pixels, added to its input; one head unless the recipe has more."""

  dtype: Dtype = FLOAT32
  recipe: Recipe = DDPM

  @nn.compact
  def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
    batch, height, width, channels = x.shape
    init = self.recipe.init
    tokens = _norm(self, "norm")(x)
    tokens = tokens.reshape(batch, height * width, channels)
    bias = init.bias(channels)
    names = ("query", "key", "value")
    query, key, value = (self._dense(channels, n, init.qkv, bias)(tokens) for n in names)
    h = attend(query, key, value, self.recipe.heads(channels), self.recipe.attention)
    h = self._dense(channels, "out", init.zero, nn.initializers.zeros)(h)
    return (x + h.reshape(x.shape)) * self.recipe.skip_scale

  def _dense(self, features: int, name: str, kernel: Initializer, bias: Initializer) -> nn.Dense:
    return Pointwise(features, kernel_init=kernel, bias_init=bias, dtype=self.dtype, name=name)
