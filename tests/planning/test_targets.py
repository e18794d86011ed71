"""TPU slices by name, and the chips that they are made of."""

import importlib.util
import os

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import SingleDeviceSharding

from diffusion_jax.parallel import sharding
from diffusion_jax.planning import (
  DoesNotFit,
  find_chip,
  find_devices,
  image_spec,
  memory_limit,
  with_slices,
)
from diffusion_jax.planning.chips import CHIPS
from diffusion_jax.planning.compiled import attempt, take_apart
from diffusion_jax.planning.targets import ENVIRONMENT
from diffusion_jax.runs.experiment import build_experiment
from diffusion_jax.types import ImageSpec, UserError

needs_libtpu = pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None, reason="needs the extra 'plan'"
)


@pytest.fixture
def settings():
  """Puts back what a topology changes in this process."""
  before = {name: os.environ.get(name) for name in ENVIRONMENT}
  cached = jax.config.jax_enable_compilation_cache
  yield
  jax.config.update("jax_enable_compilation_cache", cached)
  for name, value in before.items():
    os.environ.pop(name, None)
    os.environ.update({} if value is None else {name: value})


@needs_libtpu
@pytest.mark.parametrize(
  ("topology", "num_devices", "chip"),
  [
    ("v2:2x2", 8, "TPU v2"),
    ("v3:2x2", 8, "TPU v3"),
    ("v4:2x2x1", 4, "TPU v4"),
    ("v4:2x2x4", 16, "TPU v4"),
    ("v5e:1x1", 1, "TPU v5e"),
    ("v5e:4x8", 32, "TPU v5e"),
    ("v5e:16x16", 256, "TPU v5e"),
    ("v5p:2x2x1", 4, "TPU v5p"),
    ("v6e:4x4", 16, "TPU v6e"),
    ("tpu7x:2x2x1", 8, "TPU 7x"),
  ],
)
def test_a_slice_has_its_devices_and_a_known_chip(settings, topology, num_devices, chip):
  devices = find_devices(topology)
  found = find_chip(devices[0].device_kind)
  assert (len(devices), found.name) == (num_devices, chip)
  assert memory_limit(devices[0], found) == found.memory_bytes
  assert sharding.create_mesh(sharding.MeshShape(), devices).size == num_devices
  chips = {tuple(d.coords) for d in devices}
  assert len(devices) == found.devices_per_chip * len(chips)


@needs_libtpu
@pytest.mark.parametrize(
  ("topology", "reason"),
  [
    ("v5e:3x3", "is not divisible by"),
    ("v9:2x2", "Invalid TPU external name"),
    ("v5e-16", "is invalid"),
    ("nonsense", "is invalid"),
  ],
)
def test_a_slice_that_does_not_exist(settings, topology, reason):
  with pytest.raises(UserError) as error:
    find_devices(topology)
  assert str(error.value).startswith(f"--topology={topology}: ")
  assert str(error.value).endswith(
    "write e.g. one of v5e:2x2, v5e:4x4, v6e:4x4, v5p:2x2x1, v4:2x2x1"
  )
  assert reason in str(error.value)
  assert "\n" not in str(error.value)


def lowered_for(device, function, *shapes, dtype=jnp.float32):
  """A function of arrays on one device that is not there."""
  place = SingleDeviceSharding(device)
  args = [jax.ShapeDtypeStruct(shape, dtype, sharding=place) for shape in shapes]
  return jax.jit(function, in_shardings=place, out_shardings=place).lower(*args)


@needs_libtpu
@pytest.mark.parametrize(
  "topology", ["v2:1x1", "v3:1x1", "v4:1x1x1", "v5e:1x1", "v5p:1x1x1", "v6e:1x1", "tpu7x:1x1x1"]
)
def test_the_table_has_the_memory_that_the_compiler_grants(settings, topology):
  device = find_devices(topology)[0]
  refused = attempt(lowered_for(device, lambda x: x + 1, (400, 2**28)), 4)
  assert isinstance(refused, DoesNotFit)
  assert refused.needed == 800 * 2**30  # 400 GiB read, as many written
  assert refused.available == find_chip(device.device_kind).memory_bytes


@needs_libtpu
def test_work_on_a_tpu(settings):
  """A product's bytes, and a loop whose length the TPU compiler does not write down."""
  device = find_devices("v5e:1x1")[0]
  product = lowered_for(device, jnp.matmul, (512, 256), (256, 512), dtype=jnp.bfloat16)
  done, _ = take_apart(product.compile())
  whole = 2 * (2 * 512 * 256 + 512 * 512)
  assert whole <= done.memory_bytes <= done.accessed_bytes <= 3 * whole  # with copies to the chip
  assert done.unknown_calls == ()

  def loop(x, w):
    return jax.lax.scan(lambda c, _: (jnp.sin(c @ w), None), x, length=9)[0]

  once, _ = take_apart(
    lowered_for(device, lambda x, w: jnp.sin(x @ w), *[(256, 256)] * 2).compile()
  )
  done, _ = take_apart(lowered_for(device, loop, (256, 256), (256, 256)).compile())
  assert done.unknown_loops == 0
  assert 8 * once.accessed_bytes < done.accessed_bytes < 14 * once.accessed_bytes


