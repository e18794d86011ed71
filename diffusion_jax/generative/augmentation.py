"""Non-leaking augmentation: flips and warps, with labels of them as network input.

Each image x gets, in this order, with u of probability 1/2 and n ~ N(0, 1), all drawn from its key:
  mirrored left to right      always eligible; label u
  mirrored top to bottom      label u
  scaled by 2^(scale n)       label n
  rotated by a ~ U(-pi, pi)   counterclockwise; labels cos a - 1, sin a
  stretched by 2^(aniso n) along an axis at angle b and by its inverse across it;
                              labels n cos b, n sin b; b ~ U(-pi, pi) or, half of the time, 0
  moved by (n, n') translation times width and height, right and down; labels n, n'
All but the first are applied with `probability` each. Labels of transformations that are not
applied are 0, so that a network with zero labels generates unaugmented images. Source: Karras et
al. 2022 (arXiv 2206.00364), appendix F.2, after Karras et al. 2020 (arXiv 2006.06676); the angle 0
of half of the stretches is only in their code.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffusion_jax.core import rng
from diffusion_jax.core.parts import Part
from diffusion_jax.core.rng import Stream
from diffusion_jax.types import Key, Keys

NUM_LABELS = 9
SYM6 = (
  0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633,
  0.4910559419267466, 0.787641141030194, 0.3379294217276218, -0.07263752278646252,
  -0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148,
)  # fmt: skip
"""Low-pass filter of Daubechies' least asymmetric wavelets with 6 vanishing moments.

