"""Files written by torch, safetensors and diffusers are read as they were written."""

import argparse
import json
import pickle
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")

from diffusion_jax.weight_files.safetensors_file import write_safetensors  # noqa: E402
from diffusion_jax.weight_files.weight_file import read_weights  # noqa: E402

pytestmark = pytest.mark.reference
NAMES = ["float32", "bfloat16", "float16", "float64", "int64", "uint16", "uint8", "bool",
         "complex64", "float8_e4m3fn"]  # fmt: skip


def tensors():
  values = torch.tensor([0.0, 1.0, 0.0, 2.0, 3.0, 1.0])
  return {name: values.to(getattr(torch, name)) for name in NAMES}


def same_bytes(array: np.ndarray, tensor) -> bool:
  raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
  is_same_type = str(tensor.dtype) == f"torch.{array.dtype}"
  return is_same_type and array.shape == tuple(tensor.shape) and array.tobytes() == raw.tobytes()


def checkpoint():
  model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
  model[0].weight.note = "an attribute"
  optimizer = torch.optim.AdamW(model.parameters())
  model(torch.randn(5, 3)).sum().backward()
  optimizer.step()
  weight = torch.randn(4, 5)
  return {
    "model": model.state_dict(),
    "ema": {name: value.bfloat16() for name, value in model.state_dict().items()},
    "parameters": dict(model.named_parameters()),
    "opt": optimizer.state_dict(),
    "views": {"whole": weight, "tied": weight, "tail": weight[2:], "turned": weight.t()},
    "types": tensors(),
    "args": argparse.Namespace(model="SiT-XL/2", lr=1e-4, folder=Path("/data"), none=None),
    "numpy": {"array": np.arange(6.0).reshape(2, 3), "scalar": np.float32(2.5)},
    "rng": torch.get_rng_state(), "epoch": 3, "size": torch.Size([1, 2]), "type": torch.float16,
  }  # fmt: skip


def check(found, given):
  for group in ("model", "ema", "parameters", "views", "types"):
    assert set(found.groups[group]) == set(given[group])
    for name, tensor in given[group].items():
      assert same_bytes(found.groups[group][name], tensor), (group, name)
  for i, state in given["opt"]["state"].items():
    assert same_bytes(found.arrays[f"opt/state/{i}/exp_avg"], state["exp_avg"])
  assert same_bytes(found.arrays["rng"], given["rng"])
  np.testing.assert_array_equal(found.arrays["numpy/array"], given["numpy"]["array"])
  assert found.facts["args"] == {"model": "SiT-XL/2", "lr": 1e-4, "folder": "/data", "none": None}
  assert found.facts["numpy"] == {"scalar": 2.5}
  assert (found.facts["epoch"], found.facts["size"]) == (3, [1, 2])
  assert found.facts["type"] == "torch.float16"


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_nested_file_of_torch(is_zip, tmp_path):
  given, path = checkpoint(), tmp_path / "weights.pt"
  torch.save(given, path, _use_new_zipfile_serialization=is_zip)
  check(read_weights(path), given)


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_a_plain_pickle_of_tensors(protocol, tmp_path):
  given, path = checkpoint(), tmp_path / "weights.pkl"
  path.write_bytes(pickle.dumps(given, protocol))
  check(read_weights(path), given)


def test_a_module_of_torch_in_a_plain_pickle(tmp_path):
  network = torch.nn.Sequential(
    torch.nn.Conv2d(3, 4, 3), torch.nn.ModuleDict({"a": torch.nn.SiLU()})
  )
  path = tmp_path / "network.pkl"
  path.write_bytes(pickle.dumps({"ema": network}))
  found = read_weights(path)
  assert set(found.groups["ema"]) == set(network.state_dict())
  for name, tensor in network.state_dict().items():
    assert same_bytes(found.groups["ema"][name], tensor)
  assert found.facts["ema"]["modules"] == {"0": "Conv2d", "1": "ModuleDict", "1.a": "SiLU"}


def test_safetensors_both_ways(tmp_path):
  given = {**tensors(), "empty": torch.zeros(0, 3), "scalar": torch.tensor(2.5)}
  safetensors_torch.save_file(given, tmp_path / "theirs", metadata={"format": "pt"})
  found = read_weights(tmp_path / "theirs")
  write_safetensors(tmp_path / "ours", found.arrays, found.facts)
  assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
  assert found.facts == {"format": "pt"}
  for name, tensor in safetensors_torch.load_file(tmp_path / "ours").items():
    assert torch.equal(tensor.view(-1).view(torch.uint8), given[name].view(-1).view(torch.uint8))
    assert name == "scalar" or same_bytes(found.arrays[name], given[name])


@pytest.mark.parametrize("safe", [True, False])
def test_folders_of_diffusers(safe, tmp_path):
  diffusers = pytest.importorskip("diffusers")
  network = diffusers.UNet2DModel(
    sample_size=8, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4,
    down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    attention_head_dim=4,
  )  # fmt: skip
  given = network.state_dict()
  for size in ("5GB", "20KB") if safe else ("5GB",):
    folder = tmp_path / size
    network.save_pretrained(folder, max_shard_size=size, safe_serialization=safe)
    found = read_weights(folder)
    assert set(found.arrays) == set(given)
    assert all(same_bytes(found.arrays[name], tensor) for name, tensor in given.items())
  if safe:
    index = json.loads((folder / "diffusion_pytorch_model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1
