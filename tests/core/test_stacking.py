"""Layers in one array and layers by themselves: there and back, also in an optimizer's state."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from diffusion_jax.core import stacking
from diffusion_jax.core.trees import named_leaves

DEPTH = 12  # so that block10 comes after block9, not after block1


def make_params():
  layer = lambda i: {"kernel": np.full((2, 3), i, np.float32), "bias": np.full(3, -i, np.float32)}  # noqa: E731
  return {f"block{i}": layer(i) for i in range(DEPTH)} | {"block_out": np.ones(2), "top": layer(5)}


def equal(one, other):
  assert jax.tree.structure(one) == jax.tree.structure(other)
  return all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True))


def test_layers_are_joined_in_the_order_of_their_numbers_and_taken_apart_again():
  state = {"params": make_params(), "opt": optax.adam(0.1).init(make_params())}
  made = stacking.stack_layers(state, ["block"])
  assert set(made["params"]) == {"stacked_block", "block_out", "top"}
  kernel = made["params"]["stacked_block"]["kernel"]
  np.testing.assert_array_equal(kernel[:, 0, 0], np.arange(DEPTH))
  assert made["opt"][0].mu["stacked_block"]["bias"].shape == (DEPTH, 3)
  assert equal(stacking.unstack_layers(made), state)


def test_other_names_are_left_alone():
  assert equal(stacking.stack_layers(make_params(), ["layer"]), make_params())
  assert equal(stacking.unstack_layers(make_params()), make_params())


@pytest.mark.parametrize(
  ("path", "shape", "own"),
  [
    ("params/stacked_block/mlp/bias", (4, 3), (3,)),
    ("opt_state/0/mu/stacked_block/kernel", (4, 3, 2), (3, 2)),
    ("params/block0/kernel", (3, 2), (3, 2)),
    ("params/unstacked_block/kernel", (3, 2), (3, 2)),
  ],
)
def test_the_shape_of_a_layer(path, shape, own):
  assert stacking.shape_of_layer(path, shape) == own


@pytest.mark.parametrize("stored_apart", [True, False])
def test_a_target_takes_the_form_that_is_stored_with_its_layout(stored_apart):
  mesh = jax.make_mesh((8,), ("fsdp",))
  apart, joined = make_params(), stacking.stack_layers(make_params(), ["block"])
  stored, wanted = (apart, joined) if stored_apart else (joined, apart)

  def with_layout(path, leaf):
    is_kernel = "kernel" in jax.tree_util.keystr(path)
    spec = P(*[None] * (leaf.ndim - 1), "fsdp") if is_kernel else P()
    return jax.ShapeDtypeStruct(leaf.shape, jnp.float32, sharding=NamedSharding(mesh, spec))

  target = jax.tree_util.tree_map_with_path(with_layout, wanted)
  found = stacking.as_stored(target, named_leaves(stored).keys())
  assert {n: x.shape for n, x in named_leaves(found).items()} == {
    n: x.shape for n, x in named_leaves(stored).items()
  }
  for name, leaf in named_leaves(found).items():
    assert ("fsdp" in leaf.sharding.spec) == ("kernel" in name), name
    assert leaf.sharding.spec[-1:] == (("fsdp",) if "kernel" in name else leaf.sharding.spec[-1:])


def test_a_target_that_is_stored_in_neither_form_is_returned_as_it_is():
  target = stacking.stack_layers(make_params(), ["block"])
  assert stacking.as_stored(target, ["params/kernel"]) is target
