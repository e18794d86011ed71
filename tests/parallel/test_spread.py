"""Parameters that stay split while images are drawn: what is gathered when, and the same images."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.core.config import parse_override
from diffusion_jax.data import About, ArraySource
from diffusion_jax.encode import encoder
from diffusion_jax.inference.draw import jit_sample, make_draw, make_inpaint, make_interpolate
from diffusion_jax.models import VAENetworks
from diffusion_jax.parallel import sharding
from diffusion_jax.parallel.sharding import MeshShape, create_mesh
from diffusion_jax.parallel.spread import gathering, spread_over
from diffusion_jax.runs.stored import load_experiment
from diffusion_jax.training.ema import EMA
from diffusion_jax.training.optimizers import Adam
from diffusion_jax.training.step import (
  Training,
  hyperparameters,
  jit_train_step,
  make_init,
  make_train_step,
)
from diffusion_jax.types import Batch, Condition, ImageSpec

ROWS = [((8, 8, 1), np.uint8), ((), np.int32), ((), np.float32), ((), np.uint32)]
PARAMS = {"a": np.ones((64, 64), np.float32), "b": np.ones((64, 64), np.float32), "c": np.ones(64)}
CONFIG = [
  "sampler.name=ddim",
  "sampler.steps=3",
  "generative.conditional=false",
  "guidance.weight=1.0",
]
EDITED = np.random.default_rng(1).uniform(-1, 1, (2, 5, 8, 8, 1)).astype(np.float32)
NETWORKS = {
  "mlp": ["model.name=mlp", "model.hidden=128", "model.depth=6"],
  "dit": ["model.name=dit", "model.hidden=128", "model.depth=8", "model.heads=4"],
}


def two_layers(params, x):
  return jnp.tanh(jnp.tanh(x @ params["a"] + params["c"]) @ params["b"])


def counted(function, *args):
  """Names of the equations of a traced function, in order."""
  return [eqn.primitive.name for eqn in jax.make_jaxpr(function)(*args).eqns]


def test_each_array_is_gathered_at_its_use_after_what_was_computed_before():
  x = np.ones((8, 64), np.float32)
  with spread_over(create_mesh(MeshShape(1, 8))):
    names = counted(gathering(two_layers), PARAMS, x)
  gather = ["optimization_barrier", "sharding_constraint"]
  first = names.index("dot_general")
  assert names[first - 2 : first] == gather
  second = names.index("dot_general", first + 1)
  assert names[second - 2 : second] == gather
  assert names.count("sharding_constraint") == 3


@pytest.mark.parametrize("mesh", [None, MeshShape(), MeshShape(4, 1, 2)])
def test_where_fsdp_splits_nothing_the_network_is_traced_as_it_is(mesh):
  x, plain = np.ones((8, 64), np.float32), counted(two_layers, PARAMS, np.ones((8, 64), np.float32))
  if mesh is None:
    assert counted(gathering(two_layers), PARAMS, x) == plain
    return
  with spread_over(create_mesh(mesh)):
    assert counted(gathering(two_layers), PARAMS, x) == plain


@pytest.mark.costly
def test_a_network_that_gathers_has_the_values_and_derivatives_of_the_network():
  """Also one that is jitted itself, and under vmap, as for images between two."""
  x = np.linspace(-1, 1, 64, dtype=np.float32)[None].repeat(8, 0)
  network = jax.jit(two_layers)
  params = {name: array / 64 for name, array in PARAMS.items()}

  def everything(function):
    value, change = jax.jvp(lambda x: function(params, x), (x,), (x,))
    mapped = jax.vmap(lambda x: function(params, x))(np.stack([x, 2 * x]))
    return value, change, mapped, jax.grad(lambda x: function(params, x).sum())(x)

  with spread_over(create_mesh(MeshShape(1, 8))):
    found, wanted = jax.jit(lambda: (everything(gathering(network)), everything(network)))()
  for mine, theirs in zip(found, wanted, strict=True):
    np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module", params=["mlp", "dit"])
def model(request):
  settings = CONFIG + NETWORKS[request.param]
  overrides = [parse_override(f"--config.{text}") for text in settings]
  experiment = load_experiment(f"{request.config.rootpath}/configs/smoke.py", overrides)
  return experiment.create(ImageSpec(8, 8, 1, 256, 10))


@pytest.mark.costly
@pytest.mark.parametrize("model", ["dit"], indirect=True)
def test_a_training_step_with_stacked_layers_never_holds_all_of_them(model):
  """Without rematerialisation too: each layer is gathered once forward and once backward."""
  mesh, optimizer = create_mesh(MeshShape(1, 8)), Adam()
  training = Training(batch_size=16)
  state = jax.eval_shape(make_init(model, optimizer, training), 0)
  state = sharding.as_target(state, sharding.state_shardings(mesh, state))
  batch = Batch(*(jax.ShapeDtypeStruct((16, *shape), kind) for shape, kind in ROWS))
  train_step = make_train_step(model, optimizer, EMA(), training, mesh)
  numbers = hyperparameters(model, optimizer, EMA(), training)
  compiled = jit_train_step(train_step, state, mesh).lower(state, batch, numbers).compile()
  layers = state.params["stacked_block"]
  whole = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(layers))
  assert compiled.memory_analysis().temp_size_in_bytes < whole
  gathered = re.findall(r"= f32\[([\d,]+)\]\S* all-gather(?:-start)?\(", compiled.as_text())
  sizes = [math.prod(map(int, shape.split(","))) for shape in gathered]
  split = [x for x in jax.tree.leaves(layers) if not x.sharding.is_fully_replicated]
  assert max(sizes) == max(x.size for x in split) // 8
  assert len([n for n in sizes if n >= 128 * 128]) >= 2 * len(split)


def with_noise(model):
  """Parameters whose last layer's zeros do not hide the others."""
  params, noise = jax.jit(lambda: model.init(jax.random.key(0))[0])(), np.random.default_rng(0)
  return jax.tree.map(lambda x: x + 0.02 * noise.standard_normal(x.shape, np.float32), params)


