"""The U-Nets of the published recipes: counts, places of attention, and what each option does.

The exact counts are sums by hand over the papers' tables: a block of i to o channels and embedding
e has 2 i + 9 i o + o + e o + o + 2 o + 9 o^2 + o parameters, i o + o more with a shortcut.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn_weights import drawn_weights
from numpy_draws import normal

from diffusion_jax.core.trees import named_leaves
from diffusion_jax.kernels.attention import attend
from diffusion_jax.models import UNet
from diffusion_jax.models.embeddings import FourierEmbedding
from diffusion_jax.models.layers import Attention, Recipe, Resample, ResBlock
from diffusion_jax.types import Condition, ImageSpec

pytestmark = pytest.mark.costly

CIFAR = ImageSpec(32, 32, 3, 256, 10)
IDDPM = UNet(
  num_blocks=3,
  attention_resolutions=(16, 8),
  dropout=0.3,
  num_heads=4,
  adaptive_scale=True,
  embedding="positional_adm",
  init="adm",
  norm_epsilon=1e-5,
  norm_groups=32,
  downsample_padding=(1, 1),
  learned_variance=True,
)
ADM = UNet(
  channels=192,
  multipliers=(1, 2, 3, 4),
  num_blocks=3,
  attention_resolutions=(32, 16, 8),
  channels_per_head=64,
  adaptive_scale=True,
  resampling="block",
  embedding="positional_adm",
  init="adm",
  norm_epsilon=1e-5,
  norm_groups=32,
)
DDPMPP = UNet(
  multipliers=(2, 2, 2),
  num_blocks=4,
  dropout=0.13,
  decoder_attention="last",
  skip_scale=math.sqrt(0.5),
  resampling="block",
  resample_projection=True,
  label_embedding="one_hot",
  init="edm",
)
NCSNPP = dataclasses.replace(
  DDPMPP,
  resample_filter=(1, 3, 3, 1),
  input_residual=True,
  embedding="fourier",
  noise_multiplier=2,
)
SMALL = {
  "channels": 16,
  "multipliers": (1, 2),
  "num_blocks": 1,
  "attention_resolutions": (8, 4),
  "norm_groups": None,
}
SPEC = ImageSpec(8, 8, 2, 256, 3)
TINY = {
  "iddpm": dataclasses.replace(IDDPM, **SMALL),
  "adm": dataclasses.replace(ADM, **SMALL, channels_per_head=8),
  "ddpm++": dataclasses.replace(DDPMPP, **SMALL),
  "ncsn++": dataclasses.replace(NCSNPP, **SMALL),
}


@functools.cache
def shapes(config, num_labels, spec=CIFAR):
  return named_leaves(jax.eval_shape(config.create(spec, num_labels).init, jax.random.key(0)))


def count(leaves):
  """Trained parameters: the frequencies of Fourier features are not."""
  return sum(leaf.size for name, leaf in leaves.items() if name != "fourier/frequencies")


@pytest.mark.parametrize(
  ("config", "num_labels", "exact", "published"),
  [
    (DDPMPP, 0, 55_732_739, 55.7),
    (DDPMPP, 11, 55_734_147, 55.7),
    (NCSNPP, 0, 56_395_523, 56.4),
    (NCSNPP, 11, 56_398_339, 56.4),
    (IDDPM, 0, 52_546_438, 52.5),
  ],
)
def test_a_recipe_has_the_published_number_of_parameters(config, num_labels, exact, published):
  found = count(shapes(config, num_labels))
  assert found == exact
  assert round(found / 1e6, 1) == published


def test_adm_for_64_pixels_has_the_published_number_of_parameters():
  """296M in table 7 of Karras et al. 2022, which has one vector for each of 1000 classes."""
  found = count(shapes(ADM, 1000, ImageSpec(64, 64, 3, 256, 1000)))
  assert found == 295_899_267
  assert round(found / 1e6) == 296


def test_edm_decodes_with_attention_in_the_last_block_only():
  places = {name.split("/")[0] for name in shapes(DDPMPP, 0) if "attention" in name}
  down = {f"down1_block{i}_attention" for i in range(4)}
  assert places == down | {"up1_block4_attention", "middle_attention"}


def test_the_residual_encoder_hands_its_sum_on():
  """The second residual comes from the first sum, of 256 channels, and not from the image."""
  found = shapes(NCSNPP, 0)
  assert found["down0_input/conv/kernel"].shape == (3, 3, 3, 256)
  assert found["down1_input/conv/kernel"].shape == (3, 3, 256, 256)


def test_names_of_the_default_network_are_those_of_stored_checkpoints():
  found = shapes(UNet(**SMALL), 4, SPEC)
  block = {n.split("/", 1)[1] for n in found if n.startswith("down1_block0/")}
  layers = ["norm1/group", "norm2/group", "conv1/conv", "conv2/conv", "embed", "shortcut"]
  leaves = {"norm1/group": "scale", "norm2/group": "scale"}
  assert block == {f"{n}/{leaves.get(n, 'kernel')}" for n in layers} | {f"{n}/bias" for n in layers}
  tops = "conv_in norm_out conv_out time1 time2 label middle_block0 middle_attention middle_block1"
  blocks = [f"{n}{i}" for n in ("down0_block", "down1_block") for i in range(1)]
  blocks += [f"{n}{i}" for n in ("up0_block", "up1_block") for i in range(2)]
  attention = [f"{n}_attention" for n in blocks]
  expected = {*tops.split(), *blocks, *attention, "down0_half", "up1_double"}
  assert {n.split("/")[0] for n in found} == expected


@pytest.fixture(scope="module", params=TINY)
def tiny(request):
  """A recipe, its compiled network and weights that are away from their start."""
  network = TINY[request.param].create(SPEC, 4)
  return TINY[request.param], jax.jit(network.apply), drawn_weights(network.init)


@pytest.fixture(scope="module", params=TINY)
def started(request):
  """A recipe and the weights it starts with; attention is in the middle only, to compile less."""
  network = dataclasses.replace(TINY[request.param], attention_resolutions=()).create(SPEC, 4)
  params = jax.jit(network.init)(jax.random.key(0))
  return TINY[request.param], named_leaves(jax.tree.map(np.asarray, params))


X = normal(5, 3, 8, 8, 2)
TIME, LABELS = np.float32([0.1, 0.7, 1.3]), np.int32([0, 1, 3])


def test_time_and_label_matter_and_examples_do_not_mix(tiny):
  config, apply, params = tiny
  out = np.asarray(apply(params, X, TIME, Condition(LABELS)))
  assert out.shape == (3, 8, 8, 4 if config.learned_variance else 2)
  alone = apply(params, X[[1, 1, 1]], TIME[[1, 1, 1]], Condition(LABELS[[1, 1, 1]]))
  np.testing.assert_allclose(alone, out[[1, 1, 1]], atol=2e-5 * np.std(out))
  assert np.abs(
    apply(params, X, TIME + np.float32(0.5), Condition(LABELS)) - out
  ).max() > 0.01 * np.std(out)
  assert np.abs(apply(params, X, TIME, Condition(LABELS * 0 + 2)) - out).max() > 0.01 * np.std(out)


def test_initial_weights_have_the_recipes_scale(started):
  config, leaves = started
  for name, value in leaves.items():
    if not name.endswith("kernel"):
      continue
    fan_in, fan_out = (math.prod(value.shape[:-2]) * n for n in value.shape[-2:])
    zero = any(n in name for n in ("conv2/", "conv_out/", "/out/"))
    qkv = any(n in name for n in ("query", "key", "value"))
    if config.init == "adm":
      bound = 0.0 if zero else fan_in**-0.5
    else:  # query, key and value are one layer there, of three times the outputs
      gain = 1e-5 if zero else math.sqrt(0.2) if qkv else 1.0
      bound = gain * math.sqrt(6 / (fan_in + (3 if qkv else 1) * fan_out))
    assert np.abs(value).max() <= bound * 1.0001, name
    spread = 5 * np.sqrt(0.8 / value.size)  # five standard errors of a uniform's variance
    assert abs(np.var(value) - bound**2 / 3) <= spread * bound**2 / 3, name


def test_biases_of_adm_start_as_those_of_torch_and_others_at_zero(started):
  config, leaves = started
  assert (leaves["conv_out/conv/bias"] == 0).all()
  bias, kernel = leaves["time2/bias"], leaves["time2/kernel"]
  if config.init != "adm":
    assert (bias == 0).all()
    return
  bound = kernel.shape[0] ** -0.5
  assert 0.8 * bound < np.abs(bias).max() <= bound
  assert np.var(bias) == pytest.approx(bound**2 / 3, rel=0.6)


def test_bfloat16_computes_near_float32_and_remat_changes_nothing(tiny):
  config, apply, params = tiny
  exact = np.asarray(apply(params, X, TIME, Condition(LABELS)))
  rough = dataclasses.replace(config, dtype="bfloat16", remat="block").create(SPEC, 4)
  found = jax.jit(rough.apply)(params, X, TIME, Condition(LABELS))
  assert found.dtype == jnp.bfloat16
  error = np.abs(np.asarray(found, np.float32) - exact).max() / np.abs(exact).max()
  assert 1e-5 < error < 0.1


@pytest.fixture(scope="module")
def smallest():
  """One level with Fourier features and one-hot labels, away from its start.

  Gives its compiled function, a gradient and output without labels, and weights.
  """
  config = dataclasses.replace(TINY["ncsn++"], multipliers=(1,), attention_resolutions=())
  network = config.create(SPEC, 4)

  def loss(params, x, time):
    out = network.apply(params, x, time, Condition(None))
    return jnp.sum(out**2), out

  gradient = jax.jit(jax.grad(loss, has_aux=True))
  return jax.jit(network.apply), gradient, drawn_weights(network.init)


def with_label_bias(params, bias):
  return {**params, "label": {**params["label"], "bias": bias}}


def test_the_null_class_of_one_hot_labels_is_no_label(smallest):
  apply, unlabelled, params = smallest
  assert params["label"]["kernel"].shape == (3, 32)
  params = with_label_bias(params, np.zeros(32, np.float32))
  null = apply(params, X, TIME, Condition(np.full(3, 3, np.int32)))
  np.testing.assert_allclose(null, unlabelled(params, X, TIME)[1], atol=1e-5)


def test_a_one_hot_label_counts_the_root_of_the_number_of_classes(smallest):
  """A class's row, times the root of 3, in the bias instead has the same effect."""
  apply, _, params = smallest
  label = params["label"]
  moved_there = with_label_bias(params, label["bias"] + np.float32(3**0.5) * label["kernel"][1])
  first, null = np.full(3, 1, np.int32), np.full(3, 3, np.int32)
  out = np.asarray(apply(params, X, TIME, Condition(first)))
  np.testing.assert_allclose(apply(moved_there, X, TIME, Condition(null)), out, atol=1e-5)
  assert np.abs(apply(params, X, TIME, Condition(null)) - out).max() > 1e-3


