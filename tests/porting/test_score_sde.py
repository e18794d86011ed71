"""Checkpoints of score_sde: the authors' networks written again in NumPy, read and run."""

import functools
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization
from numpy_draws import normal
from numpy_layers import (
  Drawn,
  attend,
  conv,
  conv1,
  conv3,
  dense,
  group_norm,
  nested_by_layer,
  nin,
  sinusoids,
  swish,
)

from diffusion_jax.porting.imported import experiment_of
from diffusion_jax.porting.layout import network_of, parameters_of, tensors_of_parameters
from diffusion_jax.porting.opening import open_source
from diffusion_jax.porting.score_sde import attended_levels
from diffusion_jax.porting.score_sde_modules import Modules
from diffusion_jax.types import UserError

WIDTH, MULTIPLIERS, SIDE = 32, (1, 2), 8
TIMES = np.float32([1e-3, 0.2, 0.6, 1.0])
ROOT = np.sqrt(0.5)
FILTER = np.float64([1, 3, 3, 1]) / 8


def filtered(x, pad, stride=1, gain=1.0):
  for axis in (1, 2):
    x = np.pad(x, [pad if i == axis else (0, 0) for i in range(4)])
    size = x.shape[axis] - 3
    parts = (np.take(x, np.arange(k, k + size, stride), axis) for k in range(4))
    x = sum(gain * tap * part for tap, part in zip(FILTER, parts, strict=True))
  return x


def with_zeros(x):
  wide = np.zeros((len(x), 2 * x.shape[1], 2 * x.shape[2], x.shape[3]))
  wide[:, ::2, ::2] = x
  return wide


