"""Gradient accumulation: each device sums its own microbatches, and all are summed once a step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from test_step import diffusion, images, two_steps

from diffusion_jax.core.trees import named_leaves
from diffusion_jax.models import DiT
from diffusion_jax.parallel import microbatches, sharding
from diffusion_jax.parallel.sharding import MeshShape, create_mesh
from diffusion_jax.planning import hlo
from diffusion_jax.planning.communication import KINDS, device_groups
from diffusion_jax.training import step
from diffusion_jax.training.ema import EMA
from diffusion_jax.training.optimizers import Adam
from diffusion_jax.training.step import Training
from diffusion_jax.types import Batch

SMALL = 100
"""Bytes of the sums of a microbatch's metrics, which are taken over the devices in the loop."""


def compiled_step(mesh, **optimizer):
  """(state, compiled step, its numbers) with dropout and four microbatches."""
  model, training = diffusion(), Training(batch_size=32, accumulation_steps=4)
  parts = (model, Adam(learning_rate=1e-2, **optimizer))
  init = step.make_init(*parts, training, EMA().names())
  layout = sharding.state_shardings(mesh, jax.eval_shape(init, np.uint32(0)))
  state = jax.jit(init, out_shardings=layout)(np.uint32(0))
  jitted = step.jit_train_step(
    step.make_train_step(*parts, EMA(), training, mesh), state, mesh
  )  # fmt: skip
  numbers = step.hyperparameters(*parts, EMA(), training)
  return state, jitted.lower(state, images(32), numbers).compile(), numbers


def one_step(mesh, **optimizer):
  """(metrics and parameters after a step, the compiled step)."""
  state, compiled, numbers = compiled_step(mesh, **optimizer)
  state, scalars = compiled(
    state, sharding.put_batch(images(32), mesh), sharding.put_everywhere(numbers, mesh)
  )
  values = {**scalars, **named_leaves(state.opt_state)}  # Adam divides by the gradient's size
  return {n: np.asarray(v) for n, v in values.items()}, compiled


def sums_in_loops(compiled, mesh=None):
  """Bytes of each collective that runs several times a step; with a mesh, between replicas."""
  module = hlo.parse_hlo(compiled.as_text())
  runs, _ = hlo.count_runs(module)
  return [
    hlo.num_bytes(i.shape)
    for name, run in runs.items() if run.times > 1
    for i in module.computations.get(name, {}).values()
    if i.opcode.removesuffix("-start") in KINDS
    and (mesh is None or crosses_replicas(i.attributes, mesh))
  ]  # fmt: skip


