"""A 1x1 convolution, or a dense layer over tokens, as one matrix product of all pixels.

As a product over the last of four axes, the kernel's gradient sums over three axes at once. XLA's
dots have one such axis, so on a CPU it transposes the input and the output's gradient value by
value. It uses flat inputs as they are.
"""

from typing import Any

from jax import lax
from jaxtyping import Array, Float

from diffusion_jax.parallel.placement import takes_plain_form


def plain_pointwise(x: Float[Array, "*B C"], kernel: Float[Array, "C D"]) -> Float[Array, "*B D"]:
  """Compute the plain form that `pointwise` must equal."""
  return lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))


def pointwise(
  x: Float[Array, "*B C"], kernel: Float[Array, "C D"], *_: Any, **__: Any
) -> Float[Array, "*B D"]:
  """Multiply each pixel by the kernel.

  Replaces `lax.dot_general` in flax's dense layers, whose other arguments are redundant here.
  """
  if takes_plain_form("pointwise"):
    return plain_pointwise(x, kernel)
  y = lax.dot_general(x.reshape(-1, x.shape[-1]), kernel, (((1,), (0,)), ((), ())))
  return y.reshape(*x.shape[:-1], kernel.shape[-1])
