"""Checkpoints of google-research/vdm: the authors' network written again in NumPy, read and run."""

import functools
import importlib
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from flax import serialization
from numpy_draws import normal
from numpy_layers import (
  Drawn,
  attend,
  conv3,
  dense,
  group_norm,
  nested_by_layer,
  sinusoids,
  swish,
)

import diffusion_jax as dj
from diffusion_jax.porting.imported import experiment_of
from diffusion_jax.porting.layout import network_of, parameters_of, tensors_of_parameters
from diffusion_jax.porting.opening import open_source
from diffusion_jax.runs.stored import load_experiment
from diffusion_jax.types import ImageSpec, UserError

ROOT = Path(__file__).parents[2]
SIX = np.zeros(6, np.float32)
WIDTH, BLOCKS, FIRST, LAST = 32, 1, -13.3, 5.0
TIMES = np.float32([0.0, 0.3, 0.77, 1.0])


def block(w, name, x, cond):
  h = conv3(w, f"{name}/conv1", swish(group_norm(w, f"{name}/GroupNorm_0", x, 32)), WIDTH)
  h = h + dense(w, f"{name}/cond_proj", cond, WIDTH, bias=False)[:, None, None]
  h = conv3(w, f"{name}/conv2", swish(group_norm(w, f"{name}/GroupNorm_1", h, 32)), WIDTH)
  return h + (x if x.shape[-1] == WIDTH else dense(w, f"{name}/nin_shortcut", x, WIDTH))


def network(w, z, gamma):
  """eps_hat of images without augmentation, whose second input is 0."""
  time = 1000 * (gamma - FIRST) / (LAST - FIRST)
  cond = np.concatenate([sinusoids(time, WIDTH), np.zeros((len(z), 1))], axis=1)
  for i in range(2):
    cond = swish(dense(w, f"dense{i}", cond, 4 * WIDTH))
  angles = (z[..., None] * 2 * np.pi * np.float64([64, 128])).reshape(*z.shape[:-1], -1)
  h = conv3(w, "conv_in", np.concatenate([z, np.sin(angles), np.cos(angles)], -1), WIDTH)
  stack = [h]
  for i in range(BLOCKS):
    stack.append(block(w, f"down.block_{i}", stack[-1], cond))
  h = block(w, "mid.block_1", stack[-1], cond)
  normed = group_norm(w, "mid.attn_1/GroupNorm_0", h, 32)
  q, k, v = (dense(w, f"mid.attn_1/{n}", normed, WIDTH) for n in "qkv")
  h = block(w, "mid.block_2", h + dense(w, "mid.attn_1/proj_out", attend(q, k, v), WIDTH), cond)
  for i in range(BLOCKS + 1):
    h = block(w, f"up.block_{i}", np.concatenate([h, stack.pop()], -1), cond)
  return z + conv3(w, "conv_out", swish(group_norm(w, "GroupNorm_0", h, 32)), z.shape[-1])


def linear(t):
  return {"w": np.float32([-18.1]), "b": np.float32([-13.2])}, -13.2 + 18.1 * t


def by_network(t, width=16):
  """The schedule's network, of layers whose weights count by their absolute values."""
  tensors = {
    "l1": {"kernel": np.float32([[-17.9]]), "bias": np.float32([-13.1])},
    "l2": {"kernel": normal(1, 1, width), "bias": normal(2, width)},
    "l3": {"kernel": 20 * normal(3, width, 1)},
  }
  (k1, b1), (k2, b2) = ([np.float64(v) for v in tensors[n].values()] for n in ("l1", "l2"))
  inner = 2 / (1 + np.exp(-((2 * t[:, None] - 1) @ np.abs(k2) + b2))) - 1
  steps = inner @ np.abs(np.float64(tensors["l3"]["kernel"])) / width
  return tensors, (t[:, None] @ np.abs(k1) + b1 + steps)[:, 0]


SCHEDULES = {"learned_linear": linear, "learned_monotone": by_network}


# small, since the phase 256 pi x of a feature has few digits in float32
IMAGES = 0.3 * normal(50, len(TIMES), 4, 4, 3)


@functools.cache
def weights_and_outputs(schedule):
  weights = Drawn()
  return weights, network(weights, np.float64(IMAGES), SCHEDULES[schedule](np.float64(TIMES))[1])


def made(schedule):
  """The tensors of a checkpoint, gamma at TIMES and the network's outputs there."""
  gamma, curve = SCHEDULES[schedule](np.float64(TIMES))
  weights, outputs = weights_and_outputs(schedule)
  return {"score_model": nested_by_layer(weights.tensors), "gamma": gamma}, curve, outputs


def checkpoint(folder, params):
  """Write a training state as the original's program does: the average differs from the rest."""
  moments = jax.tree.map(np.zeros_like, params)
  others = jax.tree.map(lambda value: value + 1, params)
  state = {
    "step": np.int32(10_000_000), "params": others, "ema_params": params,
    "opt_state": {"0": {"count": np.int32(7), "mu": moments, "nu": moments}, "1": {}},
  }  # fmt: skip
  path = folder / "ckpt-1.flax"
  path.write_bytes(serialization.msgpack_serialize(state))
  return path


