"""Group norm, modulation and swish as one multiply-add and one activation per value.

Mean, deviation, scale, bias and modulation of a channel reduce to one factor and one offset per
channel. Only these and the input are kept for the backward pass, which recomputes the activation.
The textbook form also keeps the centred input, the sigmoid and its argument: three arrays as large
as the input.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.parallel.placement import takes_plain_form


class Modulation(NamedTuple):
  """Scale and shift from an embedding: normalised values times (1 + scale), plus shift.

  Attributes:
    scale, shift: modulation of each channel of each image, [B C].
  """

  scale: Array
  shift: Array


def plain_group_norm(
  x: Float[Array, "B H W C"],
  scale: Float[Array, "C"],
  bias: Float[Array, "C"],
  num_groups: int,
  epsilon: float,
  modulation: Modulation | None = None,
  swish: bool = False,
) -> Float[Array, "B H W C"]:
  """Compute the plain form that `group_norm` must equal, in float32 at least."""
  high = jnp.promote_types(x.dtype, jnp.float32)
  groups = x.astype(high).reshape(*x.shape[:3], num_groups, -1)
  centred = groups - groups.mean((1, 2, 4), keepdims=True)
  variance = jnp.square(centred).mean((1, 2, 4), keepdims=True)
  y = (centred / jnp.sqrt(variance + epsilon)).reshape(x.shape) * scale + bias
  if modulation is not None:
    more, shift = (vector.astype(high)[:, None, None] for vector in modulation)
    y = y * (1 + more) + shift
  return (jax.nn.swish(y) if swish else y).astype(x.dtype)


def group_norm(
  x: Float[Array, "B H W C"],
  scale: Float[Array, "C"],
  bias: Float[Array, "C"],
  num_groups: int,
  epsilon: float,
  modulation: Modulation | None = None,
  swish: bool = False,
) -> Float[Array, "B H W C"]:
  """Normalise groups of channels over an image, in float32 at least.

  One pass over `x` gives mean and variance, i.e. the mean square minus the squared mean. Each
  channel is measured from an anchor, the mean of its first row: if the mean is much larger than the
  deviation, the two terms would otherwise cancel and the variance would be lost.

  Args:
    x: input; the result has its type.
    scale, bias: parameters per channel.
    num_groups: number of groups of neighbouring channels; it divides C.
    epsilon: constant added to the variance.
    modulation: scale and shift per channel and image, applied after scale and bias.
    swish: apply swish last if true.
  """
  if takes_plain_form("group_norm"):
    return plain_group_norm(x, scale, bias, num_groups, epsilon, modulation, swish)
  high = jnp.promote_types(x.dtype, jnp.float32)
  anchor = jax.lax.stop_gradient(x[:, 0].astype(high).mean(1))  # any constant has this gradient
  mean, inverse = _statistics(x, anchor, num_groups, epsilon)
  factor = inverse * scale
  offset = bias - mean * factor
  if modulation is not None:
    more = 1 + modulation.scale.astype(high)
    factor, offset = factor * more, offset * more + modulation.shift.astype(high)

  @jax.checkpoint
  def apply(x: Array, anchor: Array, factor: Array, offset: Array) -> Array:
    y = _from_anchor(x, anchor) * factor[:, None, None] + offset[:, None, None]
    return (jax.nn.swish(y) if swish else y).astype(x.dtype)

  return apply(x, anchor, factor, offset)


def _from_anchor(x: Array, anchor: Array) -> Array:
  return x.astype(anchor.dtype) - anchor[:, None, None]


def _statistics(x: Array, anchor: Array, num_groups: int, epsilon: float) -> tuple[Array, Array]:
  """Return each channel's group mean minus its anchor, and 1 / deviation, [B C].

  The group's variance is the mean of its channels' variances plus the variance of their means.
  """

  @jax.checkpoint
  def moments(x: Array, anchor: Array) -> tuple[Array, Array]:
    y = _from_anchor(x, anchor)
    return y.mean((1, 2)), jnp.square(y).mean((1, 2))

  size = x.shape[-1] // num_groups

  def of_group(channels: Array) -> Array:
    return jnp.repeat(channels.reshape(len(x), num_groups, size).mean(-1), size, axis=-1)

  mean, square = moments(x, anchor)
  from_group = anchor - of_group(anchor)  # all means of a group are measured from one value
  centre = of_group(from_group + mean)
  within = jnp.maximum(square - jnp.square(mean), 0.0)
  variance = of_group(within + jnp.square(from_group + mean - centre))
  return centre - from_group, jax.lax.rsqrt(variance + epsilon)