def crosses_replicas(attributes, mesh):
  size = mesh.shape["fsdp"] * mesh.shape["tensor"]
  groups = device_groups(attributes, mesh.size)
  return any(len({device // size for device in group}) > 1 for group in groups)


@functools.cache
def on_one_device():
  return one_step(create_mesh(MeshShape(), jax.devices()[:1]))[0]


@pytest.mark.costly
@pytest.mark.parametrize("shape", [MeshShape(), MeshShape(-1, 4), MeshShape(-1, 2, dcn_data=2)])
def test_devices_are_summed_once_a_step(shape):
  """The same draws, dropout too, and no sum of a gradient's size over replicas in the loop.

  The devices of a replica, over which fsdp splits the state, reduce each microbatch.
  """
  mesh = create_mesh(shape)
  values, compiled = one_step(mesh)
  assert sums_in_loops(compiled, mesh)
  assert max(sums_in_loops(compiled, mesh)) < SMALL
  assert (max(sums_in_loops(compiled)) > SMALL) == (mesh.shape["fsdp"] > 1)
  expected = on_one_device()
  assert values.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_allclose(values[name], value, rtol=1e-4, atol=1e-7, err_msg=name)


@pytest.mark.costly
def test_to_clip_a_microbatch_it_is_summed_over_the_devices():
  """Otherwise each device would clip what it has of it; so the test above can fail, too."""
  _, compiled, _ = compiled_step(create_mesh(MeshShape()), clip_scope="microbatch", clip_norm=1.0)
  assert max(sums_in_loops(compiled)) > SMALL


def test_a_sum_of_bfloat16_gradients_is_float32():
  """In bfloat16 a sum of ones stays at 256."""
  one = jnp.ones((), jnp.bfloat16)
  parts = Batch(*[np.zeros((512, 1), np.uint32)] * 4)
  mean, _, _ = step._accumulate(lambda aux, part: (aux, (one, {})), {}, parts)
  assert (float(mean), mean.dtype) == (1.0, jnp.float32)


def drawn(draw):
  """The draw of all examples, and that of four devices one after the other."""
  key, (num, size) = jax.random.key(3), (4, 6)
  own = [
    draw(microbatches._own_key(jax.random.key_data(key), jnp.uint32(i), num, size), size)
    for i in range(num)
  ]
  return draw(key, num * size), own


@pytest.mark.parametrize(
  "draw",
  [
    lambda key, size: jax.random.bernoulli(key, 0.3, (size, 5, 3)),
    lambda key, size: jax.random.normal(jax.random.fold_in(key, 7), (size, 2)),
    lambda key, size: jax.random.uniform(jax.random.split(key, 3)[1], (size,)),
    lambda key, size: jax.random.bits(key, (size * 2, 3), jnp.uint8),
  ],
  ids=["dropout", "of another key", "of a split key", "of patches"],
)
def test_a_device_draws_its_rows_of_the_whole_draw(draw):
  whole, own = drawn(draw)
  np.testing.assert_array_equal(whole, jnp.concatenate(own))


def test_a_draw_without_rows_is_the_same_on_all_devices():
  whole, own = drawn(lambda key, _: jax.random.uniform(key, (5,)))
  assert all((device == whole).all() for device in own)


def test_a_draw_of_more_than_32_bits_of_elements_goes_on_in_the_next_word(monkeypatch):
  """Counters have two words: device 1 of rows of 2^32 elements starts at (1, 0)."""
  seen = []
  monkeypatch.setattr(
    microbatches.prng.threefry2x32_p, "bind", lambda *args: seen.append(args[2:]) or args[3:1:-1]
  )
  monkeypatch.setattr(microbatches.math, "prod", lambda shape: 2**32)
  monkeypatch.setattr(
    microbatches.jax.lax, "iota", lambda kind, size: jnp.arange(3, dtype=jnp.uint32)
  )
  generator = microbatches._rows_of(2, 3)._impl
  generator.random_bits(jnp.asarray([0, 0, 1], jnp.uint32), 32, (3,))
  high, low = seen[0]
  assert (high.tolist(), low.tolist()) == ([1, 1, 1], [0, 1, 2])


def test_only_networks_with_copies_are_computed_on_each_device():
  """Other parameters, another number of rows, and outputs that are none take the usual way."""
  mesh, calls = create_mesh(MeshShape()), []
  params, other = {"w": jnp.ones((3, 2))}, {"w": jnp.ones((3, 2))}

  def apply(params, x):
    calls.append(x.shape[0])
    return jnp.sum(x @ params["w"]) if x.shape[0] < 3 else x @ params["w"]

  def lengths(params_used, rows):
    calls.clear()

    def traced(copies):
      with microbatches.computing_with(mesh, params, copies):
        return microbatches.apply_on_each_device(apply, params_used, jnp.ones((rows, 3)))

    shape = jax.eval_shape(lambda: traced(microbatches.copies_of(mesh, params)))
    return shape.shape, list(calls)

  assert lengths(params, 24) == ((24, 2), [3])
  assert lengths(other, 24) == ((24, 2), [24])
  assert lengths(params, 20) == ((20, 2), [20])
  assert lengths(params, 16) == ((16, 2), [2, 16])


def test_copies_take_the_layout_of_parameters_in_use_and_their_sums_that_of_the_state():
  mesh = create_mesh(MeshShape(2, 2, 2))
  name = "a/mlp_in/kernel"
  wide = {name: jnp.ones((32, 256)), "bias": jnp.ones(4)}
  copies = jax.jit(lambda: microbatches.copies_of(mesh, wide))()
  assert copies[name].sharding.spec == P("data", None, "tensor")
  assert copies["bias"].shape == (2, 4)
  assert {s.data.shape for s in copies["bias"].addressable_shards} == {(1, 4)}
  sums = jax.jit(lambda: microbatches.split_rows(mesh, copies))()
  assert sums[name].sharding.spec == P("data", "fsdp", "tensor")


@pytest.mark.costly
def test_stacked_layers_are_gathered_one_by_one_in_a_replica_too():
  """As in the whole step, and with the same results as on one device."""
  net = DiT(depth=4, hidden=64, heads=2, patch=4)
  one = create_mesh(MeshShape(), jax.devices()[:1])
  losses, params = two_steps(one, accumulation_steps=2, model=net)
  found, moved = two_steps(create_mesh(MeshShape(2, 4)), accumulation_steps=2, model=net)
  np.testing.assert_allclose(found, losses, rtol=2e-5)
  for name, value in params.items():
    np.testing.assert_allclose(moved[name], value, atol=1e-4, err_msg=name)
