"""The resampling filters against SciPy's, and by their properties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn_weights import drawn_weights
from numpy_draws import normal
from scipy.signal import convolve2d, upfirdn

from diffusion_jax.models import resample
from diffusion_jax.models.layers import InputResidual
from diffusion_jax.models.resample import FILTERS

IMAGES = normal(0, 2, 6, 8, 3)


def halve(x, taps):
  return np.asarray(jax.jit(resample.halve, static_argnums=1)(x, taps))


def double(x, taps):
  return np.asarray(jax.jit(resample.double, static_argnums=1)(x, taps))


def along(function, x):
  """A one-dimensional function along both sides of images."""
  return np.apply_along_axis(function, 2, np.apply_along_axis(function, 1, x))


@pytest.mark.parametrize("taps", FILTERS)
def test_halve_filters_and_keeps_every_second(taps):
  pad, kernel = len(taps) // 2 - 1, np.array(taps) / sum(taps)

  def exact(line):
    return upfirdn(kernel, np.pad(line, pad))[len(taps) - 1 :][
      : len(line) - len(taps) + 2 * pad + 1
    ][::2]

  np.testing.assert_allclose(halve(IMAGES, taps), along(exact, IMAGES), atol=1e-6)


@pytest.mark.parametrize("taps", FILTERS)
def test_double_puts_zeros_between_and_filters(taps):
  start = len(taps) // 2 - 1

  def exact(line):
    return upfirdn(2 * np.array(taps) / sum(taps), line, up=2)[start : start + 2 * len(line)]

  np.testing.assert_allclose(double(IMAGES, taps), along(exact, IMAGES), atol=1e-6)


@pytest.mark.parametrize("taps", FILTERS)
def test_doubling_is_four_times_the_transpose_of_halving(taps):
  large = normal(1, 2, 12, 16, 3)
  left = np.sum(halve(large, taps) * IMAGES)
  np.testing.assert_allclose(np.sum(large * double(IMAGES, taps)), 4 * left, rtol=1e-4)


def test_the_box_is_the_mean_of_four_and_the_nearest_neighbour():
  blocks = IMAGES.reshape(2, 3, 2, 4, 2, 3).mean((2, 4))
  np.testing.assert_allclose(halve(IMAGES, (1, 1)), blocks, atol=1e-6)
  np.testing.assert_array_equal(double(IMAGES, (1, 1)), IMAGES.repeat(2, 1).repeat(2, 2))


@pytest.mark.parametrize("taps", FILTERS)
def test_an_image_stays_where_it_is_and_as_bright(taps):
  """Inside the border a constant stays the constant, and the centre of mass stays in place."""
  flat = np.ones((1, 8, 8, 1), np.float32)
  np.testing.assert_allclose(halve(flat, taps)[0, 1:-1, 1:-1], 1.0, rtol=1e-6)
  np.testing.assert_allclose(double(flat, taps)[0, 1:-1, 1:-1], 1.0, rtol=1e-6)
  line = np.zeros((1, 8, 8, 1), np.float32)
  line[:, 3:5] = 1  # its centre is the image's
  for found in (halve(line, taps), double(line, taps)):
    np.testing.assert_allclose(found, found[:, ::-1], atol=1e-6)


def test_the_type_is_kept():
  for taps in FILTERS:
    assert halve(np.asarray(IMAGES, jnp.bfloat16), taps).dtype == jnp.bfloat16
    assert double(np.asarray(IMAGES, jnp.bfloat16), taps).dtype == jnp.bfloat16


@pytest.mark.parametrize("taps", FILTERS)
def test_the_input_residual_is_one_fused_kernel(taps):
  """Convolution and filter are together one larger kernel with stride 2 over the padded image."""
  module, image = InputResidual(1, taps), IMAGES[..., :1]
  params = drawn_weights(module.init, image, std=0.3)
  kernel = params["params"]["conv"]["kernel"][:, :, 0, 0]
  fused = convolve2d(kernel[::-1, ::-1], np.outer(taps, taps) / sum(taps) ** 2)
  params["params"]["conv"]["bias"][:] = 0
  found = np.asarray(jax.jit(module.apply)(params, image))[0, :, :, 0]
  padded = np.pad(image[0, :, :, 0], len(taps) // 2)
  exact = convolve2d(padded, fused, mode="valid")[::2, ::2]
  np.testing.assert_allclose(found, exact, atol=1e-6)
