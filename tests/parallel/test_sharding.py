"""The mesh and how state and batches lie on it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from diffusion_jax.parallel import sharding
from diffusion_jax.parallel.sharding import MeshShape, create_mesh
from diffusion_jax.training.train_state import TrainState
from diffusion_jax.types import Batch, UserError


@pytest.mark.parametrize(
  ("shape", "sizes"),
  [
    (MeshShape(), (8, 1, 1)),
    (MeshShape(-1, 4), (2, 4, 1)),
    (MeshShape(4, -1), (4, 2, 1)),
    (MeshShape(-1, 2, 2), (2, 2, 2)),
    (MeshShape(1, 2, -1), (1, 2, 4)),
  ],
)
def test_minus_one_takes_what_is_left(shape, sizes):
  mesh = create_mesh(shape)
  assert tuple(mesh.shape.values()) == sizes
  assert mesh.axis_names == ("data", "fsdp", "tensor")


@pytest.mark.parametrize(
  "shape", [MeshShape(3, 1), MeshShape(-1, 3), MeshShape(16, 1), MeshShape(-1, 1, 16)]
)
def test_a_mesh_that_does_not_fit_says_so(shape):
  with pytest.raises(UserError, match=r"does not fit 8 device.*`mesh.data=-1`"):
    create_mesh(shape)


@pytest.mark.parametrize(("data", "fsdp"), [(-1, -1), (0, 1), (1, -2)])
def test_impossible_mesh_fields_are_refused(data, fsdp):
  with pytest.raises(ValueError, match="-1"):
    MeshShape(data, fsdp)


def test_fsdp_splits_the_largest_axis_that_divides_and_leaves_small_leaves_whole():
  mesh = create_mesh(MeshShape(2, 4))
  shapes = {"wide": (3, 3, 64, 128), "odd": (4097, 8), "small": (64, 8), "none": (4099, 3)}
  tree = {n: jax.ShapeDtypeStruct(s, jnp.float32) for n, s in shapes.items()}
  specs = {n: s.spec for n, s in sharding.state_shardings(mesh, tree).items()}
  assert specs == {
    "wide": P(None, None, None, "fsdp"),
    "odd": P(None, "fsdp"),
    "small": P(),
    "none": P(),
  }


def test_stacked_layers_are_split_as_each_of_them_and_never_between_them():
  """A layer too small to be split stays whole, however many there are."""
  shapes = {"kernel": (8, 64, 128), "bias": (8, 128), "flat": (8192, 4, 3)}
  tree = {n: jax.ShapeDtypeStruct(shape, jnp.float32) for n, shape in shapes.items()}
  mesh = create_mesh(MeshShape(1, 8))
  for made in (sharding.state_shardings, sharding.compute_shardings):
    specs = {n: s.spec for n, s in made(mesh, {"stacked_block": tree})["stacked_block"].items()}
    assert specs == {"kernel": P(None, None, "fsdp"), "bias": P(), "flat": P()}


def test_without_fsdp_everything_is_replicated():
  tree = {"wide": jax.ShapeDtypeStruct((64, 128), jnp.float32)}
  assert sharding.state_shardings(create_mesh(MeshShape()), tree)["wide"].spec == P()


def test_tensor_splits_wide_layers_and_fsdp_another_axis_of_them():
  mesh = create_mesh(MeshShape(2, 2, 2))
  shapes = {
    "up0_block1/conv1/conv/kernel": (3, 3, 512, 256),
    "up0_block1/conv1/conv/bias": (256,),
    "up0_block1/norm2/group/scale": (256,),
    "up0_block1/embed/kernel": (512, 256),
    "up0_block1/conv2/conv/kernel": (3, 3, 256, 256),
    "up0_block1/conv2/conv/bias": (256,),
    "middle_attention/query/kernel": (256, 256),
    "middle_attention/value/kernel": (256, 256),
    "middle_attention/out/kernel": (256, 256),
    "narrow/conv1/conv/kernel": (3, 3, 64, 64),
  }
  leaves = {n: jax.ShapeDtypeStruct(s, jnp.float32) for n, s in shapes.items()}
  tree = {"params": leaves, "opt_state": ({"mu": leaves},)}
  found = sharding.state_shardings(mesh, tree)
  specs = {n: tuple(s.spec) for n, s in found["params"].items()}
  assert specs == {
    "up0_block1/conv1/conv/kernel": (None, None, "fsdp", "tensor"),
    "up0_block1/conv1/conv/bias": ("tensor",),
    "up0_block1/norm2/group/scale": ("tensor",),
    "up0_block1/embed/kernel": ("fsdp", "tensor"),
    "up0_block1/conv2/conv/kernel": (None, None, "tensor", "fsdp"),
    "up0_block1/conv2/conv/bias": (),
    "middle_attention/query/kernel": ("fsdp", None),
    "middle_attention/value/kernel": ("fsdp", "tensor"),
    "middle_attention/out/kernel": ("tensor", "fsdp"),
    "narrow/conv1/conv/kernel": (None, None, "fsdp", None),
  }
  assert found["opt_state"][0]["mu"] == found["params"]
  computed = sharding.compute_shardings(mesh, tree)["params"]
  assert tuple(computed["up0_block1/conv1/conv/kernel"].spec) == (None, None, None, "tensor")
  assert not any(computed["middle_attention/query/kernel"].spec)


def test_the_layout_table_counts_bytes_by_hand():
  mesh = create_mesh(MeshShape(2, 4))
  tree = TrainState(
    step=jax.ShapeDtypeStruct((), jnp.int32),
    params={"wide": jax.ShapeDtypeStruct((64, 128), jnp.float32)},
    opt_state=({"mu": jax.ShapeDtypeStruct((4099, 3), jnp.float32)},),
    offsets={"ema": {"wide": jax.ShapeDtypeStruct((64, 128), jnp.float32)}},
    aux={}, num_skipped=jax.ShapeDtypeStruct((), jnp.int32),
    num_skipped_in_a_row=jax.ShapeDtypeStruct((), jnp.int32),
  )  # fmt: skip
  assert sharding.layout_rows(mesh, tree) == [
    ("other", "replicated", 3, 12, 12),
    ("params", "fsdp 4", 1, 32768, 8192),
    ("opt_state", "replicated", 1, 49188, 49188),
    ("ema", "fsdp 4", 1, 32768, 8192),
  ]
  total = 12 + 49188 + 2 * 32768
  assert sharding.describe_layout(mesh, tree)[-1].split() == [
    "total", "6", "0.1", "0.1", f"1/{total / (12 + 49188 + 2 * 8192):.2f}", "of", "the", "whole",
  ]  # fmt: skip
  shown = sharding.describe_preview(mesh, tree).split()
  assert shown[4:] == ["7", "0.1", "0.1", "and", "its", "images"]
  large = {"wide": jax.ShapeDtypeStruct((8000, 1000), jnp.float32)}  # 32 MB, 8 on a device
  both = tree._replace(params=large, offsets={"ema": large})
  assert sharding.describe_preview(mesh, both).split()[5:7] == ["96.0", "24.0"]
  whole = sharding.describe_layout(create_mesh(MeshShape()), tree)[-1]
  assert whole.split()[-2:] == ["the", "whole"]
  assert "1/" not in whole


def test_a_batch_of_a_tensor_mesh_is_split_among_groups():
  mesh = create_mesh(MeshShape(2, 2, 2))
  assert sharding.num_batch_shards(mesh) == 4
  assert sharding.round_up(5, mesh) == 8
  np.testing.assert_array_equal(sharding.local_rows(mesh, 8), np.arange(8))
  sharding.check_batch_size(4, mesh, 1, "training.batch_size")
  with pytest.raises(UserError, match=r"4 groups of 2 devices; use .*=4` or .*=8`"):
    sharding.check_batch_size(6, mesh, 1, "training.batch_size")
  sent = sharding.put_rows(np.arange(8), mesh)
  assert [s.data.shape[0] for s in sent.addressable_shards] == [2] * 8


def test_batch_size_errors_name_the_nearest_sizes():
  mesh = create_mesh(MeshShape())
  sharding.check_batch_size(16, mesh, 2, "training.batch_size")
  with pytest.raises(UserError, match=r"training.batch_size=100 .* 8 device.*=96` or .*=104`"):
    sharding.check_batch_size(100, mesh, 1, "training.batch_size")
  with pytest.raises(UserError, match=r"8 device\(s\) x 4 microbatches; use .*=32`$"):
    sharding.check_batch_size(8, mesh, 4, "training.batch_size")


def test_a_batch_goes_out_in_rows_and_comes_back_whole():
  mesh = create_mesh(MeshShape(2, 4))
  image = np.arange(16 * 4, dtype=np.uint8).reshape(16, 2, 2, 1)
  sent = sharding.put_batch(Batch(image, *(np.arange(16),) * 3), mesh)
  assert sent.image.dtype == np.uint8
  assert [s.data.shape[0] for s in sent.image.addressable_shards] == [2] * 8
  assert (sharding.fetch(sent.image) == image).all()
  assert (sharding.fetch(sharding.put_rows(image, mesh)) == image).all()
