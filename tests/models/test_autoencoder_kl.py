"""The autoencoder KL: its published size, its shapes and what it refuses; nothing is compiled."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from diffusion_jax.core.trees import named_leaves
from diffusion_jax.models import VAES, AutoencoderKL, Gaussian
from diffusion_jax.types import ImageSpec

SPEC = ImageSpec(256, 256, 3, 256, 0)


def shapes_of(config, spec=SPEC, num_outputs=3):
  networks = config.create(spec, num_outputs)
  params = jax.eval_shape(networks.init, jax.random.key(0))
  return networks, {name: leaf.shape for name, leaf in named_leaves(params).items()}, params


def num_parameters(config, spec=SPEC):
  return sum(math.prod(shape) for shape in shapes_of(config, spec)[1].values())


def test_the_published_number_of_parameters():
  """Stable Diffusion's AutoencoderKL, 83,653,863: the decoder's output is the image's mean."""
  assert Gaussian(std=0.1).num_outputs(3) == 3
  assert num_parameters(VAES["autoencoder_kl"]()) == 83_653_863


def test_parts_that_stable_diffusion_3_and_others_leave_out():
  small, spec, width, latents = AutoencoderKL(4, 32, (1,), 1), ImageSpec(8, 8, 3, 256, 0), 32, 4
  attention = 2 * (4 * (width * width + width) + 2 * width)
  quant = (2 * latents) ** 2 + 2 * latents + latents**2 + latents
  changes = {"middle_attention": False, "quant_conv": False}
  bare = dataclasses.replace(small, **changes)
  assert num_parameters(small, spec) - num_parameters(bare, spec) == attention + quant


def test_any_sides_that_the_factor_divides_have_smaller_latents():
  config = AutoencoderKL(channels=32, multipliers=(1, 1), num_blocks=1)
  spec = ImageSpec(12, 6, 3, 256, 0)
  networks, _, params = shapes_of(config, spec)
  assert networks.latent_shape == (6, 3, 4)
  mean, log_var = jax.eval_shape(networks.encode, params, np.zeros((2, 20, 14, 3), np.float32))
  assert mean.shape == log_var.shape == (2, 10, 7, 4)
  assert mean.dtype == log_var.dtype == np.float32
  assert jax.eval_shape(networks.decode, params, mean).shape == (2, 20, 14, 3)


def test_sides_that_cannot_be_halved_are_refused():
  with pytest.raises(ValueError, match="divisible by 8"):
    AutoencoderKL().create(ImageSpec(28, 28, 3, 256, 0), 3)


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    ({"multipliers": ()}, "multipliers is empty"),
    ({"latent_channels": 0}, "must be at least 1"),
    ({"latent_scale": 0.0}, "latent_scale=0.0 must be positive"),
    ({"dropout": 1.0}, "dropout=1.0"),
    ({"channels": 48}, "norm_groups=32 must divide channels=48"),
  ],
)
def test_values_out_of_range_are_refused(changes, said):
  with pytest.raises(ValueError, match=said):
    AutoencoderKL(**changes)
