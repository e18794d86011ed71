"""Meshes over slices: devices with a fast network of their own, joined by a slower one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.parallel import sharding
from diffusion_jax.parallel.sharding import MeshShape, create_mesh
from diffusion_jax.parallel.slices import arrange_slices, count_slices
from diffusion_jax.types import UserError


@dataclasses.dataclass(frozen=True)
class Device:
  """A GPU or TPU that is not there."""

  id: int
  process_index: int
  slice_index: int
  platform: str = "gpu"
  device_kind: str = "none"


@dataclasses.dataclass(frozen=True)
class Unsliced:
  """A device that knows nothing of slices, as JAX's CPU devices."""

  id: int
  process_index: int
  platform: str = "cpu"
  device_kind: str = "none"


def cluster(slices, hosts, each, platform="gpu"):
  """Devices in a disorder of their numbers: those of the last slice come first."""
  numbers = [(s, h, d) for s in range(slices) for h in range(hosts) for d in range(each)]
  return [Device(i, s * hosts + h, s, platform) for i, (s, h, _) in enumerate(numbers)][::-1]


def test_the_axes_within_a_slice_never_cross_it():
  mesh = create_mesh(MeshShape(-1, 2, 2, dcn_data=2))
  assert dict(mesh.shape) == {"dcn_data": 2, "data": 1, "fsdp": 2, "tensor": 2}
  ids = np.vectorize(lambda d: d.id)(mesh.devices)
  assert [set(part.ravel().tolist()) for part in ids] == [{0, 1, 2, 3}, {4, 5, 6, 7}]
  assert sharding.num_batch_shards(mesh) == 4
  assert sharding.batch_axes(mesh) == ("dcn_data", "data", "fsdp")
  np.testing.assert_array_equal(sharding.local_rows(mesh, 8), np.arange(8))
  tree = {"wide": jax.ShapeDtypeStruct((64, 128), jnp.float32)}
  assert sharding.state_shardings(mesh, tree)["wide"].spec[1] == "fsdp"
  sent = sharding.put_rows(np.arange(8), mesh)
  assert [s.data.shape[0] for s in sent.addressable_shards] == [2] * 8


def test_one_slice_has_no_axis_of_its_own():
  for dcn_data in (1, -1):
    assert create_mesh(MeshShape(dcn_data=dcn_data)).axis_names == ("data", "fsdp", "tensor")


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_minus_one_takes_the_slices_that_the_devices_report(platform):
  assert count_slices(-1, cluster(3, 2, 2, platform)) == 3
  assert count_slices(-1, [Unsliced(i, i // 4) for i in range(8)]) == 1


def test_each_slice_of_the_devices_is_one_of_the_mesh():
  arranged = arrange_slices(2, (2, 2, 1), cluster(2, 2, 2))
  assert arranged.shape == (2, 2, 2, 1)
  assert [{d.slice_index for d in part.ravel()} for part in arranged] == [{0}, {1}]


@pytest.mark.parametrize(("num", "hosts"), [(2, [{0}, {1}]), (4, [{0}, {0}, {1}, {1}])])
def test_devices_without_slices_are_grouped_by_host_or_in_their_order(num, hosts):
  devices = [Unsliced(i, i // 4) for i in range(8)]
  arranged = arrange_slices(num, (8 // num, 1, 1), devices)
  assert [{d.process_index for d in part.ravel()} for part in arranged] == hosts


@pytest.mark.parametrize(
  ("asked", "devices", "words"),
  [
    (3, cluster(2, 2, 2), "8 device(s) of 2 slice(s); use `mesh.dcn_data=2`"),
    (1, cluster(2, 2, 2, "tpu"), "8 device(s) of 2 slice(s); use `mesh.dcn_data=2`"),
    (4, cluster(2, 2, 2, "tpu"), "8 device(s) of 2 slice(s)"),
    (2, cluster(1, 2, 4, "tpu"), "8 device(s) of 1 slice(s); use `mesh.dcn_data=1`"),
    (3, [Unsliced(i, i // 4) for i in range(8)], "8 device(s) of 2 host(s)"),
    (2, [Unsliced(i, i // 2) for i in range(6)], "6 device(s) of 3 host(s)"),
  ],
)
def test_slices_that_the_devices_are_not_in_are_refused(asked, devices, words):
  with pytest.raises(UserError) as error:
    count_slices(asked, devices)
  assert f"mesh.dcn_data={asked} does not fit {words}" in str(error.value)
  assert "\n" not in str(error.value)


def test_several_hosts_with_gpus_need_not_be_slices():
  assert count_slices(1, cluster(2, 2, 2)) == 1
  assert count_slices(2, cluster(4, 1, 2)) == 2


def test_a_mesh_that_does_not_fill_its_slices_says_so():
  with pytest.raises(UserError, match=r"mesh dcn_data=2, data=3, .* does not fit 8 device"):
    create_mesh(MeshShape(3, dcn_data=2))
  with pytest.raises(ValueError, match="dcn_data=0"):
    MeshShape(dcn_data=0)


def test_what_crosses_is_each_devices_part_of_the_sum_of_its_slice():
  """By hand: 4 MB of gradients; each of 4 devices of a slice sends its quarter to the other."""
  params = {"a": jax.ShapeDtypeStruct((1000, 1000), jnp.float32)}
  text = sharding.describe_slices(create_mesh(MeshShape(-1, 2, dcn_data=2)), params)
  assert text is not None
  assert text.startswith("2; only dcn_data spans them: gradients of 4.0 MB ")
  assert "sends 1.00 MB" in text
  mesh = create_mesh(MeshShape(dcn_data=4))  # 2 in a slice: 2 MB, three quarters of it twice
  assert "sends 3.00 MB" in (sharding.describe_slices(mesh, params) or "")
  assert "sends 9.00 MB" in (sharding.describe_slices(mesh, params, times=3) or "")
  assert sharding.describe_slices(create_mesh(MeshShape()), params) is None


def test_stacked_layers_send_what_they_send_one_by_one():
  """Also where fsdp splits them: what is summed within a slice is the whole gradient."""
  mesh = create_mesh(MeshShape(-1, 2, dcn_data=2))
  layer = {"kernel": jnp.zeros((500, 500))}
  apart = {f"block{i}": layer for i in range(4)}
  joined = {"stacked_block": {"kernel": jnp.zeros((4, 500, 500))}}
  assert sharding.describe_slices(mesh, joined) == sharding.describe_slices(mesh, apart)
