"""A 1x1 convolution, or a dense layer of tokens, as one matrix product of all pixels.

Written as a product over the last of four axes, the kernel's gradient sums over three axes at once.
XLA's dots have one such axis: on a CPU it transposes the input and the output's gradient for it,
value by value. Of flat inputs it takes them as they lie.
"""

from typing import Any

from jax import lax
from jaxtyping import Array, Float


def plain_pointwise(x: Float[Array, "*B C"], kernel: Float[Array, "C D"]) -> Float[Array, "*B D"]:
  """What `pointwise` must equal."""
  return lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))


def pointwise(
  x: Float[Array, "*B C"], kernel: Float[Array, "C D"], *_: Any, **__: Any
) -> Float[Array, "*B D"]:
  """Multiplies each pixel by the kernel.

  Takes the place of `lax.dot_general` in flax's dense layers, whose other arguments say the same.
  """
  y = lax.dot_general(x.reshape(-1, x.shape[-1]), kernel, (((1,), (0,)), ((), ())))
  return y.reshape(*x.shape[:-1], kernel.shape[-1])
