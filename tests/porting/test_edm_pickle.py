"""EDM's pickles: names, buffers, recipes and what is refused; without PyTorch."""

import dataclasses
import functools
import math

import jax
import numpy as np
import pytest
from numpy_draws import normal
from torch_files import Raw, module_state, opcodes, parameter, persistent, pickled, plain_tensor

from diffusion_jax.core.trees import named_leaves
from diffusion_jax.models import UNet
from diffusion_jax.porting import edm_pickle
from diffusion_jax.porting.imported import experiment_of
from diffusion_jax.porting.layout import Content
from diffusion_jax.porting.opening import open_source
from diffusion_jax.porting.tensors import to_ours, to_theirs
from diffusion_jax.types import ImageSpec, UserError

COMMON = {"num_blocks": 1, "attention_resolutions": (4,), "resampling": "block"}
SONG = UNet(
  **COMMON, channels=16, multipliers=(2, 2), dropout=0.13, decoder_attention="last",
  skip_scale=math.sqrt(0.5), resample_projection=True, resample_filter=(1, 3, 3, 1),
  input_residual=True, embedding="fourier", noise_multiplier=2, label_embedding="one_hot",
  init="edm", augmentation_labels=9,
)  # fmt: skip
ADM = UNet(
  **COMMON, channels=64, multipliers=(1, 1), dropout=0.1, channels_per_head=64, adaptive_scale=True,
  embedding="positional_adm", init="adm", norm_epsilon=1e-5,
)  # fmt: skip
SPEC = ImageSpec(8, 8, 3, 256, 5)
FILTERS = ("model.enc.4x4_down.conv0.resample_filter", "model.dec.8x8_up.skip.resample_filter")


@functools.cache
def shapes_of(network):
  made = jax.eval_shape(network.create(SPEC, 6).init, jax.random.key(0))
  return {name: leaf.shape for name, leaf in named_leaves(made).items()}


def layout_of(network):
  return edm_pickle._layout_of(edm_pickle._Form(8, network is SONG, FILTERS))


def drawn(network):
  params = {name: normal(i, *shape) for i, (name, shape) in enumerate(shapes_of(network).items())}
  if network is ADM:
    params["label/embedding"][-1] = 0
  return params


def stored(network, params=None):
  shapes, layout = shapes_of(network), layout_of(network)
  params = params or {path: np.zeros(shape, np.float32) for path, shape in shapes.items()}
  return dict(layout.restored(to_theirs(layout.pairs(network, shapes), params), network, 5))


def facts(kind="EDMPrecond", network="SongUNet", **attributes):
  about = {
    "class_name": kind, "init_args": [], "init_kwargs": {"dropout": 0.13},
    "attributes": attributes, "modules": {"model": network, "model.enc": "ModuleDict"},
  }  # fmt: skip
  return {"ema": about}


def described(tensors, **facts):
  return edm_pickle.EDM_PICKLE.describe(Content(tensors, facts, None, "file"))


@pytest.mark.parametrize("network", [SONG, ADM], ids=["ncsn++", "adm"])
def test_every_parameter_has_a_place_and_comes_back_bit_by_bit(network):
  params, layout, shapes = drawn(network), layout_of(network), shapes_of(network)
  ordered = layout.prepared(stored(network, params), network, SPEC)
  back = to_ours(layout.pairs(network, shapes), ordered, shapes, "file")
  assert back.keys() == params.keys()
  for path, value in params.items():
    assert back[path].tobytes() == value.tobytes(), path


