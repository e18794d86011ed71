"""Checkpoints of google-research/vdm: the authors' network written again in NumPy, read and run."""

import jax
import jax.numpy as jnp
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

from diffusion_jax.porting.imported import experiment_of
from diffusion_jax.porting.layout import network_of, parameters_of, tensors_of_parameters
from diffusion_jax.porting.opening import open_source
from diffusion_jax.types import UserError

SIX = np.zeros(6, np.float32)
WIDTH, BLOCKS, FIRST, LAST = 32, 2, -13.3, 5.0
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
  (k1, b1), (k2, b2) = (
    [np.float64(tensors[n][p]) for p in ("kernel", "bias")] for n in ("l1", "l2")
  )
  inner = 2 / (1 + np.exp(-((2 * t[:, None] - 1) @ np.abs(k2) + b2))) - 1
  curve = t[:, None] @ np.abs(k1) + b1 + inner @ np.abs(np.float64(tensors["l3"]["kernel"])) / width
  return tensors, curve[:, 0]


SCHEDULES = {"learned_linear": linear, "learned_monotone": by_network}


def tensors_and_outputs(schedule, images):
  gamma, curve = SCHEDULES[schedule](np.float64(TIMES))
  w = Drawn()
  outputs = network(w, np.float64(images), curve)
  return {"score_model": nested_by_layer(w.tensors), "gamma": gamma}, curve, outputs


IMAGES = normal(50, len(TIMES), 4, 4, 3)


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


@pytest.fixture(scope="module", params=list(SCHEDULES))
def opened(request, tmp_path_factory):
  params, curve, outputs = tensors_and_outputs(request.param, IMAGES)
  path = checkpoint(tmp_path_factory.mktemp("vdm"), params)
  source = open_source(path, image_size=4)
  experiment = experiment_of(source, {}, ())
  return request.param, source, experiment, parameters_of(source, experiment), curve, outputs


def test_the_config_is_the_shipped_recipes(opened):
  schedule, source, experiment, *_ = opened
  config = experiment.to_dict()
  assert source.origin["group"] == "ema_params"
  assert source.described.spec == (4, 4, 3, 256, 0, {})
  assert config["process"]["name"] == schedule
  assert config["process"]["image_scale"] == 255 / 256
  assert (config["model"]["channels"], config["model"]["num_blocks"]) == (WIDTH, BLOCKS)
  assert config["generative"]["prediction"] == "eps"
  assert (config["loss"]["name"], config["sampler"]["final"]) == ("vdm", "min_time")


def test_the_schedule_is_the_same_curve(opened):
  _, _, experiment, params, curve, _ = opened
  process = experiment.sections["process"].bind(params["process"])
  np.testing.assert_allclose(-process.log_snr(TIMES) + 2 * np.log(255 / 256), curve, atol=2e-5)
  expected = 1000 * (curve - FIRST) / (LAST - FIRST)
  np.testing.assert_allclose(process.network_time(TIMES), expected, atol=2e-3)


def test_the_tensors_come_back_bit_by_bit(opened):
  schedule, source, experiment, params, *_ = opened
  model = network_of(experiment)
  if schedule == "learned_monotone":
    with pytest.raises(UserError, match=r"`process\.name=learned_monotone`: VDM's checkpoints"):
      tensors_of_parameters(source.layout, params, model, 0)
    return
  back = tensors_of_parameters(source.layout, params, model, 0)
  assert back.keys() == source.tensors.keys()
  dense0 = "score_model/dense0/kernel"
  assert not back[dense0][-1].any()  # the input that is always 0
  for name, value in source.tensors.items():
    given, found = (v[:-1] if name == dense0 else v for v in (value, back[name]))
    assert found.tobytes() == given.tobytes(), name


@pytest.mark.costly
def test_the_network_agrees_with_the_original(opened):
  schedule, source, experiment, params, curve, outputs = opened
  model = network_of(experiment).create(source.described.spec, 0)
  time = np.float32(1000 * (curve - FIRST) / (LAST - FIRST))
  found = jax.jit(model.apply)(params["network"], jnp.asarray(IMAGES), jnp.asarray(time))
  noise = np.asarray(found) - IMAGES
  expected = outputs - IMAGES  # the input is added at the end and would hide a difference
  assert np.abs(noise - expected).max() < 1e-4 * expected.std()


@pytest.fixture
def given(tmp_path):
  """Return a function: change of the tensors -> what reading them says."""
  params, *_ = tensors_and_outputs("learned_linear", IMAGES)

  def said(change, **options):
    change(params)
    with pytest.raises(UserError) as error:
      source = open_source(checkpoint(tmp_path, params), **({"image_size": 4} | options))
      parameters_of(source, experiment_of(source, {}, ()))
    assert "\n" not in str(error.value)
    return str(error.value)

  return said


@pytest.mark.parametrize(
  ("change", "what"),
  [
    (lambda p: p.pop("gamma"), "has no learned noise schedule"),
    (
      lambda p: p["score_model"]["mid.block_1"]["conv1"].pop("bias"),
      "has no tensor score_model/mid.block_1/conv1/bias",
    ),
    (
      lambda p: p["score_model"]["conv_out"].update(bias=np.zeros(4, np.float32)),
      r"conv_out/bias has the shape [4], this architecture needs [3]",
    ),
    (lambda p: p["score_model"].update({"down.attn_0": {"b": SIX}}), "with_attention=True"),
    (lambda p: p["score_model"].update(extra={"b": SIX}), "without a place"),
    (
      lambda p: p["score_model"]["conv_in"].update(kernel=np.zeros((3, 3, 9, 32), np.float32)),
      "has 9 inputs for 3 channels",
    ),
  ],
)
def test_another_network_is_refused_in_one_line(given, change, what):
  assert what in given(change)


def test_the_side_of_the_images_must_be_given(given):
  assert given(lambda p: None, image_size=None).endswith(
    "does not tell the side of the images; add --image_size=32"
  )