class Opened(NamedTuple):
  source: Any
  experiment: Any
  params: Any
  curve: Any
  outputs: Any

  @property
  def network(self):
    return network_of(self.experiment)


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
  """Return a function: name of a schedule -> its checkpoint, imported."""

  @functools.cache
  def read(schedule):
    params, curve, outputs = made(schedule)
    source = open_source(checkpoint(tmp_path_factory.mktemp("vdm"), params), image_size=4)
    experiment = experiment_of(source, {}, ())
    return Opened(source, experiment, parameters_of(source, experiment), curve, outputs)

  return read


def test_the_config_is_the_shipped_recipes(opened):
  source, config = opened("learned_linear").source, opened("learned_linear").experiment.to_dict()
  shipped = load_experiment(f"{ROOT}/configs/vdm_cifar.py", []).to_dict()
  sizes = {"channels": WIDTH, "num_blocks": BLOCKS}
  for name in ("generative", "process", "model", "loss", "sampler", "probability_flow"):
    assert config[name] == shipped[name] | (sizes if name == "model" else {})
  assert source.origin["group"] == "ema_params"
  assert source.described.spec == ImageSpec(4, 4, 3, 256, 0)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_schedule_is_the_same_curve(opened, schedule):
  found = opened(schedule)
  process = found.experiment.sections["process"].bind(found.params["process"])
  log_snr = process.log_snr(TIMES) - 2 * np.log(255 / 256)
  np.testing.assert_allclose(-log_snr, found.curve, atol=2e-5)
  expected = 1000 * (found.curve - FIRST) / (LAST - FIRST)
  np.testing.assert_allclose(process.network_time(TIMES), expected, atol=2e-3)


def test_the_tensors_come_back_bit_by_bit(opened):
  found, dense0 = opened("learned_linear"), "score_model/dense0/kernel"
  back = tensors_of_parameters(found.source.layout, found.params, found.network, 0)
  assert back.keys() == found.source.tensors.keys()
  assert not back[dense0][-1].any()  # the input that is always 0
  for name, value in found.source.tensors.items():
    pair = [v[:-1] if name == dense0 else v for v in (value, back[name])]
    assert pair[0].tobytes() == pair[1].tobytes(), name


def test_a_converted_schedule_is_not_written(opened):
  found = opened("learned_monotone")
  with pytest.raises(UserError, match=r"`process\.name=learned_monotone`: VDM's checkpoints"):
    tensors_of_parameters(found.source.layout, found.params, found.network, 0)


@pytest.mark.costly
def test_an_imported_run_finds_the_noise_that_the_original_finds(tmp_path):
  params, curve, outputs = made("learned_monotone")
  program = importlib.import_module("diffusion_jax.import")
  path, out = checkpoint(tmp_path, params), tmp_path / "run"
  program.main([str(path), f"--out={out}", "--image_size=4"])
  run = dj.load_run(out)
  x0 = run.denoise(IMAGES.astype(np.float32), TIMES)
  snr = np.exp(-curve)[:, None, None, None]
  alpha, sigma = 255 / 256 * np.sqrt(snr / (1 + snr)), 1 / np.sqrt(1 + snr)
  noise = (IMAGES - alpha * np.float64(x0)) / sigma
  # the network adds its input at the end, which would hide a difference; at the first time x0
  # tells little of the noise
  assert np.abs(noise - outputs)[1:].max() < 1e-4 * (outputs - IMAGES).std()


def refused(folder, change, image_size=4):
  params, *_ = made("learned_linear")
  change(params)
  path = checkpoint(folder, params)
  with pytest.raises(UserError) as error:
    open_source(path, image_size=image_size)
  assert str(error.value).startswith(f"{path} (ema_params)")
  assert "\n" not in str(error.value)
  return str(error.value)


@pytest.mark.parametrize(
  ("change", "what"),
  [
    (lambda p: p.pop("gamma"), "has no learned noise schedule"),
    (lambda p: p["gamma"].pop("w"), "has no learned noise schedule"),
    (lambda p: p["score_model"].pop("conv_out"), "has no tensor score_model/conv_out/kernel"),
    (lambda p: p["score_model"].update({"down.attn_0": {"b": SIX}}), "with_attention=True"),
    (
      lambda p: p["score_model"]["conv_in"].update(kernel=np.zeros((3, 3, 9, 32), np.float32)),
      "has 9 inputs for 3 channels",
    ),
  ],
)
def test_another_network_is_refused_in_one_line(tmp_path, change, what):
  assert what in refused(tmp_path, change)


def test_the_side_of_the_images_must_be_given(tmp_path):
  said = refused(tmp_path, lambda params: None, image_size=None)
  assert said.endswith("does not tell the side of the images; add --image_size=32")


def test_a_tensor_of_another_shape_is_refused(opened):
  found, name = opened("learned_linear"), "score_model/conv_out/bias"
  wrong = {**found.source.tensors, name: np.zeros(4, np.float32)}
  with pytest.raises(
    UserError, match=r"conv_out/bias has the shape \[4\], this architecture needs"
  ):
    parameters_of(found.source._replace(tensors=wrong), found.experiment)


def test_of_a_folder_the_checkpoint_of_the_highest_number_is_read(opened):
  """The published address is a folder, whose file's number is not known beforehand."""
  found = opened("learned_linear")
  file = Path(found.source.where.partition(" (")[0])
  (file.parent / "ckpt-12.flax").write_bytes(file.read_bytes())
  (file.parent / "ckpt-9.flax").write_bytes(b"not read")
  source = open_source(file.parent, image_size=4)
  assert list(source.origin["files"]) == ["ckpt-12.flax"]
