"""Groups of the normalisation and padding of convolutions, and what they are for older runs."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from numpy_draws import normal

from diffusion_jax.core.config import parse_override
from diffusion_jax.models import AutoencoderKL, ConvVAE, UNet, VDMUNet
from diffusion_jax.models.layers import Conv3, Norm, num_groups
from diffusion_jax.runs.stored import (
  check_continues,
  load_experiment,
  stored_experiment,
  trained_experiment,
)
from diffusion_jax.types import UserError

ROOT = Path(__file__).parents[2]
ADDED = ("norm_groups", "downsample_padding", "time_scale")


@pytest.mark.parametrize("width", [32, 64])
def test_a_number_of_groups_holds_at_any_width(width):
  x = normal(0, 2, 4, 4, width)
  found = np.asarray(jax.jit(Norm(groups=32).init_with_output)(jax.random.key(0), x)[0])
  parts = x.reshape(2, 4, 4, 32, -1)
  centred = parts - parts.mean((1, 2, 4), keepdims=True)
  exact = centred / np.sqrt((centred**2).mean((1, 2, 4), keepdims=True) + 1e-6)
  np.testing.assert_allclose(found, exact.reshape(x.shape), atol=1e-5)


def test_without_a_number_it_is_a_quarter_of_the_width_and_at_most_32():
  found = [num_groups(width, None) for width in (2, 8, 20, 36, 128, 130, 512)]
  assert found == [1, 2, 5, 9, 32, 26, 32]


@pytest.mark.parametrize("config", [UNet, VDMUNet, ConvVAE, AutoencoderKL])
def test_every_network_takes_the_number_and_refuses_one_that_does_not_divide(config):
  assert config(channels=48, norm_groups=16).recipe.norm_groups == 16
  with pytest.raises(
    ValueError, match=r"norm_groups=32 must divide channels=48; use e\.g\. 24, or"
  ):
    config(channels=48, norm_groups=32)


def test_the_refusal_is_one_line_before_anything_starts():
  with pytest.raises(UserError) as raised:
    load("ddpm_digits", "--config.model.norm_groups=5")
  assert str(raised.value) == (
    "config.model: norm_groups=5 must divide channels=32; use e.g. 4, or none for a quarter of "
    "each width, at most 32"
  )


def load(name, *overrides):
  return load_experiment(f"{ROOT}/configs/{name}.py", [parse_override(o) for o in overrides])


@pytest.mark.parametrize(
  ("name", "groups"),
  [("ddpm_cifar", 32), ("iddpm_cifar", 32), ("vdm_cifar", 32),
   ("edm_cifar", 8), ("edm_cifar_cond", 8), ("flow_cifar", 8)],
)  # fmt: skip
def test_published_recipes_have_their_groups_at_a_width_of_32_too(name, groups):
  """DDPM, Improved DDPM and VDM have 32 at any width; EDM and score_sde a quarter of the width."""
  model = load(name, "--config.model.channels=32").sections["model"]
  assert num_groups(32, model.recipe.norm_groups) == groups
  full = load(name).sections["model"]
  assert num_groups(full.channels, full.recipe.norm_groups) == 32


@pytest.mark.parametrize("padding", [(0, 1), (1, 1)])
def test_a_convolution_of_stride_2_is_padded_as_asked(padding):
  """By hand: every second window of the image between zeros, 3 pixels a side."""
  x = normal(1, 2, 6, 4, 3)
  conv = Conv3(5, 2, padding=padding)
  found, params = jax.jit(conv.init_with_output)(jax.random.key(0), x)
  kernel = np.asarray(params["params"]["conv"]["kernel"])
  padded = np.pad(x, [(0, 0), padding, padding, (0, 0)])
  exact = np.zeros((2, 3, 2, 5))
  for row in range(3):
    for column in range(2):
      window = padded[:, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
      exact[:, row, column] = np.einsum("bijc,ijcd->bd", window, kernel)
  np.testing.assert_allclose(found, exact, atol=1e-5)


def stored(tmp_path, name, **began_with):
  """A run's folder of a version that did not know the new fields."""
  config = load(name).to_dict()
  config["model"] = {n: v for n, v in config["model"].items() if n not in ADDED} | began_with
  (tmp_path / "config.json").write_text(json.dumps(config))
  return tmp_path


@pytest.mark.parametrize("name", ["ddpm_cifar", "vdm_cifar", "edm_cifar", "ddpm_digits"])
def test_a_run_that_began_before_goes_on_where_the_network_is_the_same(tmp_path, name):
  assert check_continues(stored(tmp_path, name), load(name)) == []


def test_weights_of_a_run_that_began_before_keep_their_network(tmp_path):
  folder = stored(tmp_path, "iddpm_cifar")
  model = stored_experiment(folder, []).sections["model"]
  assert (model.norm_groups, model.downsample_padding, model.time_scale) == (None, (0, 1), 1.0)
  same = [parse_override("--config.model.norm_groups=32")]
  assert trained_experiment(folder, same).sections["model"].norm_groups == 32
  with pytest.raises(UserError, match=r"model\.norm_groups: 32 -> 16"):
    trained_experiment(folder, [parse_override("--config.model.norm_groups=16")])


@pytest.mark.parametrize(
  ("name", "flag", "began_with"),
  [
    ("iddpm_cifar", "--config.model.downsample_padding=0,1", {}),
    ("flow_cifar", "--config.model.init=ddpm", {"init": "ddpm"}),
    ("dit_imagenet64", "--config.model.time_scale=1.0", {}),
  ],
)
def test_a_recipe_that_was_corrected_says_how_an_older_run_goes_on(
  tmp_path, name, flag, began_with
):
  folder = stored(tmp_path, name, **began_with)
  with pytest.raises(UserError, match=rf"continue with its own settings \(`{flag[9:]}`\)"):
    check_continues(folder, load(name))
  assert check_continues(folder, load(name, flag)) == []
