"""VDM as its authors' program computes it, written out again in NumPy float64.

Kingma et al. 2021, github.com/google-research/vdm, model_vdm.py: level k of L is
2 (k + 1/2) / L - 1, the decoder a softmax over the levels of -(z / alpha - level)^2 / (2 SNR^-1),
and the last state z_0 becomes the most likely level.
"""

import functools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.core import rng
from diffusion_jax.core.config import parse_override
from diffusion_jax.core.pixels import to_uint8
from diffusion_jax.core.rng import Stream
from diffusion_jax.generative.diffusion_model import decoded
from diffusion_jax.losses import BatchPosition
from diffusion_jax.losses.vdm import even_quantiles
from diffusion_jax.models import Network, NetworkBase
from diffusion_jax.processes import Flow, Learned, LinearVP
from diffusion_jax.runs.experiment import build_experiment
from diffusion_jax.runs.stored import load_experiment
from diffusion_jax.samplers import DDIM, ProbabilityFlow
from diffusion_jax.types import Batch, ImageSpec, UserError

ROOT = Path(__file__).parents[2]
SPEC = ImageSpec(3, 2, 1, 256, 0)
FIRST, LAST, STEPS, NUM = -13.3, 5.0, 7, 5
LEVELS = 2 * (np.arange(256) + 0.5) / 256 - 1


class Curved(NetworkBase):
  """eps_hat = tanh(1.5 z) / 2 + time / 5000, so that the network sees what it should."""

  def create(self, spec, num_labels):
    def apply(params, x, time, condition, dropout_key=None):
      return 0.5 * jnp.tanh(1.5 * x) + time[:, None, None, None] / 5000

    return Network(lambda key: {"w": jnp.zeros(())}, apply)


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def gamma(t):
  return FIRST + (LAST - FIRST) * t


def eps_hat(z, g):
  time = 1000 * (np.asarray(g) - FIRST) / (LAST - FIRST)
  return 0.5 * np.tanh(1.5 * z) + time / 5000


@functools.cache
def model():
  """The config of CIFAR-10 on tiny images."""
  stored = load_experiment(f"{ROOT}/configs/vdm_cifar.py", []).to_dict()
  stored["sampler"] |= {"steps": STEPS}
  experiment = build_experiment(stored)
  sections = {**experiment.sections, "model": Curved()}
  generative = experiment.sections["generative"].create(sections, SPEC)
  params, _ = jax.jit(generative.init)(jax.random.key(0))
  return generative, params


def normal(keys, number):
  return np.float64(drawn(keys, np.uint32(number)))


@jax.jit
def drawn(keys, number):
  return rng.normal(rng.numbered(keys, number), SPEC.shape)


def test_samples_are_the_levels_of_the_original_programs_loop():
  generative, params = model()
  keys = rng.example_keys(jax.random.key(3), jnp.arange(NUM))
  start = jax.jit(lambda keys: rng.normal(rng.stream(keys, Stream.START), SPEC.shape))
  z = np.float64(start(keys))
  for i in range(STEPS):
    g_t, g_s = gamma((STEPS - i) / STEPS), gamma((STEPS - i - 1) / STEPS)
    c = -np.expm1(g_s - g_t)
    mean = z - np.sqrt(sigmoid(g_t)) * c * eps_hat(z, g_t)
    std = np.sqrt(sigmoid(g_s) * c)
    z = np.sqrt(sigmoid(-g_s) / sigmoid(-g_t)) * mean + std * normal(
      rng.stream(keys, Stream.STEPS), i + 1
    )
  rescaled = z / np.sqrt(sigmoid(-gamma(0)))
  expected = np.argmin(np.abs(rescaled[..., None] - LEVELS), axis=-1)
  samples = jax.jit(generative.sample)(params, keys)
  assert samples.num_evaluations == STEPS
  # the levels' axis is the program's own: 2 k / 255 - 1
  np.testing.assert_allclose(samples.images, rescaled * 256 / 255, atol=2e-4)
  found = to_uint8(np.asarray(samples.images))
  assert len(np.unique(expected)) > 10
  assert np.mean(found == expected) > 0.9
  assert np.abs(found.astype(int) - expected).max() <= 1  # between two levels by rounding