Source: Daubechies 1992, Ten Lectures on Wavelets, table 6.3. Its even shifts are orthonormal.
"""
CENTRE = 5
"""Index of the filter tap at the pixel itself."""
MIN_SIZE = 4
"""Smallest image side in pixels: the filter reaches 3 pixels, within the mirror images."""


class Draws(NamedTuple):
  """Random numbers for the augmentation of one image; zeros leave the image unchanged.

  Attributes:
    flip_x, flip_y: 1 to mirror left to right, top to bottom.
    scale: n of the factor 2^(scale_std n).
    angle: angle of the rotation, radians counterclockwise.
    stretch: n of the stretch; axis: its angle in radians.
    move_x, move_y: shift right and down, divided by translation_std times width or height.
  """

  flip_x: Float[Array, ""]
  flip_y: Float[Array, ""]
  scale: Float[Array, ""]
  angle: Float[Array, ""]
  stretch: Float[Array, ""]
  axis: Float[Array, ""]
  move_x: Float[Array, ""]
  move_y: Float[Array, ""]


@dataclasses.dataclass(frozen=True)
class Augmentation(Part):
  """EDM's augmentation; its network needs model.augmentation_labels=9.

  Attributes:
    probability: probability of each transformation except the left-right mirror; EDM on CIFAR-10
      uses 0.12. 0: no augmentation at all.
    scale_std, stretch_std: standard deviation of the binary logarithm of the factors.
    translation_std: standard deviation of the shift divided by the image's side.
  """

  probability: float = 0.0
  scale_std: float = 0.2
  stretch_std: float = 0.2
  translation_std: float = 0.125

  def __post_init__(self):
    if min(self.scale_std, self.stretch_std, self.translation_std) < 0:
      raise ValueError("scale_std, stretch_std and translation_std must not be negative")
    if not 0 <= self.probability <= 1:
      raise ValueError(
        f"augmentation={self.probability} must be between 0 and 1; EDM has "
        "`generative.augmentation=0.12`"
      )

  def check(self, num_labels: int, image_size: int) -> None:
    """Check the network and the image size.

    Args:
      num_labels: number of augmentation labels that the network takes.
      image_size: the shorter side, in pixels.

    Raises:
      ValueError: one of them does not fit; the message has the setting to change.
    """
    needed = NUM_LABELS if self.probability else 0
    if num_labels != needed:
      raise ValueError(
        f"generative.augmentation={self.probability} needs a network with {needed} augmentation "
        f"labels, and this one has {num_labels}; set `model.augmentation_labels={needed}` "
        f"(unet has it) or `generative.augmentation={'0' if needed else '0.12'}`"
      )
    if needed and image_size < MIN_SIZE:
      raise ValueError(
        f"images of {image_size} pixels are too small to be warped, at least {MIN_SIZE} are "
        "needed; set `generative.augmentation=0` `model.augmentation_labels=0`"
      )

  def training(
    self, keys: Keys, x0: Float[Array, "B H W C"], train: bool
  ) -> tuple[Float[Array, "B H W C"], Float[Array, "B 9"] | None]:
    """Return augmented images and their labels in training, else the images and None."""
    if not train or not self.probability:
      return x0, None
    return self(rng.stream(keys, Stream.AUGMENTATION), x0)

  def __call__(
    self, keys: Keys, x: Float[Array, "B H W C"]
  ) -> tuple[Float[Array, "B H W C"], Float[Array, "B 9"]]:
    """Augment a batch; image i depends only on keys[i].

    Returns:
      The images and their labels.
    """
    draws = jax.vmap(functools.partial(draw_augmentation, self.probability))(keys)
    return jax.vmap(self.transform)(draws, x), jax.vmap(as_labels)(draws)

  def transform(self, draws: Draws, x: Float[Array, "H W C"]) -> Float[Array, "H W C"]:
    """Flip exactly, then resample once for all other parts; exact if there are none."""
    x = jnp.where(draws.flip_x > 0, x[:, ::-1], x)
    x = jnp.where(draws.flip_y > 0, x[::-1], x)
    matrix, shift = self._map(draws, x.shape[0], x.shape[1])
    rest = jnp.stack([draws.scale, draws.angle, draws.stretch, draws.move_x, draws.move_y])
    return jnp.where(jnp.any(rest != 0), warp(x, matrix, shift), x)

  def _map(self, draws: Draws, height: int, width: int):
    """Return the matrix and shift of the image, in (x, y) pixels from the centre with y down."""
    factor = jnp.exp2(self.scale_std * draws.scale)
    stretch = jnp.exp2(self.stretch_std * draws.stretch)
    along = _rotation(draws.axis)
    stretching = along @ jnp.diag(jnp.stack([stretch, 1 / stretch])) @ along.T
    shift = self.translation_std * jnp.stack([width * draws.move_x, height * draws.move_y])
    return stretching @ _rotation(draws.angle) * factor, shift


def draw_augmentation(probability: float, key: Key) -> Draws:
  """Draw the augmentation of one image; each group of numbers is applied independently."""
  keys = iter(jax.random.split(key, 10))
  coin = lambda p: jax.random.bernoulli(next(keys), p)  # noqa: E731
  angle = lambda: jax.random.uniform(next(keys), (), minval=-math.pi, maxval=math.pi)  # noqa: E731
  flips = [coin(0.5), coin(0.5 * probability)]
  scaled, turned, stretched, moved = (coin(probability) for _ in range(4))
  turn, axis = angle(), angle()
  numbers = jax.random.normal(next(keys), (4,))
  return Draws(
    *(flip.astype(jnp.float32) for flip in flips),
    scale=jnp.where(scaled, numbers[0], 0.0),
    angle=jnp.where(turned, turn, 0.0),
    stretch=jnp.where(stretched, numbers[1], 0.0),
    axis=jnp.where(stretched & coin(0.5), axis, 0.0),
    move_x=jnp.where(moved, numbers[2], 0.0),
    move_y=jnp.where(moved, numbers[3], 0.0),
  )


def as_labels(draws: Draws) -> Float[Array, "9"]:
  """Return the labels for the network; zeros for an unchanged image."""
  turn = (jnp.cos(draws.angle) - 1.0, jnp.sin(draws.angle))
  stretch = (draws.stretch * jnp.cos(draws.axis), draws.stretch * jnp.sin(draws.axis))
  moves = (draws.move_x, draws.move_y)
  return jnp.stack([draws.flip_x, draws.flip_y, draws.scale, *turn, *stretch, *moves])


def _rotation(angle: Float[Array, ""]) -> Float[Array, "2 2"]:
  """Return a rotation that looks counterclockwise, since y points down."""
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  return jnp.stack([jnp.stack([cos, sin]), jnp.stack([-sin, cos])])


def warp(
  x: Float[Array, "H W C"], matrix: Float[Array, "2 2"], shift: Float[Array, "2"]
) -> Float[Array, "H W C"]:
  """Move each point p of the image, relative to its centre, to matrix p + shift.

  This follows EDM's code. The image, with its mirror images beside it (edge pixels are not
  repeated) and zeros beyond them, is doubled by the wavelet filter, sampled linearly at twice the
  resolution, and halved by it. EDM's code pads only as far as some image of the batch reaches;
  here every image has its complete mirror images, so that it does not depend on others. Shifts by
  whole pixels are exact within that range. The interpolation is separable over the two axes, so all
  samples come from two matrix products, without a gather.

  Args:
    x: image of at least MIN_SIZE pixels per side.
    matrix, shift: map in (x, y) pixels, y down.
  """
  height, width, _ = x.shape
  inverse = jnp.linalg.inv(matrix)
  column, row = jnp.meshgrid(_sample_places(width), _sample_places(height))
  centre = jnp.asarray([(width - 1) / 2, (height - 1) / 2], jnp.float32)
  target = jnp.stack([column.ravel(), row.ravel()], axis=-1) - centre
  source = jnp.sum((target - shift)[:, None, :] * inverse, axis=-1) + centre
  across, down = _weights(source[:, 0], width), _weights(source[:, 1], height)
  lines = jnp.einsum("pi,jic->pjc", across, x, precision="highest")
  samples = jnp.einsum("pj,pjc->pc", down, lines, precision="highest")
  samples = samples.reshape(*column.shape, -1)
  lines = jnp.einsum("ya,abc->ybc", _halving(height), samples, precision="highest")
  return jnp.einsum("xb,ybc->yxc", _halving(width), lines, precision="highest")


def _sample_places(size: int) -> Float[np.ndarray, "S"]:
  """Return the positions of the two samples of each of `size` pixels, in pixels."""
  return (np.arange(2 * size + len(SYM6) - 2) - CENTRE) / 2


def _halving(size: int) -> Float[np.ndarray, "N S"]:
  """Return the filter at each of `size` pixels, over their samples."""
  places = np.arange(2 * size + len(SYM6) - 2) - 2 * np.arange(size)[:, None]
  inside = (places >= 0) & (places < len(SYM6))
  return np.where(inside, np.take(SYM6, places, mode="clip"), 0.0).astype(np.float32)


def _weights(positions: Float[Array, "P"], size: int) -> Float[Array, "P N"]:
  """Return the weight of each of `size` pixels at each position, linear between samples.

  Tap i of a pixel at k is at sample 2 k + i - CENTRE, also for its two mirror images. Samples go
  from the first pixel of the left mirror image to one after the last pixel of the right one.
  """
  pixel, last = np.arange(size), size - 1
  copies = ((pixel, pixel >= 0), (-pixel, pixel > 0), (2 * last - pixel, pixel < last))
  total = jnp.zeros((), positions.dtype)
  for position, there in copies:
    for i, tap in enumerate(SYM6):
      sample = 2 * position + i - CENTRE
      inside = there & (sample >= -2 * last) & (sample <= 4 * last + 1)
      near = jnp.maximum(1 - jnp.abs(2 * positions[:, None] - sample.astype(np.float32)), 0)
      total += np.float32(tap) * inside * near
  return total
