"""The mesh and how state and batches lie on it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from diffusion_jax import sharding
from diffusion_jax.sharding import MeshShape, create_mesh
from diffusion_jax.types import Batch, UserError


@pytest.mark.parametrize(
  ("shape", "sizes"),
  [(MeshShape(), (8, 1, 1)), (MeshShape(-1, 4), (2, 4, 1)), (MeshShape(4, -1), (4, 2, 1))],
)
def test_minus_one_takes_what_is_left(shape, sizes):
  mesh = create_mesh(shape)
  assert tuple(mesh.shape.values()) == sizes
  assert mesh.axis_names == ("data", "fsdp", "tensor")


@pytest.mark.parametrize("shape", [MeshShape(3, 1), MeshShape(-1, 3), MeshShape(16, 1)])
def test_a_mesh_that_does_not_fit_says_so(shape):
  with pytest.raises(UserError, match=r"does not fit 8 device.*--config.mesh.data=-1"):
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


def test_without_fsdp_everything_is_replicated():
  tree = {"wide": jax.ShapeDtypeStruct((64, 128), jnp.float32)}
  assert sharding.state_shardings(create_mesh(MeshShape()), tree)["wide"].spec == P()


def test_batch_size_errors_name_the_nearest_sizes():
  mesh = create_mesh(MeshShape())
  sharding.check_batch_size(16, mesh, 2, "training.batch_size")
  with pytest.raises(UserError, match=r"training.batch_size=100 .* 8 device.*=96 or .*=104"):
    sharding.check_batch_size(100, mesh, 1, "training.batch_size")
  with pytest.raises(UserError, match=r"8 device\(s\) x 4 microbatches; use .*=32$"):
    sharding.check_batch_size(8, mesh, 4, "training.batch_size")


def test_a_batch_goes_out_in_rows_and_comes_back_whole():
  mesh = create_mesh(MeshShape(2, 4))
  image = np.arange(16 * 4, dtype=np.uint8).reshape(16, 2, 2, 1)
  sent = sharding.put_batch(Batch(image, *(np.arange(16),) * 3), mesh)
  assert sent.image.dtype == np.uint8
  assert [s.data.shape[0] for s in sent.image.addressable_shards] == [2] * 8
  assert (sharding.fetch(sent.image) == image).all()
  assert (sharding.fetch(sharding.put_rows(image, mesh)) == image).all()
