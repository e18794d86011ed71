"""The VAE's networks and observation models."""

import jax
import numpy as np
import pytest
from drawn_weights import drawn_weights
from numpy_draws import normal

from diffusion_jax.models import DECODERS, Bernoulli, ConvVAE, DiscretizedLogistic, Gaussian
from diffusion_jax.types import ImageSpec

SPEC = ImageSpec(8, 8, 1, 17, 10)


def test_encoder_and_decoder_have_the_shapes_they_promise():
  networks = ConvVAE(latent_dim=5, channels=8).create(SPEC, 2)
  params = drawn_weights(networks.init)
  assert set(params) == {"encoder", "decoder"}
  mean, log_var = jax.jit(networks.encode)(params, np.ones((3, 8, 8, 1), np.float32))
  assert mean.shape == log_var.shape == (3, 5)
  assert jax.jit(networks.decode)(params, mean).shape == (3, 8, 8, 2)


def test_spatial_latents_are_small_images():
  networks = ConvVAE(latent_channels=2, channels=8).create(SPEC, 2)
  assert networks.latent_shape == (4, 4, 2)
  params = drawn_weights(networks.init)
  mean, log_var = jax.jit(networks.encode)(params, np.ones((3, 8, 8, 1), np.float32))
  assert mean.shape == log_var.shape == (3, 4, 4, 2)
  assert jax.jit(networks.decode)(params, mean).shape == (3, 8, 8, 2)
  with pytest.raises(ValueError, match="latent_channels=0 must be at least 1"):
    ConvVAE(latent_channels=0)


def test_sides_that_cannot_be_halved_are_refused():
  with pytest.raises(ValueError, match="divisible by 4"):
    ConvVAE(multipliers=(1, 2, 2)).create(ImageSpec(6, 6, 1, 17, 0), 1)


def grid(num_levels):
  return np.linspace(-1.0, 1.0, num_levels, dtype=np.float32).reshape(-1, 1, 1, 1)


def log_prob(decoder, raw, x, num_levels):
  found = jax.jit(decoder.log_prob, static_argnums=2)(raw, x, num_levels)
  return np.asarray(found, np.float64)


@pytest.mark.parametrize("name", ["gaussian", "discretized_logistic"])
def test_probabilities_of_all_levels_sum_to_one(name):
  decoder = DECODERS[name]()
  raw = np.tile(np.float32([0.3, -1.2]), (17, 1, 1, 1))
  total = np.exp(log_prob(decoder, raw, grid(17), 17)).sum()
  np.testing.assert_allclose(total, 1.0, rtol=1e-5)


def test_bernoulli_probabilities_of_black_and_white_sum_to_one():
  raw = np.full((2, 1, 1, 1), 0.7, np.float32)
  total = np.exp(log_prob(Bernoulli(), raw, grid(2), 2)).sum()
  np.testing.assert_allclose(total, 1.0, rtol=1e-6)
  np.testing.assert_allclose(jax.jit(Bernoulli().mean)(raw), np.tanh(0.35), rtol=1e-6)


def test_log_probabilities_sum_over_all_pixels_and_channels():
  raw, x = normal(0, 2, 4, 4, 6), np.zeros((2, 4, 4, 3), np.float32)
  each = log_prob(DiscretizedLogistic(), raw, x, 17)
  mean, scale = (part.reshape(2, -1, 1, 1, 1) for part in np.split(raw, 2, axis=-1))
  pixels = np.concatenate([mean, scale], axis=-1).reshape(-1, 1, 1, 2)
  parts = log_prob(DiscretizedLogistic(), pixels, x.reshape(-1, 1, 1, 1), 17)
  np.testing.assert_allclose(each, parts.reshape(2, -1).sum(1), rtol=1e-5)


def test_a_fixed_deviation_needs_no_second_output():
  assert Gaussian(std=0.5).num_outputs(3) == 3
  assert Gaussian().num_outputs(3) == 6
  raw, x = np.zeros((1, 1, 1, 1), np.float32), np.full((1, 1, 1, 1), 0.25, np.float32)
  density = log_prob(Gaussian(std=0.5), raw, x, None)
  np.testing.assert_allclose(density, -0.5 * 0.25 - np.log(0.5 * np.sqrt(2 * np.pi)), rtol=1e-6)


def test_levels_that_each_decoder_counts():
  assert Bernoulli().num_levels(17) == 2
  assert Gaussian().num_levels(17) == 17
  assert Gaussian().num_levels(None) is None
  with pytest.raises(ValueError, match="use gaussian"):
    DiscretizedLogistic().num_levels(None)