def test_fourier_features_are_their_formula_and_wide():
  embedding = FourierEmbedding(512)
  found, params = jax.jit(embedding.init_with_output)(jax.random.key(0), TIME)
  frequency = np.asarray(params["params"]["frequencies"])
  assert frequency.shape == (256,)
  assert np.std(frequency) == pytest.approx(16, rel=0.2)
  angle = 2 * np.pi * TIME[:, None] * frequency
  exact = np.concatenate([np.sin(angle), np.cos(angle)], axis=1)
  np.testing.assert_allclose(found, exact, atol=1e-3)


def test_fourier_frequencies_are_never_trained(smallest):
  _, unlabelled, params = smallest
  gradient = jax.tree.map(np.asarray, unlabelled(params, X, TIME)[0])
  assert (gradient["fourier"]["frequencies"] == 0).all()
  assert (gradient["time1"]["kernel"] != 0).all()


def test_adaptive_scale_is_a_change_of_the_second_norms_weights():
  """With scale a and shift b, norm(h) (1 + a) + b is a norm of weights g (1 + a), c (1 + a) + b."""
  x, embedding = jnp.asarray(normal(0, 2, 4, 4, 8)), jnp.asarray(np.ones((2, 6), np.float32))
  block = ResBlock(8, recipe=Recipe(adaptive_scale=True))
  params = drawn_weights(functools.partial(block.init, train=False), x, embedding)["params"]
  swish = np.float32(1 / (1 + np.exp(-1)))  # of one
  projected = swish * params["embed"]["kernel"].sum(0) + params["embed"]["bias"]
  scale, shift = projected[:8], projected[8:]
  plain = {name: value for name, value in params.items() if name != "embed"}
  norm = params["norm2"]["group"]
  plain["norm2"] = {
    "group": {"scale": norm["scale"] * (1 + scale), "bias": norm["bias"] * (1 + scale) + shift}
  }

  @jax.jit
  def outputs(params, plain, x, embedding):
    scaled = block.apply({"params": params}, x, embedding, False)
    return scaled, ResBlock(8).apply({"params": plain}, x, None, False)

  found, exact = outputs(params, plain, x, embedding)
  np.testing.assert_allclose(found, exact, atol=1e-5)