def test_the_loss_is_the_original_programs():
  """Its three terms in bits/dim, from the same noise and times; t starts at 1e-5 here."""
  generative, params = model()
  levels = np.random.default_rng(0).integers(0, 256, (NUM, *SPEC.shape)).astype(np.uint8)
  index = np.arange(NUM, dtype=np.uint32)
  batch = Batch(levels, np.zeros(NUM, np.int32), np.ones(NUM, np.float32), index)
  key = jax.random.key(1)
  values, terms, _ = jax.jit(lambda p, b: generative.loss(p, {}, key, b, train=False))(
    params, batch
  )
  keys = rng.example_keys(rng.stream(key, Stream.EXAMPLES), index)
  t = 1e-5 + (1 - 1e-5) * np.float64(jax.jit(even_quantiles)(BatchPosition(key, index)))
  f = LEVELS[levels]
  over = (1, 2, 3)
  # reconstruction
  noisy = f + np.exp(0.5 * gamma(1e-5)) * normal(keys, Stream.RECONSTRUCTION)
  log_p = -0.5 * (noisy[..., None] - LEVELS) ** 2 * np.exp(-gamma(1e-5))
  log_p -= log_p.max(-1, keepdims=True)
  log_p -= np.log(np.exp(log_p).sum(-1, keepdims=True))
  recon = -np.take_along_axis(log_p, levels[..., None].astype(int), -1).sum((*over, 4))
  # prior
  var_1 = sigmoid(LAST)
  prior = 0.5 * ((1 - var_1) * f**2 + var_1 - np.log(var_1) - 1).sum(over)
  # diffusion
  g = gamma(t)[:, None, None, None]
  eps = normal(keys, Stream.NOISE)
  z = np.sqrt(sigmoid(-g)) * f + np.sqrt(sigmoid(g)) * eps
  diffusion = 0.5 * (1 - 1e-5) * (LAST - FIRST) * ((eps - eps_hat(z, g)) ** 2).sum(over)
  bits = 1 / (SPEC.num_dims * math.log(2))
  for name, nats in (("reconstruction", recon), ("prior", prior), ("diffusion", diffusion)):
    np.testing.assert_allclose(terms[name], bits * nats, rtol=5e-4, atol=2e-5, err_msg=name)
  np.testing.assert_allclose(values, bits * (recon + prior + diffusion), rtol=1e-4)


def test_a_scale_of_the_images_is_a_factor_of_alpha():
  plain, scaled = (Learned(gamma, FIRST, LAST, None, scale) for scale in (1.0, 0.5))
  t = np.float32([0.0, 0.3, 1.0])
  for process in (plain, scaled):
    alpha, sigma = process.alpha_sigma(t)
    np.testing.assert_allclose(process.log_snr(t), 2 * np.log(alpha / sigma), atol=2e-5)
    np.testing.assert_allclose(process.time_of(process.log_snr(t)), t, atol=1e-6)
  for found, factor, expected in zip(
    scaled.alpha_sigma(t), (0.5, 1.0), plain.alpha_sigma(t), strict=True
  ):
    np.testing.assert_array_equal(found, factor * expected)
  np.testing.assert_array_equal(scaled.network_time(t), plain.network_time(t))


def test_states_of_the_least_noise_become_images_by_their_alpha():
  vp, flow, x = LinearVP(4), Flow(), jnp.ones((1, 1, 1, 1))

  def value(sampler, process):
    return float(decoded(sampler, process, x)[0, 0, 0, 0])

  alpha = math.sqrt(vp.alphas_cumprod[1])
  assert value(DDIM(steps=3, final="min_time"), vp) == pytest.approx(1 / alpha)
  assert value(DDIM(steps=3, final="data"), vp) == 1
  assert value(ProbabilityFlow(final="min_time"), flow) == pytest.approx(1.001)
  assert value(ProbabilityFlow(), flow) == 1


def test_a_scale_of_nothing_is_refused():
  with pytest.raises(UserError, match=r"image_scale=0\.0 must be positive; 1 leaves images"):
    load_experiment(
      f"{ROOT}/configs/vdm_cifar.py", [parse_override("--config.process.image_scale=0")]
    )
