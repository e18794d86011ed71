"""Group normalisation, a modulation and swish as one multiply-add a value and one activation.

Mean, deviation, scale, bias and modulation of a channel come to one factor and one offset, of which
there are few. Only they and the input are kept for the backward pass, which computes the activation
again: written the textbook way, the centred input, the sigmoid and its argument are kept too, three
arrays as large as the input.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class Modulation(NamedTuple):
  """What a network makes of its embedding: the normalised values times (1 + scale), plus shift.

  Attributes:
    scale, shift: [B C].
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
  """What `group_norm` must equal."""
  groups = x.reshape(*x.shape[:3], num_groups, -1)
  centred = groups - groups.mean((1, 2, 4), keepdims=True)
  variance = jnp.square(centred).mean((1, 2, 4), keepdims=True)
  y = (centred / jnp.sqrt(variance + epsilon)).reshape(x.shape) * scale + bias
  if modulation is not None:
    y = y * (1 + modulation.scale[:, None, None]) + modulation.shift[:, None, None]
  return jax.nn.swish(y) if swish else y


def group_norm(
  x: Float[Array, "B H W C"],
  scale: Float[Array, "C"],
  bias: Float[Array, "C"],
  num_groups: int,
  epsilon: float,
  modulation: Modulation | None = None,
  swish: bool = False,
) -> Float[Array, "B H W C"]:
  """Normalises groups of channels over an image; statistics and arithmetic at least in float32.

  The variance is the mean square less the squared mean, so that one pass over `x` gives both.

  Args:
    x: the input; the result has its type.
    scale, bias: of each channel.
    num_groups: divides C; groups are of neighbouring channels.
    epsilon: added to the variance.
    modulation: of each channel of each image, after scale and bias.
    swish: apply it last.
  """
  high = jnp.promote_types(x.dtype, jnp.float32)
  mean, inverse = _statistics(x.astype(high), num_groups, epsilon)
  factor = inverse * scale
  offset = bias - mean * factor
  if modulation is not None:
    more = 1 + modulation.scale.astype(high)
    factor, offset = factor * more, offset * more + modulation.shift.astype(high)

  @jax.checkpoint
  def apply(x: Array, factor: Array, offset: Array) -> Array:
    y = x.astype(high) * factor[:, None, None] + offset[:, None, None]
    return (jax.nn.swish(y) if swish else y).astype(x.dtype)

  return apply(x, factor, offset)


def _statistics(x: Array, num_groups: int, epsilon: float) -> tuple[Array, Array]:
  """Of each channel its group's mean and 1 / deviation, [B C]; pixels first, then channels."""
  size = x.shape[-1] // num_groups

  def of_group(channels: Array) -> Array:
    return jnp.repeat(channels.reshape(len(x), num_groups, size).mean(-1), size, axis=-1)

  mean, square = of_group(x.mean((1, 2))), of_group(jnp.square(x).mean((1, 2)))
  variance = jnp.maximum(square - jnp.square(mean), 0.0)
  return mean, jax.lax.rsqrt(variance + epsilon)