@needs_libtpu
def test_slices_of_one_topology(settings):
  devices = find_devices("v5e:2x2", 3)
  assert sorted(d.slice_index for d in devices) == [i // 4 for i in range(12)]
  mesh = sharding.create_mesh(sharding.MeshShape(-1, 2, dcn_data=-1), devices)
  assert dict(mesh.shape) == {"dcn_data": 3, "data": 2, "fsdp": 2, "tensor": 1}
  assert [{d.slice_index for d in part.ravel()} for part in mesh.devices] == [{0}, {1}, {2}]


def test_the_slices_of_a_plan_are_those_of_the_flag():
  experiment = build_experiment(BASE | {"generative": {"name": "vae"}, "data": {"name": "digits"}})
  assert with_slices(experiment, None) is experiment
  planned = with_slices(experiment, 2)
  assert (planned.mesh.dcn_data, experiment.mesh.dcn_data) == (2, 1)
  assert with_slices(planned, 2).mesh == planned.mesh
  with pytest.raises(UserError, match=r"--num_slices=3 differs from `mesh.dcn_data=2`"):
    with_slices(planned, 3)
  with pytest.raises(UserError, match="--num_slices=0 must be at least 1"):
    with_slices(experiment, 0)


def test_without_libtpu_the_message_says_what_to_install(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(UserError) as error:
    find_devices("v5e:2x2")
  assert str(error.value) == (
    "--topology=v5e:2x2 needs the TPU compiler: pip install 'diffusion_jax[plan]'"
  )


def test_a_cpu_is_an_unknown_chip():
  device = jax.devices()[0]
  assert find_chip(device.device_kind) is None
  assert memory_limit(device, None) is None


def test_a_device_that_knows_its_memory_is_believed():
  class Gpu:
    def memory_stats(self):
      return {"bytes_limit": 60 * 10**9}

  assert memory_limit(Gpu(), find_chip("NVIDIA H100 80GB HBM3")) == 60 * 10**9


def test_the_table_is_of_one_order_of_magnitude():
  """FLOPs a byte of memory traffic lie between 60 and 700 for all of these chips."""
  for kind, chip in CHIPS.items():
    assert 60 < chip.flops / chip.memory_bandwidth < 700, kind
    assert chip.link_bandwidth < chip.memory_bandwidth, kind
    assert 7e9 < chip.memory_bytes < 2e11, kind
    assert chip.dcn_bandwidth is None or chip.link_bandwidth / 100 < chip.dcn_bandwidth, kind
    assert chip.dcn_bandwidth is None or chip.dcn_bandwidth < chip.link_bandwidth / 5, kind


def data(**fields):
  return build_experiment({"generative": {"name": "vae"}, **BASE, "data": fields})


BASE = {
  "model": {"name": "conv_vae"},
  "decoder": {"name": "bernoulli"},
  "loss": {"name": "elbo"},
  "optimizer": {"name": "adam"},
}


@pytest.mark.parametrize(
  ("fields", "spec"),
  [
    ({"name": "digits"}, ImageSpec(8, 8, 1, 17, 10)),
    ({"name": "tfds", "dataset": "cifar100"}, ImageSpec(32, 32, 3, 256, 100)),
    (
      {"name": "tfds", "dataset": "mnist", "image_size": 32, "label_key": None},
      ImageSpec(32, 32, 1, 256, 0),
    ),
  ],
)
def test_the_images_of_a_data_section(fields, spec):
  assert image_spec(data(**fields), None, None) == spec


def test_images_by_flags():
  unknown = data(name="tfds", dataset="imagenet2012")
  assert image_spec(unknown, "64x48x3", 1000) == ImageSpec(64, 48, 3, 256, 1000)
  assert image_spec(unknown, "64x48x3", None) == ImageSpec(64, 48, 3, 256, 0)
  assert image_spec(data(name="digits"), None, 0).num_classes == 0


def test_images_that_are_not_known_without_their_data():
  for fields in ({"name": "tfds", "dataset": "imagenet2012"}, {"name": "folder", "path": "/none"}):
    with pytest.raises(UserError, match="not known without reading them; give its shape: --image="):
      image_spec(data(**fields), None, None)


@pytest.mark.parametrize("text", ["64", "64x64", "64x64x0", "ax3x3"])
def test_images_that_are_not_written_so(text):
  with pytest.raises(UserError, match=r"write HEIGHTxWIDTHxCHANNELS, e.g. --image=64x64x3"):
    image_spec(data(name="digits"), text, None)
