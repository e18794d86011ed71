"""FLOPs of networks and training steps, from their layers' shapes; nothing is compiled.

The closed forms are in multiplications (1 each), as papers give them; the counter's FLOPs are twice
that. Papers include products with the zeros of a border, the counter does not: `padded` says which.
"""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from diffusion_jax.core import config
from diffusion_jax.models import NETWORKS
from diffusion_jax.planning import build_program
from diffusion_jax.planning.compiled import trace_step
from diffusion_jax.planning.flops import count_flops
from diffusion_jax.runs.stored import load_experiment
from diffusion_jax.types import Condition, ImageSpec


def gradient_flops(network, image):
  """Of the sum of squared outputs for two images without labels."""
  params = jax.eval_shape(network.init, jax.random.key(0))
  x = jax.ShapeDtypeStruct((2, *image), jnp.float32)
  time = jax.ShapeDtypeStruct((2,), jnp.float32)
  loss = lambda p, x, t: jnp.sum(network.apply(p, x, t, Condition()) ** 2)  # noqa: E731
  count = count_flops(jax.make_jaxpr(jax.value_and_grad(loss))(params, x, time))
  assert count.unknown == ()
  return count.flops / 2


def dit(net, image, out_channels):
  """The multiplications of a forward pass, and of its inputs' gradients that nobody needs."""
  height, width, channels = image
  d, tokens, patch = net.hidden, height * width // net.patch**2, net.patch**2
  embedding, patches = 256 * d, tokens * patch * channels * d
  attention = 4 * tokens * d**2 + 2 * tokens**2 * d
  block = attention + 2 * net.mlp_ratio * tokens * d**2 + 6 * d**2
  last = 2 * d**2 + tokens * d * patch * out_channels
  forward = embedding + d**2 + patches + net.depth * block + last
  return forward, embedding + patches


class Convolutions:
  """Multiplications of a U-Net's layers, added up by channels and sides."""

  def __init__(self, padded=False, upsampled_image=False):
    self.padded, self.upsampled_image, self.total = padded, upsampled_image, 0

  def conv3(self, side, inputs, outputs):
    taps = 3 * side if self.padded else 3 * side - 2  # of both ends one tap is outside
    self.total += taps**2 * inputs * outputs

  def half(self, side, width):
    """Of stride 2, with a row of zeros on one side only."""
    taps = 3 * side // 2 if self.padded else 3 * side // 2 - 1
    self.total += taps**2 * width**2

  def double(self, side, width):
    """Four 2x2 kernels on the small image; published: 3x3 on the image of twice the side."""
    if self.upsampled_image:
      return self.conv3(2 * side, width, width)
    taps = 2 * (2 * side if self.padded else 2 * side - 1)
    self.total += taps**2 * width**2

  def block(self, side, inputs, outputs, embedding):
    self.conv3(side, inputs, outputs)
    self.conv3(side, outputs, outputs)
    self.total += embedding * outputs + (side**2 * inputs * outputs if inputs != outputs else 0)

  def attention(self, side, width):
    self.total += 4 * side**2 * width**2 + 2 * side**4 * width


def unet(net, side, channels, **form):
  layers, width, embedding = Convolutions(**form), net.channels, 4 * net.channels
  layers.conv3(side, channels, width)
  unneeded = layers.total + width * embedding  # gradients of the image and of the time's features
  layers.total += width * embedding + embedding**2
  skips = [width]
  for level, multiplier in enumerate(net.multipliers):
    for _ in range(net.num_blocks):
      layers.block(side, width, multiplier * net.channels, embedding)
      width = multiplier * net.channels
      if side in net.attention_resolutions:
        layers.attention(side, width)
      skips.append(width)
    if level + 1 < len(net.multipliers):
      layers.half(side, width)
      side //= 2
      skips.append(width)
  for _ in range(2):
    layers.block(side, width, width, embedding)
  layers.attention(side, width)
  for level, multiplier in reversed(list(enumerate(net.multipliers))):
    for _ in range(net.num_blocks + 1):
      layers.block(side, width + skips.pop(), multiplier * net.channels, embedding)
      width = multiplier * net.channels
      if side in net.attention_resolutions:
        layers.attention(side, width)
    if level:
      layers.double(side, width)
      side *= 2
  layers.conv3(side, width, channels)
  return layers.total, unneeded


