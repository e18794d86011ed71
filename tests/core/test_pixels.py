"""Grey levels, and randomness that belongs to an example."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.core import rng
from diffusion_jax.core.pixels import NonFiniteImages, from_levels, to_uint8


def test_every_level_survives_the_round_trip():
  k = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
  assert (to_uint8(np.asarray(from_levels(jnp.asarray(k), 256))) == k).all()


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
  k = jnp.arange(num_levels, dtype=jnp.uint8).reshape(1, -1, 1, 1)
  x = np.asarray(from_levels(k, num_levels)).ravel()
  np.testing.assert_allclose(x, np.linspace(-1, 1, num_levels), atol=1e-6)


def test_an_examples_noise_does_not_depend_on_its_batch():
  key = jax.random.key(3)
  whole = rng.normal(rng.example_keys(key, jnp.arange(8)), (4, 4))
  part = rng.normal(rng.example_keys(key, jnp.asarray([5, 2])), (4, 4))
  assert (whole[jnp.asarray([5, 2])] == part).all()
  assert len(np.unique(np.asarray(whole))) == whole.size


def test_noise_is_standard_normal_and_uniform_is_uniform():
  keys = rng.example_keys(jax.random.key(0), jnp.arange(2000))
  noise, u = np.asarray(rng.normal(keys, (50,))), np.asarray(rng.uniform(keys))
  assert abs(noise.mean()) < 5 / np.sqrt(noise.size)
  assert abs(noise.var() - 1) < 5 * np.sqrt(2 / noise.size)
  assert abs(u.mean() - 0.5) < 5 / np.sqrt(12 * u.size)
  assert u.min() >= 0
  assert u.max() < 1
