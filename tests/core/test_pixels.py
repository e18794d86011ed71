"""Grey levels, and randomness that belongs to an example."""

import jax
import numpy as np
import pytest

from diffusion_jax.core import rng
from diffusion_jax.core.pixels import NonFiniteImages, from_levels, to_uint8


def test_every_level_survives_the_round_trip():
  k = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
  assert (to_uint8(np.asarray(jax.jit(from_levels, static_argnums=1)(k, 256))) == k).all()


def test_rounding_is_to_the_nearest_level_and_clipped():
  x = (np.arange(256) + 0.4) / 127.5 - 1.0
  assert (to_uint8(x) == np.arange(256)).all()
  assert to_uint8(np.asarray([-3.0, 3.0])).tolist() == [0, 255]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_images_that_are_not_finite_become_no_picture(value):
  images = np.zeros((5, 2, 2, 1), np.float32)
  images[1, 0, 0, 0] = images[3, 1, 1, 0] = value
  with pytest.raises(NonFiniteImages, match=r"^2 of 5 images are not finite .*guidance\.weight"):
    to_uint8(images)


@pytest.mark.parametrize("num_levels", [2, 17, 256])
def test_levels_span_minus_one_to_one_evenly(num_levels):
  k = np.arange(num_levels, dtype=np.uint8).reshape(1, -1, 1, 1)
  x = np.asarray(jax.jit(from_levels, static_argnums=1)(k, num_levels)).ravel()
  np.testing.assert_allclose(x, np.linspace(-1, 1, num_levels), atol=1e-6)


def test_an_examples_noise_does_not_depend_on_its_batch():
  draw = jax.jit(lambda index: rng.normal(rng.example_keys(jax.random.key(3), index), (4, 4)))
  whole, part = np.asarray(draw(np.arange(8))), np.asarray(draw(np.asarray([5, 2])))
  assert (whole[[5, 2]] == part).all()
  assert len(np.unique(whole)) == whole.size


def test_noise_is_standard_normal_and_uniform_is_uniform():

  @jax.jit
  def draw(index):
    keys = rng.example_keys(jax.random.key(0), index)
    return rng.normal(keys, (50,)), rng.uniform(keys)

  noise, u = map(np.asarray, draw(np.arange(2000)))
  assert abs(noise.mean()) < 5 / np.sqrt(noise.size)
  assert abs(noise.var() - 1) < 5 * np.sqrt(2 / noise.size)
  assert abs(u.mean() - 0.5) < 5 / np.sqrt(12 * u.size)
  assert u.min() >= 0
  assert u.max() < 1
