"""The network of variational diffusion models is the published one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_draws import moved, normal

from diffusion_jax.core.trees import named_leaves
from diffusion_jax.models import NETWORKS, VDMUNet
from diffusion_jax.models.embeddings import pixel_fourier_features
from diffusion_jax.types import Condition, ImageSpec

pytestmark = pytest.mark.costly

SPEC = ImageSpec(6, 5, 2, 256, 3)
TINY = VDMUNet(channels=16, num_blocks=2, time_scale=1000.0)
X = normal(5, 3, 6, 5, 2)
TIME, LABELS = np.float32([0.1, 0.5, 0.9]), np.int32([0, 1, 3])


@pytest.fixture(scope="module")
def shapes():
  network = NETWORKS["vdm_unet"]().create(ImageSpec(32, 32, 3, 256, 10), 0)
  return named_leaves(jax.eval_shape(network.init, jax.random.key(0)))


@pytest.fixture(scope="module")
def tiny():
  network = TINY.create(SPEC, 4)
  params = jax.tree.map(np.asarray, jax.jit(network.init)(jax.random.key(0)))
  return jax.jit(network.apply), params, moved(params)


def test_vdm_cifar_has_the_published_number_of_parameters(shapes):
  """By hand: 32 + 2 blocks of 361,216, 33 of 541,824, attention 66,304, the rest 349,827.

  The original's first dense layer has one input more, a constant: 512 weights.
  """
  found = sum(leaf.size for leaf in shapes.values())
  assert found == 34 * 361_216 + 33 * 541_824 + 66_304 + 349_827 == 30_577_667
  assert round(found / 1e6, 1) == 30.6


def test_attention_is_in_the_middle_only(shapes):
  assert {n.split("/")[0] for n in shapes if "query" in n} == {"middle_attention"}
  assert {n.split("/")[0] for n in shapes if "shortcut" in n} == {f"up{i}" for i in range(33)}


def test_it_starts_as_its_input_exactly(tiny):
  apply, params, _ = tiny
  np.testing.assert_array_equal(apply(params, X, TIME, Condition(LABELS)), X)
  zero = [n for n, v in named_leaves(params).items() if n.endswith("kernel") and not v.any()]
  kinds = {n.split("/", 1)[1] for n in zero}
  assert kinds == {"conv2/conv/kernel", "embed/kernel", "out/kernel", "conv/kernel"}
  assert [n for n in zero if n.count("/") == 2 and "conv/" in n and "conv2" not in n] == [
    "conv_out/conv/kernel"
  ]


def test_time_and_label_matter_and_examples_do_not_mix(tiny):
  apply, _, params = tiny
  out = np.asarray(apply(params, X, TIME, Condition(LABELS)))
  alone = apply(params, X[[1, 1, 1]], TIME[[1, 1, 1]], Condition(LABELS[[1, 1, 1]]))
  np.testing.assert_allclose(alone, out[[1, 1, 1]], atol=1e-4)
  assert np.abs(apply(params, X, TIME + np.float32(0.05), Condition(LABELS)) - out).max() > 1e-3
  assert np.abs(apply(params, X, TIME, Condition(LABELS * 0 + 2)) - out).max() > 1e-3


def test_the_time_is_multiplied_before_its_embedding(tiny):
  apply, _, params = tiny
  counting = jax.jit(dataclasses.replace(TINY, time_scale=1.0).create(SPEC, 4).apply)
  exact = np.asarray(apply(params, X, TIME, Condition(LABELS)))
  np.testing.assert_allclose(counting(params, X, 1000 * TIME, Condition(LABELS)), exact, atol=1e-4)
  assert np.abs(counting(params, X, TIME, Condition(LABELS)) - exact).max() > 1e-3


def test_dropout_acts_only_with_a_key_and_bfloat16_keeps_the_inputs_precision(tiny):
  apply, _, params = tiny
  out = np.asarray(apply(params, X, TIME, Condition(LABELS)))
  assert np.abs(apply(params, X, TIME, Condition(LABELS), jax.random.key(1)) - out).max() > 1e-3
  half = jax.jit(dataclasses.replace(TINY, dtype="bfloat16", remat="block").create(SPEC, 4).apply)
  rough = half(params, X, TIME, Condition(LABELS))
  assert rough.dtype == jnp.float32
  error = np.abs(rough - out).max() / np.abs(out - X).max()
  assert 1e-5 < error < 0.1


def test_pixel_features_tell_even_levels_from_odd_ones():
  """At level k, x is 2 (k + 1/2) / 256 - 1; 2^6 x is k / 2 + 1/4 and 2^7 x k + 1/2, less integers.

  So the first changes its sign from level to level, and the second tells how far a pixel is from
  the middle of its level.
  """
  level = np.arange(256) + np.array([[0.0], [0.1]])
  x = np.float32(2 * (level + 0.5) / 256 - 1).reshape(2, 16, 16, 1)
  found = jax.jit(pixel_fourier_features, static_argnums=1)(x, (6, 7))
  found = np.asarray(found).reshape(2, 256, 4)
  angle = 2 * np.pi * np.stack([level / 2 + 0.25, level + 0.5], axis=-1)
  np.testing.assert_allclose(found[..., :2], np.sin(angle), atol=1e-3)
  np.testing.assert_allclose(found[..., 2:], np.cos(angle), atol=1e-3)


@pytest.mark.parametrize("fields", [{"num_blocks": 0}, {"channels": 3}, {"dropout": 1.0}])
def test_impossible_networks_are_refused(fields):
  with pytest.raises(ValueError, match=next(iter(fields))):
    VDMUNet(**fields)