def placed(params):
  """Meshes of eight devices and of one, each with the parameters as it holds them."""
  mesh, one = create_mesh(MeshShape(1, 8)), create_mesh(MeshShape(), jax.devices()[:1])
  split = jax.device_put(params, sharding.state_shardings(mesh, params))
  assert not all(leaf.is_fully_replicated for leaf in jax.tree.leaves(split))
  return (mesh, split), (one, jax.device_put(params, jax.devices()[0]))


@pytest.mark.costly
def test_eight_devices_that_hold_an_eighth_each_draw_the_images_of_one(model):
  (mesh, split), (one, whole_params) = placed(with_noise(model))
  whole = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(split))
  drawn = make_draw(model, mesh, 8)(split, None, 8, 0)
  alone = make_draw(model, one, 8)(whole_params, None, 8, 0)
  assert np.ptp(alone) > 0.5
  np.testing.assert_allclose(drawn, alone, atol=1e-4)

  index = sharding.put_rows(np.arange(8, dtype=np.uint32), mesh)
  compiled = jit_sample(model, mesh).lower(split, 0, index, Condition()).compile()
  memory = compiled.memory_analysis()
  shares = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(split))
  assert shares < whole / 6
  assert memory.argument_size_in_bytes <= shares + 64
  assert memory.temp_size_in_bytes < whole / 3
  assert not re.search(r"= \S+ all-gather(-start)?\(", compiled.as_text().partition("ENTRY")[2])


@pytest.mark.costly
@pytest.mark.parametrize("model", ["mlp"], indirect=True)
def test_eight_devices_that_hold_an_eighth_each_edit_as_one_does(model):
  """Five images and pairs, which eight devices do not divide."""
  first, second = EDITED
  is_known = np.zeros(first.shape, bool)
  is_known[:, :, :4] = True
  found = [
    (
      make_inpaint(model, mesh)(params, None, 0, first, is_known),
      make_interpolate(model, mesh)(params, first, second, [0.25, 0.5]),
    )
    for mesh, params in placed(with_noise(model))
  ]
  for mine, alone in zip(*found, strict=True):
    assert np.ptp(alone) > 0.5
    np.testing.assert_allclose(mine, alone, atol=1e-4)


@pytest.mark.costly
def test_eight_devices_that_hold_an_eighth_each_encode_as_one_does():
  def encoded(params, x, dropout_key=None):
    latent = two_layers(params, x.reshape(len(x), 64))
    return latent[:, :32], latent[:, 32:]

  networks = VAENetworks(init=None, encode=encoded, decode=None, latent_shape=(32,))
  pixels = np.random.default_rng(2).integers(0, 256, (19, 8, 8, 1), np.uint8)
  source = ArraySource("digits train", pixels, None, 256, 0, About())
  found = []
  for mesh, params in placed({name: array / 64 for name, array in PARAMS.items()}):
    batches = encoder(networks, params, source.spec, mesh, 16)(source)
    found.append(np.concatenate([latents for latents, _ in batches]))
  assert found[0].shape == (19, 64)
  np.testing.assert_allclose(found[0], found[1], rtol=1e-5, atol=1e-6)