def halved(x, fir):
  if fir:
    return filtered(x, (1, 1), stride=2)
  return x.reshape(len(x), x.shape[1] // 2, 2, x.shape[2] // 2, 2, -1).mean((2, 4))


def doubled(x, fir):
  return filtered(with_zeros(x), (2, 1), gain=2) if fir else x.repeat(2, 1).repeat(2, 2)


class Original:
  """A network of score_sde; calling it defines the tensors of its checkpoint.

  Args:
    kind: "ddpm", "ddpmpp" or "ncsnpp".
    weights: tensors by name.
    norm_axes: axes of the stored scales of norms.
  """

  def __init__(self, kind, weights, norm_axes=1):
    self.kind, self.w, self.axes = kind, weights, norm_axes
    self.big, self.fir = kind != "ddpm", kind == "ncsnpp"
    self.counts = Counter()

  def named(self, kind):
    self.counts[kind] += 1
    return f"{kind}_{self.counts[kind] - 1}"

  def norm(self, name, x):
    groups = min(x.shape[-1] // 4, 32) if self.big else 32
    return group_norm(self.w, name, x, groups, self.axes)

  def block(self, x, time, features=None, resize=None):
    features, change = features or x.shape[-1], resize or (lambda x: x)
    name = self.named("ResnetBlockBigGANpp" if self.big else "ResnetBlockDDPM")
    h = change(swish(self.norm(f"{name}/GroupNorm_0", x)))
    h = conv3(self.w, f"{name}/Conv_0", h, features)
    h = h + dense(self.w, f"{name}/Dense_0", swish(time), features)[:, None, None]
    h = swish(self.norm(f"{name}/GroupNorm_1", h))
    h, x = conv3(self.w, f"{name}/Conv_1", h, features), change(x)
    if x.shape[-1] != features or resize:
      short = (conv1, "Conv_2") if self.big else (nin, "NIN_0")
      x = short[0](self.w, f"{name}/{short[1]}", x, features)
    return (x + h) * (ROOT if self.big else 1)

  def attention(self, x):
    name, width = self.named("AttnBlockpp" if self.big else "AttnBlock"), x.shape[-1]
    h = self.norm(f"{name}/GroupNorm_0", x)
    q, k, v = (nin(self.w, f"{name}/NIN_{i}", h, width) for i in range(3))
    return (x + nin(self.w, f"{name}/NIN_3", attend(q, k, v), width)) * (ROOT if self.big else 1)

  def half(self, h, time):
    if self.big:
      return self.block(h, time, resize=lambda x: halved(x, self.fir))
    name = f"{self.named('Downsample')}/Conv_0"
    return conv3(self.w, name, h, h.shape[-1], stride=2, pad=(0, 1))

  def double(self, h, time):
    if self.big:
      return self.block(h, time, resize=lambda x: doubled(x, self.fir))
    return conv3(self.w, f"{self.named('Upsample')}/Conv_0", doubled(h, False), h.shape[-1])

  def with_image(self, h, image):
    name, width = f"{self.named('Downsample')}/Conv2d_0", h.shape[-1]
    kernel = self.w(f"{name}/weight", 3, 3, image.shape[-1], width)
    small = conv(filtered(image, (2, 2)), kernel, stride=2, pad=(0, 0))
    return (small + self.w(f"{name}/bias", width) + h) * ROOT

  def __call__(self, x, time):
    """x: images from -1 to 1 with noise. time: 999 t, or sigma for "ncsnpp"."""
    self.counts.clear()
    if self.kind == "ncsnpp":
      frequencies = self.w("GaussianFourierProjection_0/W", WIDTH, std=16.0)
      waves = 2 * np.pi * np.log(np.float64(time))[:, None] * frequencies
      embedding, image = np.concatenate([np.sin(waves), np.cos(waves)], 1), x
    else:
      embedding, image = sinusoids(time, WIDTH), None
    embedding = dense(self.w, self.named("Dense"), embedding, 4 * WIDTH)
    embedding = dense(self.w, self.named("Dense"), swish(embedding), 4 * WIDTH)
    stack, last = [conv3(self.w, self.named("Conv"), x, WIDTH)], len(MULTIPLIERS) - 1
    for level, multiplier in enumerate(MULTIPLIERS):
      h = self.block(stack[-1], embedding, multiplier * WIDTH)
      stack.append(self.attention(h) if level == 1 else h)
      if level < last:
        h = self.half(stack[-1], embedding)
        if image is not None:
          h = image = self.with_image(h, image)
        stack.append(h)
    h = self.block(self.attention(self.block(stack[-1], embedding)), embedding)
    for level in reversed(range(len(MULTIPLIERS))):
      for _ in range(2):
        joined = np.concatenate([h, stack.pop()], -1)
        h = self.block(joined, embedding, MULTIPLIERS[level] * WIDTH)
      h = self.attention(h) if level == 1 else h
      h = self.double(h, embedding) if level else h
    h = swish(self.norm(self.named("GroupNorm"), h))
    h = conv3(self.w, self.named("Conv"), h, x.shape[-1])
    return h / time[:, None, None, None] if self.kind == "ncsnpp" else h


def noise_of(kind, original, images):
  """The noise that the original finds in images from -1 to 1 with noise."""
  if kind != "ncsnpp":
    return original(np.float64(images), 999 * np.float64(TIMES))
  sigma = 0.01 * 5000 ** np.float64(TIMES)
  return -sigma[:, None, None, None] * original(np.float64(images), sigma)


IMAGES = normal(9, len(TIMES), SIDE, SIDE, 3)


def checkpoint(folder, params, rate):
  """Write a training state as the original's program does."""
  others = jax.tree.map(lambda value: value + 1, params)
  moments = {"grad_ema": params, "grad_sq_ema": params}
  state = {
    "step": np.int32(600_000), "lr": np.float32(2e-4), "ema_rate": np.float32(rate),
    "optimizer": {"target": others, "state": {"step": np.int32(7), "param_states": moments}},
    "model_state": {}, "params_ema": params, "rng": np.uint32([1, 2]),
  }  # fmt: skip
  path = folder / "checkpoint_12"
  path.write_bytes(serialization.msgpack_serialize(state))
  return path


@functools.cache
def made(kind):
  weights = Drawn()
  original = Original(kind, weights, norm_axes=4 if kind == "ddpmpp" else 1)
  return weights, noise_of(kind, original, IMAGES)


def opened(folder, kind, params, rate=None, image_size=SIDE):
  rate = rate or (0.999 if kind == "ncsnpp" else 0.9999)
  source = open_source(checkpoint(folder, params, rate), image_size=image_size)
  return source, experiment_of(source, {}, ())


@pytest.mark.parametrize("kind", ["ddpmpp", "ncsnpp"])
def test_a_checkpoint_is_read_and_comes_back_bit_by_bit(kind, tmp_path):
  weights, _ = made(kind)
  source, experiment = opened(tmp_path, kind, nested_by_layer(weights.tensors))
  assert source.origin["group"] == "params_ema"
  config = experiment.to_dict()
  model = config["model"]
  assert (model["channels"], tuple(model["multipliers"])) == (WIDTH, MULTIPLIERS)
  assert (model["num_blocks"], tuple(model["attention_resolutions"])) == (1, (SIDE // 2,))
  assert config["process"]["name"] == ("ve" if kind == "ncsnpp" else "vp")
  assert_same_tensors(weights, source, experiment, parameters_of(source, experiment))


def assert_same_tensors(weights, source, experiment, params):
  back = tensors_of_parameters(source.layout, params, network_of(experiment), 0)
  assert back.keys() == weights.tensors.keys()
  for name, value in weights.tensors.items():
    assert back[name].tobytes() == value.tobytes(), name


@pytest.mark.costly
@pytest.mark.parametrize("kind", ["ddpm", "ncsnpp"])  # DDPM++: the same with PyTorch's files
def test_the_network_finds_the_noise_that_the_original_finds(kind, tmp_path):
  weights, expected = made(kind)
  source, experiment = opened(tmp_path, kind, nested_by_layer(weights.tensors))
  params = parameters_of(source, experiment)
  model = experiment.create(source.described.spec)

  @jax.jit
  def noise(params, x, t):
    denoiser = model.bind(params).denoiser
    return denoiser.predict(denoiser.state(x, t)).output

  found = noise(params, jnp.asarray(IMAGES), jnp.asarray(TIMES))
  assert np.abs(np.asarray(found) - expected).max() < 1e-4 * expected.std()
  assert_same_tensors(weights, source, experiment, params)


def refused(folder, kind, change, rate=None, image_size=SIDE):
  weights, _ = made(kind)
  params = nested_by_layer(weights.tensors)
  change(params)
  with pytest.raises(UserError) as error:
    opened(folder, kind, params, rate, image_size)
  assert str(error.value).startswith(f"{folder / 'checkpoint_12'} (params_ema)")
  assert "\n" not in str(error.value)
  return str(error.value)


ONE = {"kernel": np.zeros((1, 1, 3, 3), np.float32)}


@pytest.mark.parametrize(
  ("kind", "change", "what"),
  [
    ("ddpm", lambda p: p.pop("Conv_0"), "has no tensor Conv_0/kernel"),
    ("ncsnpp", lambda p: p.update(Combine_0=ONE), "progressive=output_skip"),
    ("ncsnpp", lambda p: p.update(Downsample_0={"Conv_0": ONE}), "pyramid without a filter"),
    ("ddpmpp", lambda p: p.pop("AttnBlockpp_2"), "2 attention blocks of the widths [64, 64] fit"),
    ("ddpmpp", lambda p: p.pop("ResnetBlockBigGANpp_9"), "7 residual blocks do not fit 2 levels"),
  ],
)
def test_another_network_is_refused_in_one_line(tmp_path, kind, change, what):
  assert what in refused(tmp_path, kind, change)


def test_a_model_that_is_told_a_number_of_a_noise_level_is_refused(tmp_path):
  said = refused(tmp_path, "ddpm", lambda p: None, rate=0.999)
  assert "the rate 0.999 of the VE models, and no Fourier embedding" in said


def test_the_side_of_the_images_must_be_given(tmp_path):
  said = refused(tmp_path, "ddpm", lambda p: None, image_size=None)
  assert said.endswith("does not tell the side of the images; add --image_size=32")


@pytest.mark.parametrize(
  ("widths", "number", "side", "levels", "is_guess"),
  [
    ((128, 256, 256, 256), 6, 32, (1,), True),  # 16 pixels, as in the original
    ((128, 256, 256, 256), 6, 8, (1,), True),
    ((128, 256, 512), 6, 8, (1,), False),
    ((128, 256, 256, 256), 1, 32, (), False),
    ((128, 256, 256, 256), 11, 64, (1, 2), True),
  ],
)
def test_levels_with_attention_follow_from_widths(widths, number, side, levels, is_guess):
  found = Modules(128, 3, widths, 4, (256,) * number, None, True, False, False)
  assert attended_levels(found, side, "file") == (levels, is_guess)
