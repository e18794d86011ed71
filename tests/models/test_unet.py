"""The U-Net is the published one: count, places of attention, initial weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn_weights import drawn_weights
from numpy_draws import normal

from diffusion_jax.core import shipped
from diffusion_jax.core.trees import named_leaves
from diffusion_jax.models import UNet
from diffusion_jax.models.embeddings import cosine_first_embedding, sinusoidal_embedding
from diffusion_jax.models.layers import Norm
from diffusion_jax.runs.stored import load_experiment
from diffusion_jax.types import Condition, ImageSpec

pytestmark = pytest.mark.costly

CIFAR = ImageSpec(32, 32, 3, 256, 10)
DDPM = UNet(
  channels=128, multipliers=(1, 2, 2, 2), num_blocks=2, attention_resolutions=(16,), dropout=0.1
)
SPEC = ImageSpec(8, 8, 1, 256, 3)
# Two levels, and one; attention is in the middle of both, and after all blocks of the second.
TINY = UNet(channels=64, multipliers=(1, 2), num_blocks=1, attention_resolutions=())
LEVEL = UNet(channels=16, multipliers=(1,), num_blocks=1, attention_resolutions=(8,), dropout=0.5)
X, TIME = normal(0, 3, 8, 8, 1), np.float32([0.0, 5.0, 9.0])


@pytest.fixture(scope="module")
def ddpm_shapes():
  return named_leaves(jax.eval_shape(DDPM.create(CIFAR, 0).init, jax.random.key(0)))


@pytest.fixture(scope="module")
def tiny():
  """The network of two levels and how its weights start, both compiled."""
  network = TINY.create(SPEC, 4)
  return jax.jit(network.apply), jax.jit(network.init)(jax.random.key(1))


@pytest.fixture(scope="module")
def level():
  """The network of one level, compiled, and weights that are away from their start."""
  network = LEVEL.create(SPEC, 0)
  return jax.jit(network.apply), drawn_weights(network.init, std=0.05)


def test_ddpm_cifar_has_the_published_number_of_parameters(ddpm_shapes):
  assert sum(leaf.size for leaf in ddpm_shapes.values()) == 35_746_307


def test_attention_sits_at_16_and_in_the_middle(ddpm_shapes):
  found = {name.split("/")[0] for name in ddpm_shapes if "attention" in name}
  down = {f"down1_block{i}_attention" for i in range(2)}
  up = {f"up1_block{i}_attention" for i in range(3)}
  assert found == down | up | {"middle_attention"}


def test_ddpm_cifar_normalises_over_32_groups_everywhere():
  for width in (128, 256, 384, 512):
    assert groups_of(width) == 32


def groups_of(width):
  """Groups that Norm makes: features of one group only are normalised to mean 0 together."""
  norm = Norm(jnp.dtype("float32"))
  x = normal(0, 1, 1, 1, width)
  y = np.asarray(jax.jit(norm.init_with_output)(jax.random.key(0), x)[0]).ravel()
  sizes = [n for n in range(1, width + 1) if width % n == 0]
  size = next(n for n in sizes if np.abs(y.reshape(-1, n).mean(1)).max() < 1e-5)
  return width // size


@pytest.mark.parametrize("width", [8, 12, 32, 64])
def test_a_group_holds_several_channels_at_any_width(width):
  assert width // groups_of(width) >= 4


@pytest.mark.parametrize("channels", [8, 16, 32])
def test_time_and_class_reach_the_output_at_any_width(channels):
  """Groups of one channel would remove what the embedding adds to it."""
  config = UNet(channels=channels, multipliers=(1,), num_blocks=1, attention_resolutions=())
  network = config.create(SPEC, 4)
  params, apply, x = drawn_weights(network.init), jax.jit(network.apply), normal(2, 1, 8, 8, 1)

  def output(time, label):
    return np.asarray(apply(params, x, np.float32([time]), Condition(np.int32([label]))))

  spread = np.std(output(500.0, 1))
  assert np.abs(output(500.0, 1) - output(30.0, 1)).max() > 0.03 * spread
  assert np.abs(output(500.0, 1) - output(500.0, 2)).max() > 0.03 * spread


def test_shortcuts_are_there_only_where_the_width_changes(ddpm_shapes):
  found = {name.split("/")[0] for name in ddpm_shapes if "shortcut" in name}
  assert found == {"down1_block0"} | {f"up{level}_block{i}" for level in range(4) for i in range(3)}


def test_initial_weights_have_the_recipes_scale(tiny):
  """Uniform with variance 1 / fan_avg; 1e-10 of it for second convs, attention out, last conv."""
  params = named_leaves(jax.tree.map(np.asarray, tiny[1]))
  for name, value in params.items():
    if name.endswith("bias"):
      assert (value == 0).all(), name
    if not name.endswith("kernel"):
      continue
    field = np.prod(value.shape[:-2])
    variance = 2 / (field * (value.shape[-2] + value.shape[-1]))
    zero = any(n in name for n in ("conv2/", "conv_out/", "out/", "proj"))
    variance *= 1e-10 if zero else 1.0
    assert abs(np.var(value) / variance - 1) < 5 * np.sqrt(0.8 / value.size), name
    assert np.abs(value).max() <= np.sqrt(3 * variance) * 1.0001, name


def test_the_output_starts_at_nearly_zero(tiny):
  apply, params = tiny
  out = np.asarray(apply(params, X, np.zeros(3, np.float32), Condition(np.zeros(3, np.int32))))
  assert 0 < np.abs(out).max() < 1e-3


def test_time_and_label_matter_and_examples_do_not_mix(tiny):
  apply, _ = tiny
  params = drawn_weights(TINY.create(SPEC, 4).init, std=0.05)
  labels = np.int32([0, 1, 3])
  out = np.asarray(apply(params, X, TIME, Condition(labels)))
  alone = apply(params, X[[1, 1, 1]], TIME[[1, 1, 1]], Condition(labels[[1, 1, 1]]))
  np.testing.assert_allclose(alone, out[[1, 1, 1]], atol=1e-5)
  assert np.abs(apply(params, X, TIME + 50, Condition(labels)) - out).max() > 1e-3
  assert np.abs(apply(params, X, TIME, Condition(labels * 0 + 2)) - out).max() > 1e-3


def test_dropout_acts_only_with_a_key(level):
  apply, params = level
  still = np.asarray(apply(params, X, TIME, Condition(None)))
  assert (np.asarray(apply(params, X, TIME, Condition(None))) == still).all()
  once = np.asarray(apply(params, X, TIME, Condition(None), jax.random.key(1)))
  assert np.abs(once - still).max() > 1e-3
  assert np.abs(apply(params, X, TIME, Condition(None), jax.random.key(2)) - once).max() > 1e-3


KEPT, AWAY = "dots_with_no_batch_dims_saveable", "offload_dot_with_no_batch_dims"


def loss_of(remat):
  network = dataclasses.replace(LEVEL, remat=remat).create(SPEC, 0)
  return lambda params: jnp.mean(
    network.apply(params, jnp.asarray(X), jnp.asarray(TIME), Condition(None)) ** 2
  )


@pytest.fixture(scope="module")
def plain_gradient(level):
  return jax.jit(jax.grad(loss_of("none")))(level[1])


@pytest.mark.parametrize("remat", ["block", KEPT])
def test_remat_changes_memory_not_gradients(level, plain_gradient, remat):
  rematted = jax.jit(jax.grad(loss_of(remat)))(level[1])
  assert jax.tree.structure(plain_gradient) == jax.tree.structure(rematted)
  for a, b in zip(jax.tree.leaves(plain_gradient), jax.tree.leaves(rematted), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_each_remat_policy_keeps_what_it_says(level):
  """Counted in the jaxpr of the gradient: what a policy saves is not computed a second time."""

  def convolutions(remat):
    return str(jax.make_jaxpr(jax.grad(loss_of(remat)))(level[1])).count("conv_general_dilated[")

  none, block, kept, away = (convolutions(r) for r in ("none", "block", KEPT, AWAY))
  assert none == kept == away < block


def test_bfloat16_computes_near_float32_with_float32_parameters(level):
  apply, params = level
  network = dataclasses.replace(LEVEL, dtype="bfloat16").create(SPEC, 0)
  start = jax.eval_shape(network.init, jax.random.key(0))
  assert {p.dtype for p in jax.tree.leaves(start)} == {jnp.dtype("float32")}
  exact = np.asarray(apply(params, X, TIME, Condition(None)))
  rough = np.asarray(jax.jit(network.apply)(params, X, TIME, Condition(None)), np.float32)
  error = np.abs(rough - exact).max() / np.abs(exact).max()
  assert 1e-5 < error < 0.1


def test_sinusoidal_embedding_is_its_formula():
  t = np.asarray([0.0, 1.0, 37.0, 999.0])
  frequency = 10000.0 ** (-np.arange(64) / 63)
  angle = t[:, None] * frequency
  exact = np.concatenate([np.sin(angle), np.cos(angle)], axis=1)
  found = jax.jit(sinusoidal_embedding, static_argnums=1)(t.astype(np.float32), 128)
  np.testing.assert_allclose(found, exact, atol=1e-4)


def test_cosine_first_embedding_is_its_formula():
  t = np.asarray([0.0, 1.0, 37.0, 999.0])
  angle = t[:, None] * 10000.0 ** (-np.arange(64) / 64)
  exact = np.concatenate([np.cos(angle), np.sin(angle)], axis=1)
  found = jax.jit(cosine_first_embedding, static_argnums=1)(t.astype(np.float32), 128)
  np.testing.assert_allclose(found, exact, atol=1e-4)


def test_sides_that_cannot_be_halved_are_refused():
  with pytest.raises(ValueError, match=r"3 times: multipliers=\(.*divisible by 8"):
    DDPM.create(ImageSpec(28, 28, 1, 256, 10), 0)


@pytest.mark.parametrize("fields", [{"multipliers": ()}, {"channels": 0}, {"dropout": 1.0}])
def test_impossible_networks_are_refused(fields):
  with pytest.raises(ValueError, match=next(iter(fields))):
    dataclasses.replace(TINY, **fields)


@pytest.mark.parametrize(
  ("resolutions", "words"),
  [
    ((16,), None),
    ((), None),
    ((16, 12), "`model.attention_resolutions=16,12`: no level of the network has side 12; its "
     "levels have 32, 16, 8"),
    ((15, 7), "`model.attention_resolutions=15,7`: no level of the network has side 15 or 7; its "
     "levels have 32, 16, 8, so attention is only in the middle"),
  ],
)  # fmt: skip
def test_attention_at_a_resolution_that_no_level_has_is_said(resolutions, words):
  model = UNet(channels=32, multipliers=(1, 2, 2), attention_resolutions=resolutions)
  assert model.warning(ImageSpec(32, 32, 3, 256, 0)) == words


def test_no_shipped_config_asks_for_attention_at_a_resolution_that_it_lacks():
  """The sizes of standard sets are known without their files."""
  for name in shipped.configs():
    parts = load_experiment(name, ())
    spec, warn = parts.data.known_spec(), getattr(parts.sections["model"], "warning", None)
    assert spec is None or warn is None or warn(spec) is None, name
