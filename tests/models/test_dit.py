"""The diffusion transformer is the published one: counts, start, patches, positions."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn_weights import drawn_weights
from numpy_draws import moved, normal

from diffusion_jax.core.stacking import stack_layers, unstack_layers
from diffusion_jax.core.trees import named_leaves
from diffusion_jax.models import NETWORKS, DiT, dit
from diffusion_jax.models.dit import _layer_norm
from diffusion_jax.models.embeddings import cosine_first_embedding, position_embedding
from diffusion_jax.types import Condition, ImageSpec

LATENTS = ImageSpec(32, 32, 4, None, 1000)
SPEC = ImageSpec(8, 6, 2, 256, 3)
TINY = DiT(depth=2, hidden=24, heads=3, patch=2)
X = normal(5, 3, 8, 6, 2)
TIME, LABELS = np.float32([1.0, 50.0, 900.0]), np.int32([0, 1, 3])


@pytest.fixture(scope="module")
def tiny():
  """The compiled network, how its weights start, and weights that are away from there."""
  network = TINY.create(SPEC, 4)
  start = jax.tree.map(np.asarray, jax.jit(network.init)(jax.random.key(0)))
  return jax.jit(network.apply), start, moved(start)


@pytest.mark.parametrize(
  ("depth", "hidden", "heads", "exact", "published"),
  [
    (12, 384, 6, 32_865_056, 33),
    (12, 768, 12, 130_315_808, 130),
    (24, 1024, 16, 457_840_672, 458),
    (28, 1152, 16, 674_834_720, 675),
  ],
  ids=["S", "B", "L", "XL"],
)
def test_a_size_has_the_published_number_of_parameters(depth, hidden, heads, exact, published):
  """Table 1 of the paper, with patches of 2; by hand, a block has 18 d^2 + 15 d."""
  config = NETWORKS["dit"](depth=depth, hidden=hidden, heads=heads, learned_variance=True)
  network = config.create(LATENTS, 1001)
  found = sum(x.size for x in jax.tree.leaves(jax.eval_shape(network.init, jax.random.key(0))))
  assert found == exact
  assert round(found / 1e6) == published


def test_the_default_is_the_small_one():
  assert DiT() == DiT(depth=12, hidden=384, heads=6, patch=2)


def test_it_starts_at_exactly_zero_with_blocks_that_are_the_identity(tiny):
  apply, params, _ = tiny
  out = np.asarray(apply(params, X, TIME, Condition(LABELS)))
  assert out.shape == X.shape
  assert (out == 0).all()
  params = {**params, "patch_out": moved(params["patch_out"])}
  shallow = jax.jit(dataclasses.replace(TINY, depth=1).create(SPEC, 4).apply)
  first = {**params, "stacked_block": jax.tree.map(lambda x: x[:1], params["stacked_block"])}
  np.testing.assert_array_equal(
    apply(params, X, TIME, Condition(LABELS)), shallow(first, X, TIME, Condition(LABELS))
  )


def test_initial_weights_have_the_recipes_scale():
  """Of each block by itself; no two blocks start alike."""
  init = jax.jit(dataclasses.replace(TINY, hidden=96).create(SPEC, 4).init)
  params = jax.tree.map(np.asarray, unstack_layers(init(jax.random.key(1))))
  first, second = (params[f"block{i}"]["mlp_in"]["kernel"] for i in range(2))
  assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.05
  params = named_leaves(params)
  for name, value in params.items():
    if not name.endswith("kernel"):
      assert name == "label/embedding" or not value.any(), name
      continue
    fan_in, fan_out = value.shape
    fan_out *= 3 if any(n in name for n in ("query", "key", "value")) else 1
    zero = "modulation" in name or name.startswith("patch_out")
    variance = 2 / (fan_in + fan_out)
    variance = 0.0 if zero else 0.02**2 if name.startswith("time") else variance
    assert abs(np.var(value) - variance) <= 5 * np.sqrt(2 / value.size) * variance, name
  assert np.std(params["label/embedding"]) == pytest.approx(0.02, rel=0.2)


def test_patches_go_back_where_they_came_from(tiny):
  """Before any block acts, the output at a pixel depends on the pixels of its own patch alone."""
  apply, params, _ = tiny
  params = {**params, "patch_out": moved(params["patch_out"])}
  both = X[[0, 0, 0]]
  both[1, 5, 2, 1] += 1.0  # in the patch of rows 4, 5 and columns 2, 3
  out = np.asarray(apply(params, both, TIME[[0, 0, 0]], Condition(LABELS[[0, 0, 0]])))
  there = np.abs(out[1] - out[0]) > 1e-6
  assert there[4:6, 2:4].all()
  there[4:6, 2:4] = False
  assert not there.any()


def test_pixels_of_a_patch_keep_their_order():
  """Weights that copy: a token is its patch and minus its patch, so that its mean is zero.

  The norm of the last layer divides by the patch's root mean square.
  """
  network = dataclasses.replace(TINY, hidden=16, heads=2, depth=1).create(SPEC, 0)
  params = jax.tree.map(np.asarray, jax.jit(network.init)(jax.random.key(0)))
  params["patch_in"]["kernel"] = np.float32(1e4 * np.hstack([np.eye(8), -np.eye(8)]))
  params["patch_out"]["kernel"] = np.eye(16, 8, dtype=np.float32)
  out = np.asarray(jax.jit(network.apply)(params, X, TIME, Condition(None)))
  patches = X.reshape(3, 4, 2, 3, 2, 2)
  size = np.sqrt((patches**2).mean((2, 4, 5), keepdims=True))  # 1e4 drowns the positions
  np.testing.assert_allclose(out, (patches / size).reshape(X.shape), atol=2e-3)


def test_time_label_and_place_matter_and_examples_do_not_mix(tiny):
  apply, _, params = tiny
  out = np.asarray(apply(params, X, TIME, Condition(LABELS)))
  alone = apply(params, X[[1, 1, 1]], TIME[[1, 1, 1]], Condition(LABELS[[1, 1, 1]]))
  np.testing.assert_allclose(alone, out[[1, 1, 1]], atol=1e-4)
  assert np.abs(apply(params, X, TIME + 5, Condition(LABELS)) - out).max() > 1e-3
  assert np.abs(apply(params, X, TIME, Condition(LABELS * 0 + 2)) - out).max() > 1e-3
  rolled = apply(params, np.roll(X, 2, axis=1), TIME, Condition(LABELS))
  assert np.abs(np.roll(rolled, -2, axis=1) - out).max() > 1e-3
  changed = X.copy()
  changed[:, 0, 0] += 3.0
  far = apply(params, changed, TIME, Condition(LABELS))
  assert np.abs(far - out)[:, 6:, 4:].max() > 1e-4  # attention reaches the other corner


def test_positions_are_their_formula():
  found = position_embedding(2, 3, 8)
  frequency = np.array([1.0, 0.01])
  for row in range(2):
    for column in range(3):
      parts = [f(place * frequency) for place in (column, row) for f in (np.sin, np.cos)]
      np.testing.assert_allclose(found[3 * row + column], np.concatenate(parts), atol=1e-6)


@pytest.mark.parametrize("first", [0.0, 5.0, 100.0])
def test_layer_norm_is_accurate_at_a_mean_of_a_thousand_deviations(first):
  """Value and gradient in float32 against float64, also where one channel is far off."""
  x = 100 + np.float32(0.1) * normal(1, 3, 7, 96)
  x[..., 0] += np.float32(first)

  def textbook(x):
    centred = x - x.mean(-1, keepdims=True)
    return centred / jnp.sqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-6)

  def results(form, x, cotangent):
    value, pull = jax.vjp(form, x)
    return value, *pull(cotangent)

  cotangent = normal(2, *x.shape)
  # As users compile it: the tests' own flags round the anchor differently in value and gradient.
  usual = {"xla_backend_optimization_level": 3}
  run = jax.jit(functools.partial(results, _layer_norm), compiler_options=usual)
  found = run(x, cotangent)
  with jax.enable_x64(True):
    exact = jax.jit(functools.partial(results, textbook))(np.float64(x), np.float64(cotangent))
    exact = [np.asarray(value) for value in exact]
  for a, b in zip(found, exact, strict=True):
    assert np.sqrt(np.square(np.float64(a) - b).mean() / np.square(b).mean()) < 1e-6


def test_learned_variance_doubles_the_channels():
  network = dataclasses.replace(TINY, depth=1, learned_variance=True).create(SPEC, 4)
  out = np.asarray(jax.jit(network.apply)(drawn_weights(network.init), X, TIME, Condition(LABELS)))
  assert out.shape == (3, 8, 6, 4)
  assert (np.std(out, axis=(0, 1, 2)) > 0.01).all()


def test_a_transformer_of_sit_is_one_of_dit_that_counts_from_noise():
  """Its output is the negative of the first half of the channels, at the time from the data."""
  one = dataclasses.replace(TINY, depth=1)
  plain = dataclasses.replace(one, learned_variance=True).create(SPEC, 4)
  other = dataclasses.replace(one, from_noise=True, spare_outputs=True).create(SPEC, 4)
  params = drawn_weights(plain.init)
  expected = -np.asarray(jax.jit(plain.apply)(params, X, TIME, Condition(LABELS)))[..., :2]
  found = np.asarray(jax.jit(other.apply)(params, X, 999 - TIME, Condition(LABELS)))
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shift", [0, 1])
def test_frequencies_of_the_time_are_their_formula(shift):
  found = cosine_first_embedding(jnp.asarray(TIME), 8, shift)
  angles = TIME[:, None] / 10000 ** (np.arange(4) / (4 - shift))
  expected = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
  np.testing.assert_allclose(found, expected, atol=1e-4)


def gradient(remat, params, scan_blocks=True):
  """Of a network of two blocks."""
  network = dataclasses.replace(TINY, remat=remat, scan_blocks=scan_blocks).create(SPEC, 4)
  loss = lambda p, x, time: jnp.mean(network.apply(p, x, time, Condition(jnp.asarray(LABELS))) ** 2)  # noqa: E731
  return jax.jit(jax.grad(loss))(params, X, TIME)


@pytest.fixture(scope="module")
def plain_gradient(tiny):
  return gradient("none", tiny[2])


@pytest.mark.parametrize(
  "remat", ["block", "dots_with_no_batch_dims_saveable", "offload_dot_with_no_batch_dims"]
)
def test_remat_changes_memory_not_gradients(tiny, plain_gradient, remat):
  plain, rematted = plain_gradient, gradient(remat, tiny[2])
  for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(rematted), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("is_loop", [True, False])
def test_one_block_that_runs_twice_is_two_blocks(tiny, is_loop, monkeypatch):
  """Values and gradients; of many blocks the compiler is given one."""
  monkeypatch.setattr(dit, "MAX_UNROLLED", 0 if is_loop else 6)
  params = tiny[2]
  apply = jax.jit(lambda *args: TINY.create(SPEC, 4).apply(*args))
  given = (params, X, TIME, Condition(LABELS))
  assert ("stablehlo.while" in apply.lower(*given).as_text()) == is_loop
  network = dataclasses.replace(TINY, scan_blocks=False).create(SPEC, 4)
  apart = jax.tree.map(np.asarray, unstack_layers(params))
  out = jax.jit(network.apply)(apart, X, TIME, Condition(LABELS))
  np.testing.assert_allclose(apply(params, X, TIME, Condition(LABELS)), out, rtol=1e-4, atol=1e-5)
  wanted = stack_layers(gradient("none", apart, scan_blocks=False), ["block"])
  found = gradient("none", params)
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)

  def num_products(config):
    network = config.create(SPEC, 4)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    return str(jax.make_jaxpr(network.apply)(shapes, X, TIME, Condition(LABELS))).count("= dot_g")

  deep, deeper = (dataclasses.replace(TINY, depth=depth) for depth in (9, 12))
  assert num_products(deeper) == num_products(deep)
  apart = [dataclasses.replace(config, scan_blocks=False) for config in (deep, deeper)]
  assert num_products(apart[1]) - num_products(apart[0]) == 3 * 9  # of a block


def test_bfloat16_computes_near_float32_with_float32_parameters(tiny):
  apply, _, params = tiny
  network = dataclasses.replace(TINY, dtype="bfloat16").create(SPEC, 4)
  start = jax.eval_shape(network.init, jax.random.key(0))
  assert {p.dtype for p in jax.tree.leaves(start)} == {jnp.dtype("float32")}
  exact = np.asarray(apply(params, X, TIME, Condition(LABELS)))
  rough = np.asarray(jax.jit(network.apply)(params, X, TIME, Condition(LABELS)), np.float32)
  assert 1e-5 < np.abs(rough - exact).max() / np.abs(exact).max() < 0.1


def test_sides_that_cannot_be_cut_are_refused():
  with pytest.raises(ValueError, match=r"images of 8x6 .* patches of 4x4"):
    dataclasses.replace(TINY, patch=4).create(SPEC, 0)


@pytest.mark.parametrize(
  "fields",
  [
    {"depth": 0}, {"heads": 5}, {"hidden": 6}, {"time_scale": 0.0}, {"frequency_shift": 2},
    {"mlp_epsilon": 0.0}, {"spare_outputs": True, "learned_variance": True},
    {"from_noise": True, "learned_variance": True},
  ],
)  # fmt: skip
def test_impossible_networks_are_refused(fields):
  with pytest.raises(ValueError, match=next(iter(fields))):
    dataclasses.replace(TINY, **fields)
