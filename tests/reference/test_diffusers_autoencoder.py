"""diffusers' AutoencoderKL and CompVis' names with random weights, imported and exported again."""

import importlib
import json

import jax
import numpy as np
import pytest
from numpy_draws import normal

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from diffusion_jax.porting.imported import experiment_of  # noqa: E402
from diffusion_jax.porting.layout import (  # noqa: E402
  network_of,
  parameters_of,
  tensors_of_parameters,
)
from diffusion_jax.porting.opening import open_source  # noqa: E402

pytestmark = pytest.mark.reference
SMALL = {
  "sample_size": 16, "block_out_channels": (32, 64, 64), "layers_per_block": 2,
  "down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3,
  "norm_num_groups": 32, "scaling_factor": 0.37,
}  # fmt: skip
CASES = {
  "stable diffusion": {},
  "no quant_conv, as Stable Diffusion 3": {
    "use_quant_conv": False, "use_post_quant_conv": False, "latent_channels": 16,
  },
  "grey, no attention, groups of 8": {
    "in_channels": 1, "out_channels": 1, "mid_block_add_attention": False, "norm_num_groups": 8,
  },
}  # fmt: skip


def drawn(**changes):
  """diffusers' network with weights that make every layer matter."""
  network = diffusers.AutoencoderKL(**{**SMALL, **changes}).eval()
  state = {
    name: torch.from_numpy(normal(i, *value.shape) * (0.05 if value.ndim > 1 else 0.3))
    + float(name.endswith("weight") and value.ndim == 1)
    for i, (name, value) in enumerate(network.state_dict().items())
  }
  network.load_state_dict(state)
  return network


def opened(path, image_size=None):
  source = open_source(path, None, image_size)
  experiment = experiment_of(source, {}, ())
  spec = source.described.spec
  networks = experiment.sections["model"].create(spec, spec.channels)
  return source, experiment, networks, parameters_of(source, experiment)


def check_outputs(network, networks, params, spec):
  """Moments and images agree within 1e-4 of the deviation of diffusers' own."""
  images = normal(1, 2, *spec.shape)
  with torch.no_grad():
    posterior = network.encode(torch.from_numpy(images.transpose(0, 3, 1, 2))).latent_dist
    decoded = network.decode(posterior.mean).sample
  found = jax.jit(networks.encode)(params, images)
  images = jax.jit(networks.decode)(params, found[0])
  for ours, theirs in zip(
    (*found, images), (posterior.mean, posterior.logvar, decoded), strict=True
  ):
    expected = theirs.numpy().transpose(0, 2, 3, 1)
    deviation = expected.std()
    assert deviation > 0.05
    assert np.abs(ours - expected).max() < 1e-4 * deviation


def check_tensors(source, experiment, params, expected):
  tensors = tensors_of_parameters(source.layout, params, network_of(experiment), 0)
  assert tensors.keys() == expected.keys()
  for name, value in expected.items():
    assert tensors[name].tobytes() == np.asarray(value).tobytes(), name


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_a_folder_of_diffusers(changes, tmp_path):
  network = drawn(**changes)
  network.save_pretrained(tmp_path)
  source, experiment, networks, params = opened(tmp_path)
  assert experiment.sections["model"].latent_scale == 0.37
  check_outputs(network, networks, params, source.described.spec)
  check_tensors(source, experiment, params, network.state_dict())


def compvis_name(name):
  """The name that CompVis' code has for a tensor of diffusers, by the attributes of its modules."""
  net, *rest = name.split(".")
  if net in ("quant_conv", "post_quant_conv"):
    return name
  text = ".".join(rest)
  for i in range(3):
    text = text.replace(f"up_blocks.{i}.", f"up.{2 - i}.")
  for theirs, original in (
    ("down_blocks.", "down."), ("resnets.", "block."), ("downsamplers.0", "downsample"),
    ("upsamplers.0", "upsample"), ("mid_block.block.0", "mid.block_1"),
    ("mid_block.block.1", "mid.block_2"), ("mid_block.attentions.0", "mid.attn_1"),
    ("conv_norm_out", "norm_out"), ("conv_shortcut", "nin_shortcut"), ("group_norm", "norm"),
    ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out"),
  ):  # fmt: skip
    text = text.replace(theirs, original)
  return f"{net}.{text}"


@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
def test_a_checkpoint_of_compvis(prefix, tmp_path):
  network = drawn()
  tensors = {}
  for name, value in network.state_dict().items():
    original = compvis_name(name)
    pixel = "attn_1" in original and value.ndim == 2
    tensors[original] = (value[:, :, None, None] if pixel else value).clone()
  state = {prefix + name: value for name, value in tensors.items()}
  other = "model.diffusion_model.out.0.weight" if prefix else "loss.logvar"
  path = tmp_path / "kl.ckpt"
  torch.save({"state_dict": {**state, other: torch.zeros(3)}, "global_step": 7}, path)
  source, experiment, networks, params = opened(path, 16)
  check_outputs(network, networks, params, source.described.spec)
  check_tensors(source, experiment, params, tensors)


def test_old_names_and_a_single_file(tmp_path):
  """Attention's names before diffusers 0.15, which its own reader renames too."""
  network = drawn()
  network.save_pretrained(tmp_path / "vae", safe_serialization=False)
  path = tmp_path / "vae" / "diffusion_pytorch_model.bin"
  old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
  state = {}
  for name, value in torch.load(path).items():
    for new, before in old.items():
      name = name.replace(new, before)
    state[name] = value
  torch.save(state, path)
  again = diffusers.AutoencoderKL.from_pretrained(tmp_path / "vae")
  torch.save(state, tmp_path / "alone.bin")
  for source in (tmp_path / "vae", path, tmp_path / "alone.bin"):
    found, experiment, networks, params = opened(source, 16)
    check_tensors(found, experiment, params, again.state_dict())
    is_alone = source.name == "alone.bin"
    assert experiment.sections["model"].latent_scale == (None if is_alone else 0.37)
  check_outputs(again, networks, params, found.described.spec)


def test_the_programs_write_the_folder_that_they_read(tmp_path):
  network = drawn()
  network.save_pretrained(tmp_path / "theirs")
  run, out = tmp_path / "run", tmp_path / "ours"
  program("import", f"{tmp_path / 'theirs'}", f"--out={run}", "--image_size=32")
  program("export", f"--workdir={run}", "--format=diffusers", f"--out={out}")
  again = diffusers.AutoencoderKL.from_pretrained(out)
  for name, value in network.state_dict().items():
    assert torch.equal(again.state_dict()[name], value), name
  assert again.config.scaling_factor == 0.37
  assert again.config.sample_size == 32
  stored = json.loads((tmp_path / "theirs" / "config.json").read_text())
  written = json.loads((out / "config.json").read_text())
  assert {k: v for k, v in written.items() if k != "sample_size"}.items() <= stored.items()
  assert "AutoencoderKL.from_pretrained" in (out / "README.md").read_text()


def program(name, *argv):
  importlib.import_module(f"diffusion_jax.{name}").main(list(argv))