def test_a_block_starts_as_its_scaled_shortcut():
  """Exactly, where last convolutions start at zero; a resampling block's shortcut is the filter."""
  x = normal(0, 1, 4, 4, 8)
  recipe = dataclasses.replace(TINY["adm"].recipe, skip_scale=0.5)
  up, down = (Resample(d, (1, 1), projection=False) for d in ("up", "down"))

  @jax.jit
  def starts(key, x):
    start = lambda module, *args: module.init_with_output(key, x, *args)[0]  # noqa: E731
    resamples = (None, up, down)
    blocks = [ResBlock(8, recipe=recipe, resample=resample) for resample in resamples]
    return start(Attention(recipe=recipe)), *(start(block, None, False) for block in blocks)

  attention, block, doubled, halved = starts(jax.random.key(0), x)
  np.testing.assert_array_equal(block, 0.5 * x)
  np.testing.assert_array_equal(attention, 0.5 * x)
  np.testing.assert_array_equal(doubled, 0.5 * x.repeat(2, 1).repeat(2, 2))
  means = x.reshape(1, 2, 2, 2, 2, 8).mean((2, 4))
  np.testing.assert_allclose(halved, 0.5 * means, atol=1e-6)


@pytest.mark.parametrize("num_heads", [1, 2, 4])
def test_attention_is_a_softmax_average_of_each_heads_values(num_heads):
  rng = np.random.default_rng(0)
  query, key, value = rng.normal(size=(3, 2, 5, 8)).astype(np.float32)
  found = np.asarray(jax.jit(attend, static_argnums=3)(query, key, value, num_heads))
  size = 8 // num_heads
  for head in range(num_heads):
    part = slice(head * size, (head + 1) * size)
    for b in range(2):
      weights = np.exp(query[b, :, part] @ key[b, :, part].T / np.sqrt(size))
      weights /= weights.sum(1, keepdims=True)
      np.testing.assert_allclose(found[b, :, part], weights @ value[b, :, part], atol=1e-5)


@pytest.mark.parametrize(
  "fields",
  [
    {"resample_filter": (1, 2, 1)},
    {"skip_scale": 0.0},
    {"noise_multiplier": 0},
    {"num_heads": 0},
    {"num_heads": 2, "channels_per_head": 8},
    {"norm_groups": 48},
    {"norm_groups": 0},
    {"downsample_padding": (1, 0)},
    {"time_scale": 0.0},
  ],
)
def test_impossible_recipes_are_refused(fields):
  with pytest.raises(ValueError, match=next(iter(fields))):
    UNet(**fields)


def test_heads_that_do_not_divide_are_refused_only_where_there_is_attention():
  with pytest.raises(ValueError, match="num_heads=5 must divide the 16 channels"):
    UNet(**SMALL, num_heads=5).create(SPEC, 0)
  fields = SMALL | {"channels": 20, "multipliers": (1, 3), "attention_resolutions": ()}
  UNet(**fields, channels_per_head=30).create(SPEC, 0)
