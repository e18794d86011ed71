"""Networks of published recipes against the independent ones in diffusers (PyTorch)."""

import dataclasses

import jax
import numpy as np
import pytest

pytestmark = pytest.mark.reference
pytest.importorskip("torch")
pytest.importorskip("torch_fidelity")
diffusers_networks = pytest.importorskip("diffusers_networks")

from network_cases import CASES, FIXTURE, Case  # noqa: E402

from diffusion_jax.models import UNet  # noqa: E402
from diffusion_jax.types import Condition, ImageSpec  # noqa: E402

TIMES = np.float32([0, 17, 999])
DDPM_CIFAR = Case(
  UNet(norm_groups=32), ImageSpec(32, 32, 3, 256, 0), TIMES, TIMES, std=0.03
)  # fmt: skip


def difference(case, expected):
  """The largest one, over the deviation of the expected output."""
  found = jax.jit(case.create().apply)(
    case.own_params(), case.images(), case.time, Condition(case.labels)
  )
  return np.abs(np.asarray(found) - expected).max() / expected.std()


@pytest.fixture(scope="module")
def cifar():
  """DDPM's CIFAR-10 network and diffusers' of the same name, with the same weights."""
  return DDPM_CIFAR, diffusers_networks.counterpart(DDPM_CIFAR)


def test_the_ddpm_network_has_every_parameter_of_diffusers(cifar):
  case, theirs = cifar
  assert sum(p.numel() for p in theirs.parameters()) == 35_746_307
  assert sum(p.size for p in jax.tree.leaves(case.params())) == 35_746_307


def test_the_ddpm_network_computes_what_diffusers_computes(cifar):
  case, theirs = cifar
  assert difference(case, diffusers_networks.outputs(case, theirs)) < 1e-4


@pytest.mark.parametrize("name", CASES)
def test_a_small_network_of_each_recipe_computes_what_diffusers_computes(name):
  case = CASES[name]
  expected = diffusers_networks.outputs(case, diffusers_networks.counterpart(case))
  assert difference(case, expected) < 1e-4
  np.testing.assert_allclose(np.load(FIXTURE)[name], expected, atol=1e-4 * expected.std())


@pytest.mark.parametrize(
  ("name", "fields"),
  [
    ("ddpm", {"norm_groups": None}),
    ("iddpm", {"norm_groups": None}),
    ("iddpm", {"downsample_padding": (0, 1)}),
    ("sit", {"time_scale": 1.0}),
  ],
)
def test_each_setting_is_one_that_the_outputs_show(name, fields):
  other = CASES[name]._replace(config=dataclasses.replace(CASES[name].config, **fields))
  assert difference(other, np.load(FIXTURE)[name]) > 0.1
