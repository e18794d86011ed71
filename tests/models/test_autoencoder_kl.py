"""The autoencoder KL: its published size, its shapes and what it refuses; nothing is compiled."""

import math

import jax
import numpy as np
import pytest

from diffusion_jax.core.trees import named_leaves
from diffusion_jax.models import VAES, AutoencoderKL, Gaussian
from diffusion_jax.types import ImageSpec

SPEC = ImageSpec(256, 256, 3, 256, 0)


def parameters_of(networks):
  return jax.eval_shape(networks.init, jax.random.key(0))


def test_the_published_number_of_parameters():
  """Stable Diffusion's AutoencoderKL, 83,653,863: the decoder's output is the image's mean."""
  assert Gaussian(std=0.1).num_outputs(3) == 3
  params = parameters_of(VAES["autoencoder_kl"]().create(SPEC, 3))
  shapes = {name: leaf.shape for name, leaf in named_leaves(params).items()}
  assert sum(math.prod(shape) for shape in shapes.values()) == 83_653_863
  assert shapes["encoder/quant/kernel"] == (8, 8)
  assert shapes["decoder/middle_attention/query/kernel"] == (512, 512)


def test_any_sides_that_the_factor_divides_have_smaller_latents():
  """Without attention and quant_conv, as some autoencoders after Stable Diffusion's."""
  config = AutoencoderKL(3, 32, (1, 1), 1, middle_attention=False, quant_conv=False)
  networks = config.create(ImageSpec(12, 6, 3, 256, 0), 3)
  params = parameters_of(networks)
  assert not [name for name in named_leaves(params) if "attention" in name or "quant" in name]
  assert networks.latent_shape == (6, 3, 3)
  mean, log_var = jax.eval_shape(networks.encode, params, np.zeros((2, 20, 14, 3), np.float32))
  assert mean.shape == log_var.shape == (2, 10, 7, 3)
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
