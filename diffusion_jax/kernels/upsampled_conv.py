"""Nearest-neighbour upsampling by two and a 3x3 convolution, without the upsampled image.

Of the three rows under a 3x3 kernel, two are copies of one row of the small image. Their weights
are summed beforehand, and each of the four phases of the result (even and odd rows and columns) is
a 2x2 convolution of the small image: 16 products instead of 36, and the input's gradient needs no
sum over copies.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from diffusion_jax.parallel.placement import takes_plain_form

LAYOUT = ("NHWC", "HWIO", "NHWC")


def plain_upsampled_conv(
  x: Float[Array, "B H W C"], kernel: Float[Array, "3 3 C D"]
) -> Float[Array, "B H2 W2 D"]:
  """Compute the plain form that `upsampled_conv` must equal."""
  doubled = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
  return lax.conv_general_dilated(doubled, kernel, (1, 1), "SAME", dimension_numbers=LAYOUT)


def upsampled_conv(
  x: Float[Array, "B H W C"], kernel: Float[Array, "3 3 C D"]
) -> Float[Array, "B H2 W2 D"]:
  """Upsample `x` by two with nearest neighbour and convolve, with zero padding."""
  if takes_plain_form("upsampled_conv"):
    return plain_upsampled_conv(x, kernel)
  rows = []
  for i, tall in enumerate(_phases(kernel, 0)):
    columns = []
    for j, small in enumerate(_phases(tall, 1)):
      padding = ((1 - i, i), (1 - j, j))
      columns.append(lax.conv_general_dilated(x, small, (1, 1), padding, dimension_numbers=LAYOUT))
    rows.append(jnp.stack(columns, axis=3))
  both = jnp.stack(rows, axis=2)  # B H 2 W 2 D
  batch, height, _, width, _, features = both.shape
  return both.reshape(batch, 2 * height, 2 * width, features)


def _phases(kernel: Array, axis: int) -> tuple[Array, Array]:
  """Return the weights on pixels (i - 1, i) for new pixel 2 i, and on (i, i + 1) for 2 i + 1."""
  first, middle, last = jnp.split(kernel, 3, axis)
  even = jnp.concatenate([first, middle + last], axis)
  return even, jnp.concatenate([first + middle, last], axis)