def test_names_and_shapes_are_those_of_edm():
  song = {name: array.shape for name, array in stored(SONG).items()}
  adm = {name: array.shape for name, array in stored(ADM).items()}
  assert song["model.enc.8x8_conv.weight"] == (16, 3, 3, 3)
  assert song["model.enc.4x4_aux_residual.weight"] == (32, 3, 3, 3)
  assert song["model.enc.4x4_down.skip.weight"] == (32, 32, 1, 1)
  assert song["model.enc.4x4_block0.qkv.weight"] == (96, 32, 1, 1)
  assert song["model.dec.4x4_in0.proj.weight"] == (32, 32, 1, 1)
  assert song["model.dec.4x4_in1.affine.weight"] == (32, 64)
  assert song["model.dec.8x8_up.conv0.weight"] == (32, 32, 3, 3)
  assert song["model.dec.8x8_aux_norm.bias"] == (32,)
  assert song["model.map_noise.freqs"] == (16,)
  assert song["model.map_label.weight"] == (32, 5)
  assert song["model.map_augment.weight"] == (32, 9)
  assert adm["model.map_label.weight"] == (256, 5)
  assert adm["model.out_conv.weight"] == (3, 64, 3, 3)
  assert adm["model.dec.4x4_block1.norm2.weight"] == (64,)
  assert "model.enc.4x4_down.skip.weight" not in adm


def test_the_filter_is_that_of_the_buffers():
  taps = np.asarray([1, 3, 3, 1], np.float32) / 8
  tensors = stored(SONG)
  for name in FILTERS:
    assert tensors[name].dtype == np.float32
    np.testing.assert_array_equal(tensors[name], np.outer(taps, taps)[None, None])
  tensors[FILTERS[0]] = tensors[FILTERS[0]] + np.float32(1e-3)
  with pytest.raises(UserError, match=r"4x4_down\.conv0\.resample_filter is another filter"):
    layout_of(SONG).prepared(tensors, SONG, SPEC)


@pytest.mark.parametrize("network", [SONG, ADM], ids=["ncsn++", "adm"])
def test_the_tensors_tell_the_network(network):
  kind = "SongUNet" if network is SONG else "DhariwalUNet"
  found = described(stored(network), **facts(network=kind))
  assert found.spec == SPEC
  section = {key: value for key, value in found.sections["model"].items() if key != "name"}
  assert UNet(**section) == dataclasses.replace(network, dropout=0.13)


@pytest.mark.parametrize(
  ("kind", "process", "prediction", "loss"),
  [
    ("EDMPrecond", {"name": "edm", "sigma_min": 0.002, "sigma_max": 80.0}, "edm", "edm"),
    ("VPPrecond", {"name": "vp", "beta_min": 0.1, "beta_max": 20.0, "min_time": 1e-5}, "eps",
     "simple"),
    ("iDDPMPrecond", {"name": "cosine_vp", "num_timesteps": 1000, "offset": 0.008,
     "max_beta": 0.999}, "eps", "hybrid"),
  ],
)  # fmt: skip
def test_preconditionings_are_processes(kind, process, prediction, loss):
  found = described(stored(SONG), **facts(kind)).sections
  assert found["process"] == process
  assert found["generative"]["prediction"] == prediction
  assert found["loss"]["name"] == loss


def test_the_pickles_own_numbers_are_taken():
  more = {
    "loss_fn": {"class_name": "EDMLoss", "attributes": {"P_mean": -0.8, "P_std": 1.6}},
    "augment_pipe": {"class_name": "AugmentPipe", "attributes": {"p": 0.15}},
  }
  about = facts(sigma_data=0.6, sigma_min=0.01, sigma_max=50, label_dropout=0.1)
  found = described(stored(SONG), **about, **more)
  assert found.sections["loss"] == {
    "name": "edm", "log_sigma_mean": -0.8, "log_sigma_std": 1.6, "sigma_data": 0.6,
  }  # fmt: skip
  assert found.sections["process"] == {"name": "edm", "sigma_min": 0.01, "sigma_max": 50.0}
  told = {"augmentation": 0.15, "sigma_data": 0.6, "label_dropout": 0.1, "conditional": True}
  assert told.items() <= found.sections["generative"].items()
  assert found.assumed == ("sampler.steps",)
  assert "generative.augmentation" in described(stored(SONG), **about).assumed
  assert "generative.prediction" in described(stored(SONG)).assumed


