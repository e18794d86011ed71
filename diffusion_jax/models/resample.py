"""Halve and double images with a separable filter, as sums of strided slices.

Source: Karras et al. 2022 (arXiv 2206.00364), appendix F.2 and table 7: [1, 1] for DDPM++ and ADM,
[1, 3, 3, 1] for NCSN++. Elementwise sums fuse with their neighbours; depthwise convolutions do not.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

FILTERS = ((1, 1), (1, 3, 3, 1))
"""The recipes' filters, symmetric and of even length, so that an image stays centred."""


def halve(
  x: Float[Array, "B H W C"], taps: tuple[int, ...], pad: bool = True
) -> Float[Array, "B H2 W2 C"]:
  """Filter, and keep every second pixel.

  Args:
    x: images of even sides.
    taps: one of FILTERS; normalised here to a sum of 1 per axis.
    pad: true to pad with zeros, so that sides halve; false to use only whole windows.
  """
  for axis in (1, 2):
    x = _halve_axis(x, taps, pad, axis)
  return x


def double(x: Float[Array, "B H W C"], taps: tuple[int, ...]) -> Float[Array, "B H2 W2 C"]:
  """Double the sides: put zeros between pixels and filter; constants keep their value.

  With [1, 1] this is nearest neighbour.

  Args:
    x: images.
    taps: one of FILTERS.
  """
  for axis in (1, 2):
    x = _double_axis(x, taps, axis)
  return x


def _pad(x: Array, size: int, axis: int) -> Array:
  return jnp.pad(x, [(size, size) if i == axis else (0, 0) for i in range(x.ndim)])


def _halve_axis(x: Array, taps: tuple[int, ...], pad: bool, axis: int) -> Array:
  x = _pad(x, len(taps) // 2 - 1, axis) if pad else x
  last = x.shape[axis] - len(taps)  # start of the last whole window
  slices = (lax.slice_in_dim(x, k, k + last + 1, 2, axis) for k in range(len(taps)))
  total = sum(taps)
  return sum(
    (tap / total * part for tap, part in zip(taps, slices, strict=True)), jnp.zeros((), x.dtype)
  )


def _double_axis(x: Array, taps: tuple[int, ...], axis: int) -> Array:
  size, half, total = x.shape[axis], len(taps) // 2, sum(taps) / 2
  padded = _pad(x, half, axis)

  def phase(r: int) -> Array:
    """Return the pixels 2 i + r: tap k acts on pixel i + (r + k - half) / 2 if whole."""
    summed = jnp.zeros((), x.dtype)
    for k in range((half - r) % 2, len(taps), 2):
      start = half + (r + k - half) // 2
      summed = summed + taps[k] / total * lax.slice_in_dim(padded, start, start + size, 1, axis)
    return summed

  both = jnp.stack([phase(0), phase(1)], axis=axis + 1)
  return both.reshape(*x.shape[:axis], 2 * size, *x.shape[axis + 1 :])