def vdm(net, side, channels, **form):
  layers, width, embedding = Convolutions(**form), net.channels, 4 * net.channels
  layers.conv3(side, channels * (1 + 2 * len(net.fourier_exponents)), width)
  unneeded = layers.total + width * embedding
  layers.total += width * embedding + embedding**2
  for _ in range(net.num_blocks + 2):
    layers.block(side, width, width, embedding)
  layers.attention(side, width)
  for _ in range(net.num_blocks + 1):
    layers.block(side, 2 * width, width, embedding)
  layers.conv3(side, width, channels)
  return layers.total, unneeded


DIT = NETWORKS["dit"](depth=1, hidden=24, heads=3, patch=2, learned_variance=True)
VDM = NETWORKS["vdm_unet"](channels=8, num_blocks=1, dropout=0.0)


def test_the_published_cost_of_dit():
  """Peebles and Xie 2023, table 1: latents of 32x32x4, learned variances; "Gflops"."""
  for depth, hidden, heads, published in ((12, 768, 12, 23.01), (28, 1152, 16, 118.64)):
    net = dataclasses.replace(DIT, depth=depth, hidden=hidden, heads=heads)
    assert dit(net, (32, 32, 4), 8)[0] / 1e9 == pytest.approx(published, rel=2e-3)


def test_the_published_cost_of_ddpms_unet():
  """Fang et al. 2023 (arXiv 2305.10924), table 1: 6.1 G multiplications on CIFAR-10.

  They count layers with weights; attention's products of pairs of pixels are 0.17 G more.
  """
  forward, _ = unet(NETWORKS["unet"](), 32, 3, padded=True, upsampled_image=True)
  pairs = 5 * 2 * 16**4 * 256 + 2 * 4**4 * 256
  assert (forward - pairs) / 1e9 == pytest.approx(6.1, abs=0.05)


def test_a_diffusion_transformer():
  forward, unneeded = dit(DIT, (6, 8, 4), 8)
  network = DIT.create(ImageSpec(6, 8, 4, 256, 0), 0)
  assert gradient_flops(network, (6, 8, 4)) == 2 * (3 * forward - unneeded)


@pytest.mark.costly
def test_the_unet_of_vdm():
  forward, unneeded = vdm(VDM, 8, 3)
  network = VDM.create(ImageSpec(8, 8, 3, 256, 0), 0)
  assert gradient_flops(network, (8, 8, 3)) == 2 * (3 * forward - unneeded)


STEP = ["--config.model.name=dit", "--config.model.depth=1", "--config.model.hidden=24",
        "--config.model.heads=3", "--config.training.batch_size=16",
        "--config.generative.conditional=false", "--config.guidance.weight=1"]  # fmt: skip


def step_count(root, *flags):
  """FLOPs per device of the whole training step on 8 devices, of a transformer on digits."""
  overrides = [config.parse_override(flag) for flag in (*STEP, *flags)]
  experiment = load_experiment(str(root / "configs/smoke.py"), overrides)
  program = build_program(experiment, ImageSpec(8, 8, 1, 17, 0), jax.devices())
  return trace_step(program, 2)[1]


@pytest.mark.costly
def test_a_step_with_and_without_rematerialisation(root):
  """Each device has two images; blocks are computed again but for their last product."""
  net = dataclasses.replace(DIT, learned_variance=False)
  forward, unneeded = dit(net, (8, 8, 1), 1)
  plain, again = step_count(root), step_count(root, "--config.model.remat=block")
  assert plain.unknown == again.unknown == ()
  assert plain.model == plain.executed == 2 * 2 * (3 * forward - unneeded)
  assert again.model == plain.model
  d, tokens = net.hidden, 16
  block = 12 * tokens * d**2 + 2 * tokens**2 * d + 6 * d**2
  assert 0 < again.executed - again.model <= 2 * 2 * block
  parts = step_count(root, "--config.training.accumulation_steps=2")
  assert parts == plain


@pytest.mark.costly
def test_the_unet_of_ddpm():
  forward, unneeded = unet(NETWORKS["unet"](), 32, 3)
  network = NETWORKS["unet"]().create(ImageSpec(32, 32, 3, 256, 0), 0)
  assert gradient_flops(network, (32, 32, 3)) == 2 * (3 * forward - unneeded)