@pytest.mark.parametrize(
  ("about", "change", "said"),
  [
    (facts("VEPrecond"), None, "preconditioning VEPrecond is not supported; EDMPrecond, VPP"),
    (facts(network="UNet3D"), None, "network UNet3D is not supported; SongUNet and Dhariwal"),
    ({}, lambda t: t.pop("model.enc.8x8_conv.weight"), "no tensor model.enc.<side>x<side>_conv"),
    ({}, lambda t: t.pop("model.map_layer0.weight"), "has no tensor model.map_layer0.weight"),
    (
      {}, lambda t: t.update({"model.enc.4x4_aux_skip.weight": np.zeros(1)}),
      "skip encoders and decoders are not supported",
    ),
    (
      {}, lambda t: t.update({"model.enc.2x2_block0.conv1.weight": np.zeros((24, 1, 3, 3))}),
      r"no tensor model\.dec\.2x2_in0\.affine",
    ),
    (
      {}, lambda t: t.update({"model.enc.4x4_block999999999.conv1.weight": np.zeros(1)}),
      r"not the same blocks at all sides of \[8, 4\]",
    ),
    (
      {}, lambda t: t.update({"model.map_label.weight": np.float32(0)}),
      r"map_label\.weight has the shape \[\], this architecture needs 2 axes",
    ),
    (
      {}, lambda t: t.update({"model.enc.3x3_block0.conv1.weight": np.zeros((24, 1, 3, 3))}),
      r"blocks at the sides \[8, 4, 3\], not from 8 down",
    ),
  ],
)  # fmt: skip
def test_another_network_is_refused(about, change, said):
  tensors = stored(SONG)
  if change:
    change(tensors)
  with pytest.raises(UserError, match=said):
    described(tensors, **about)


def pickled_network(tensors, **attributes):
  """A pickle of nested persistent objects with these tensors."""
  tree = {}
  for name, array in tensors.items():
    node, (*path, leaf) = tree, name.split(".")
    for part in path:
      node = node.setdefault(part, {})
    node[leaf] = array

  def module(node, name, **more):
    arrays = {key: value for key, value in node.items() if not isinstance(value, dict)}
    parts = {key: value for key, value in node.items() if isinstance(value, dict)}
    buffers = {key: plain_tensor(arrays.pop(key)) for key in ("resample_filter", "freqs", "u")
               if key in arrays}  # fmt: skip
    return persistent(name, **module_state(
      {key: parameter(array) for key, array in arrays.items()}, buffers,
      {key: module(value, {"model": "SongUNet"}.get(key, "Part")) for key, value in parts.items()},
      **more,
    ))  # fmt: skip

  ema = module(tree, "EDMPrecond", _init_args=(), _init_kwargs={"dropout": 0.2}, **attributes)
  return pickled({"ema": Raw(opcodes(ema)), "dataset_kwargs": {"path": "cifar10.zip"}})


def test_a_pickle_of_persistent_objects_is_opened(tmp_path):
  tensors = stored(SONG)
  path = tmp_path / "network-snapshot-200000.pkl"
  path.write_bytes(pickled_network(tensors, sigma_data=0.5, sigma_min=0, sigma_max=math.inf))
  source = open_source(path)
  assert source.layout.name == source.origin["architecture"] == "edm"
  assert source.origin["group"] == "ema"
  assert source.tensors.keys() == tensors.keys()
  config = experiment_of(source, {}, []).to_dict()
  assert config["model"]["dropout"] == 0.2
  assert config["process"] == {"name": "edm", "sigma_min": 0.002, "sigma_max": 80.0}
  ordered = source.layout.prepared(source.tensors, SONG, SPEC)
  assert source.layout.restored(ordered, SONG, 5).keys() == tensors.keys()
