"""Pillow's bicubic resizing of 8-bit pictures, for use under `jax.jit`.

Published figures on DINOv2 and CLIP resize pictures with Pillow, which differs from other
libraries: a cubic with a = -0.5, widened when it shrinks, first along rows and then along columns,
each rounded to 8 bits.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

FIXED_POINT = 2.0**22
"""Pillow rounds its weights to multiples of 1 / FIXED_POINT."""


def resize_bicubic(
  images: Num[Array | np.ndarray, "B H W C"], side: int
) -> Float[Array, "B S S C"]:
  """Resize pictures 0..255 to side x side as Pillow does; the result has whole numbers."""
  x = jnp.asarray(images, jnp.float32)
  rows, columns = (jnp.asarray(pillow_weights(size, side)) for size in x.shape[1:3])
  x = _to_8_bits(jnp.einsum("tw,bhwc->bhtc", columns, x, precision=jax.lax.Precision.HIGHEST))
  return _to_8_bits(jnp.einsum("sh,bhtc->bstc", rows, x, precision=jax.lax.Precision.HIGHEST))


def _to_8_bits(x: Array) -> Array:
  return jnp.clip(jnp.floor(x + 0.5), 0, 255)


def center_square(images: Num[Array | np.ndarray, "B H W C"]) -> Num[Array | np.ndarray, "B N N C"]:
  """Cut the largest square out of the middle."""
  height, width = images.shape[1:3]
  size = min(height, width)
  top, left = (height - size) // 2, (width - size) // 2
  return images[:, top : top + size, left : left + size]


@functools.lru_cache(maxsize=32)
def pillow_weights(size: int, side: int) -> Float[np.ndarray, "S N"]:
  """Return the weight of each of `size` pixels in each of `side` new ones."""
  scale = size / side
  stretch = max(scale, 1.0)
  weights = np.zeros((side, size))
  for i in range(side):
    center = (i + 0.5) * scale
    first = max(int(center - 2 * stretch + 0.5), 0)
    last = min(int(center + 2 * stretch + 0.5), size)
    taps = cubic((np.arange(first, last) - center + 0.5) / stretch, -0.5)
    weights[i, first:last] = taps / taps.sum()
  return (np.round(weights * FIXED_POINT) / FIXED_POINT).astype(np.float32)


def cubic(x: Float[np.ndarray, "N"], a: float) -> Float[np.ndarray, "N"]:
  """Return Keys' cubic convolution kernel (Keys 1981, eq. 15), with support [-2, 2]."""
  x = np.abs(x)
  near = ((a + 2) * x - (a + 3)) * x**2 + 1
  far = a * (((x - 5) * x + 8) * x - 4)
  return np.where(x < 1, near, np.where(x < 2, far, 0.0))
