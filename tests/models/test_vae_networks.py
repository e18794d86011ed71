"""The VAE's networks and observation models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.models import DECODERS, Bernoulli, ConvVAE, DiscretizedLogistic, Gaussian
from diffusion_jax.types import ImageSpec

SPEC = ImageSpec(8, 8, 1, 17, 10)


def test_encoder_and_decoder_have_the_shapes_they_promise():
  networks = ConvVAE(latent_dim=5, channels=8).create(SPEC, 2)
  params = jax.jit(networks.init)(jax.random.key(0))
  assert set(params) == {"encoder", "decoder"}
  mean, log_var = jax.jit(networks.encode)(params, jnp.ones((3, 8, 8, 1)))
  assert mean.shape == log_var.shape == (3, 5)
  assert jax.jit(networks.decode)(params, mean).shape == (3, 8, 8, 2)


def test_spatial_latents_are_small_images():
  networks = ConvVAE(latent_channels=2, channels=8).create(SPEC, 2)
  assert networks.latent_shape == (4, 4, 2)
  params = jax.jit(networks.init)(jax.random.key(0))
  mean, log_var = jax.jit(networks.encode)(params, jnp.ones((3, 8, 8, 1)))
  assert mean.shape == log_var.shape == (3, 4, 4, 2)
  assert jax.jit(networks.decode)(params, mean).shape == (3, 8, 8, 2)
  with pytest.raises(ValueError, match="latent_channels=0 must be at least 1"):
    ConvVAE(latent_channels=0)


def test_sides_that_cannot_be_halved_are_refused():
  with pytest.raises(ValueError, match="divisible by 4"):
    ConvVAE(multipliers=(1, 2, 2)).create(ImageSpec(6, 6, 1, 17, 0), 1)


def grid(num_levels):
  return jnp.linspace(-1.0, 1.0, num_levels).reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("name", ["gaussian", "discretized_logistic"])
def test_probabilities_of_all_levels_sum_to_one(name):
  decoder = DECODERS[name]()
  raw = jnp.tile(jnp.asarray([0.3, -1.2]), (17, 1, 1, 1))
  total = jnp.sum(jnp.exp(decoder.log_prob(raw, grid(17), 17)))
  np.testing.assert_allclose(total, 1.0, rtol=1e-5)


def test_bernoulli_probabilities_of_black_and_white_sum_to_one():
  raw = jnp.full((2, 1, 1, 1), 0.7)
  np.testing.assert_allclose(
    jnp.sum(jnp.exp(Bernoulli().log_prob(raw, grid(2), 2))), 1.0, rtol=1e-6
  )
  np.testing.assert_allclose(Bernoulli().mean(raw), np.tanh(0.35), rtol=1e-6)


def test_log_probabilities_sum_over_all_pixels_and_channels():
  raw = jax.random.normal(jax.random.key(0), (2, 4, 4, 6))
  x = jnp.zeros((2, 4, 4, 3))
  each = DiscretizedLogistic().log_prob(raw, x, 17)
  mean, scale = (np.asarray(part).reshape(2, -1) for part in jnp.split(raw, 2, axis=-1))
  parts = []
  for i in range(mean.shape[1]):
    one = jnp.stack([mean[:, i], scale[:, i]], axis=-1).reshape(2, 1, 1, 2)
    parts.append(DiscretizedLogistic().log_prob(one, x[:, :1, :1, :1], 17))
  np.testing.assert_allclose(each, sum(parts), rtol=1e-5)


def test_a_fixed_deviation_needs_no_second_output():
  assert Gaussian(std=0.5).num_outputs(3) == 3
  assert Gaussian().num_outputs(3) == 6
  raw, x = jnp.zeros((1, 1, 1, 1)), jnp.full((1, 1, 1, 1), 0.25)
  density = Gaussian(std=0.5).log_prob(raw, x, None)
  np.testing.assert_allclose(density, -0.5 * 0.25 - np.log(0.5 * np.sqrt(2 * np.pi)), rtol=1e-6)


def test_levels_that_each_decoder_counts():
  assert Bernoulli().num_levels(17) == 2
  assert Gaussian().num_levels(17) == 17
  assert Gaussian().num_levels(None) is None
  with pytest.raises(ValueError, match="use gaussian"):
    DiscretizedLogistic().num_levels(None)
