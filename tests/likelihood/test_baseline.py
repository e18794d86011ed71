"""The independent-pixel baseline by hand."""

import numpy as np
import pytest

from diffusion_jax.likelihood import (
  independent_binary_bits,
  independent_pixel_bits,
  pixel_histogram,
)

TRAIN = np.asarray([[0, 2], [0, 1], [1, 1]], np.uint8).reshape(3, 1, 2, 1)


def test_histogram_counts_each_pixel_with_one_added():
  p = pixel_histogram([TRAIN[:2], TRAIN[2:]], 3)
  np.testing.assert_allclose(p[0, 0, 0], [3 / 6, 2 / 6, 1 / 6])
  np.testing.assert_allclose(p[0, 1, 0], [1 / 6, 3 / 6, 2 / 6])


def test_bits_are_the_mean_surprise_over_all_pixels():
  test = np.asarray([[0, 0], [2, 1]], np.uint8).reshape(2, 1, 2, 1)
  expected = -np.mean(np.log2([3 / 6, 1 / 6, 1 / 6, 3 / 6]))
  assert independent_pixel_bits([TRAIN], [test[:1], test[1:]], 3) == pytest.approx(expected)


def test_uniform_pixels_cost_log2_of_the_levels():
  images = np.arange(17, dtype=np.uint8).repeat(10).reshape(-1, 1, 1, 1)
  assert independent_pixel_bits([images], [images], 17) == pytest.approx(np.log2(17))


def test_binary_bits_expect_over_the_binarisations():
  """P(on) of pixel 0 is (0*3 + 0.5*2 + 1*1)/6 = 1/3; level 1 of 0..2 is on half the time."""
  test = np.asarray([[1]], np.uint8).reshape(1, 1, 1, 1)
  expected = -0.5 * (np.log2(1 / 3) + np.log2(2 / 3))
  assert independent_binary_bits([TRAIN[:, :, :1]], [test], 3) == pytest.approx(expected)


def test_no_images_are_refused():
  with pytest.raises(ValueError, match="no images"):
    pixel_histogram([], 3)
