"""Latent diffusion: its bound against a linear Gaussian model, its frozen weights, its messages.

The oracle: z ~ N(0, I / scale^2), x = W z + noise of standard deviation STD, so that p(x) =
N(0, W W' / scale^2 + STD^2 I). A network of zeros that predicts v under a variance-preserving
process is the exact denoiser of N(0, I), the law of scale z.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from steps import begin

from diffusion_jax import randomness
from diffusion_jax.data.latents import Autoencoder
from diffusion_jax.generative import LatentDiffusion
from diffusion_jax.generative.latent_diffusion import flatten
from diffusion_jax.likelihood import ContinuousBound, ProbabilityFlow, Spectrum, VariationalBound
from diffusion_jax.losses import Simple
from diffusion_jax.models import ConvVAE, DiscretizedLogistic, Gaussian, Network, UNet, VAENetworks
from diffusion_jax.processes import PROCESSES, LinearVP
from diffusion_jax.samplers import DDIM, Guidance, Heun
from diffusion_jax.sharding import MeshShape, create_mesh
from diffusion_jax.state import EMA, Adam
from diffusion_jax.step import Training
from diffusion_jax.types import Batch, ImageSpec

STD = 0.5
SPEC = ImageSpec(4, 4, 1, None, 0)
NUM_LATENTS, NUM_DIMS = 8, 16
WEIGHT = np.random.default_rng(0).normal(size=(NUM_DIMS, NUM_LATENTS)) / 2
NUM = 600


def evidence(scale):
  """The Gaussian that the model is."""
  covariance = WEIGHT @ WEIGHT.T / scale**2 + STD**2 * np.eye(NUM_DIMS)
  return stats.multivariate_normal(np.zeros(NUM_DIMS), covariance)


def posterior(scale):
  """(matrix, covariance) of p(z | x) = N(matrix x, covariance)."""
  covariance = np.linalg.inv(WEIGHT.T @ WEIGHT / STD**2 + scale**2 * np.eye(NUM_LATENTS))
  return covariance @ WEIGHT.T / STD**2, covariance


class Linear:
  """An autoencoder's config whose decoder is W and whose encoder is a diagonal Gaussian.

  Args:
    scale: of the latents that the prior is for.
    shrink: factor on the posterior's mean; 1 makes the best diagonal q.
  """

  def __init__(self, scale, shrink=1.0):
    matrix, covariance = posterior(scale)
    self.matrix = shrink * matrix
    self.var = 1 / np.diag(np.linalg.inv(covariance))

  def create(self, spec, num_outputs):
    del num_outputs

    def encode(params, x, key=None):
      mean = x.reshape(len(x), -1) @ jnp.asarray(self.matrix.T, jnp.float32)
      log_var = jnp.broadcast_to(jnp.log(jnp.asarray(self.var, jnp.float32)), mean.shape)
      return mean.reshape(-1, 2, 2, 2), log_var.reshape(-1, 2, 2, 2)

    def decode(params, z, key=None):
      return (z.reshape(len(z), -1) @ params["weight"].T).reshape(-1, *spec.shape)

    def init(key):
      return {"weight": jnp.zeros((NUM_DIMS, NUM_LATENTS))}

    return VAENetworks(init, encode, decode, (2, 2, 2))


class Zeros:
  """A network's config whose output is 0."""

  def create(self, spec, num_labels):
    return Network(lambda key: {"w": jnp.zeros(1)}, lambda params, x, *rest: 0 * x)


class Folder:
  """A data section whose autoencoder is given."""

  def __init__(self, weights, scale):
    self.stored = Autoencoder(np.float32(weights), scale)

  def autoencoder(self):
    return self.stored


def parts(**changes):
  return {
    "process": PROCESSES["cosine"](),
    "model": Zeros(),
    "loss": Simple(),
    "sampler": Heun(steps=4),
    "guidance": Guidance(),
    "spectrum": Spectrum(5),
    "vlb": VariationalBound(),
    "continuous_vlb": ContinuousBound(256),
    "probability_flow": ProbabilityFlow(rtol=1e-6, atol=1e-6, trace="exact"),
    "decoder": Gaussian(std=STD),
    **changes,
  }


def oracle(scale, shrink=1.0, **changes):
  linear = Linear(scale, shrink)
  made = parts(autoencoder=linear, data=Folder(WEIGHT.ravel(), scale), **changes)
  generative = LatentDiffusion(prediction="v").create(made, SPEC)
  return generative, generative.init(jax.random.key(0))[0], linear


def images(scale, num=NUM):
  return np.float32(evidence(scale).rvs(num, random_state=1).reshape(num, 4, 4, 1))


def batch(image, labels=None):
  num = len(image)
  labels = np.zeros(num, np.int32) if labels is None else labels
  return Batch(image, labels, np.ones(num, np.float32), np.arange(num, dtype=np.uint32))


def gap(linear, x, scale):
  """KL(q(z | x) || p(z | x)) of each image in nats."""
  matrix, covariance = posterior(scale)
  away = x.reshape(len(x), -1) @ (linear.matrix - matrix).T
  precision = np.linalg.inv(covariance)
  constant = np.trace(precision * linear.var) - NUM_LATENTS
  constant += np.linalg.slogdet(covariance)[1] - np.log(linear.var).sum()
  return 0.5 * (constant + np.einsum("ni,ij,nj->n", away, precision, away))


@pytest.mark.parametrize("scale", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("name", ["probability_flow", "continuous_vlb"])
def test_the_bound_is_the_closed_form_elbo_whatever_the_scale(name, scale):
  """-log p(x) + KL(q || p(z | x)), image by image; a lost or doubled scale is off by nats."""
  generative, params, linear = oracle(scale)
  x = images(scale)
  keys = randomness.example_keys(jax.random.key(3), jnp.arange(NUM))
  found = jax.jit(generative.likelihoods[name])(params, keys, batch(x))
  nats = np.float64(found.bits_per_dim) * NUM_DIMS * math.log(2)
  away = nats - (gap(linear, x, scale) - evidence(scale).logpdf(x.reshape(NUM, -1)))
  error = away.std(ddof=1) / math.sqrt(NUM)
  assert error < 0.15
  assert abs(away.mean()) < 4 * error + 2e-3 * (name == "continuous_vlb")


def test_a_worse_encoder_loosens_the_bound_by_its_divergence():
  generative, params, linear = oracle(1.0, shrink=0.5)
  x = images(1.0)
  keys = randomness.example_keys(jax.random.key(3), jnp.arange(NUM))
  found = jax.jit(generative.likelihoods["probability_flow"])(params, keys, batch(x))
  nats = np.float64(found.bits_per_dim) * NUM_DIMS * math.log(2)
  expected = gap(linear, x, 1.0)
  away = nats - (expected - evidence(1.0).logpdf(x.reshape(NUM, -1)))
  assert expected.mean() > 1.0
  assert abs(away.mean()) < 4 * away.std(ddof=1) / math.sqrt(NUM)


def test_terms_add_up_and_latents_in_a_batch_are_as_good_as_images():
  """The loss of a batch of the encoder's statistics is that of the images themselves."""
  generative, params, linear = oracle(2.0)
  x = images(2.0, 6)
  keys = randomness.example_keys(jax.random.key(3), jnp.arange(6))
  found = generative.likelihoods["continuous_vlb"](params, keys, batch(x))
  assert set(found.terms) == {"reconstruction", "posterior", "prior"}
  np.testing.assert_allclose(sum(found.terms.values()), found.bits_per_dim, rtol=1e-5)
  encoded = np.concatenate(linear.create(SPEC, 1).encode({}, x), axis=-1)
  losses = [
    generative.loss(params, {}, jax.random.key(0), batch(image), True)[0] for image in (x, encoded)
  ]
  np.testing.assert_allclose(*losses, rtol=1e-5)


def test_z_is_drawn_anew_at_each_step():
  generative, params, _ = oracle(1.0)
  stats_ = np.zeros((4, 2, 2, 4), np.float32)
  draws = [generative.encode(params, jax.random.key(k), batch(stats_)) for k in (0, 1)]
  assert np.abs(draws[0] - draws[1]).min() > 0
  many = generative.encode(params, jax.random.key(0), batch(np.zeros((4000, 2, 2, 4), np.float32)))
  assert abs(np.std(many) - 1.0) < 5 / math.sqrt(2 * 32000)


def test_samples_are_the_decoders_means_and_the_way_ends_there():
  generative, params, _ = oracle(2.0, sampler=DDIM(steps=50, clip=False))
  keys = jax.random.split(jax.random.key(0), 3000)
  found = jax.jit(generative.sample)(params, keys, None).images
  covariance = np.cov(np.asarray(found).reshape(3000, -1).T)
  expected = WEIGHT @ WEIGHT.T / 4.0
  assert np.abs(covariance - expected).max() < 0.15 * np.abs(expected).max()
  path = generative.trajectory(params, keys[:5], None)
  np.testing.assert_allclose(path[-1], found[:5], atol=1e-4)


def test_the_frozen_weights_have_no_gradient_and_no_decay():
  """Of all that the optimizer sees, only the diffusion model's parameters move."""
  networks = ConvVAE(latent_channels=2, channels=8).create(ImageSpec(8, 8, 1, 17, 0), 2)
  weights = flatten(networks.init(jax.random.key(5)))
  made = parts(
    autoencoder=ConvVAE(latent_channels=2, channels=8), decoder=DiscretizedLogistic(),
    data=Folder(weights, 1.7),
    model=UNet(channels=8, multipliers=(1,), num_blocks=1, attention_resolutions=()),
  )  # fmt: skip
  generative = LatentDiffusion(prediction="v").create(made, ImageSpec(8, 8, 1, 17, 0))
  optimizer, ema = Adam(learning_rate=0.1, weight_decay=0.5), EMA(decay=0.5)
  mesh = create_mesh(MeshShape())
  state, step = begin(generative, optimizer, Training(10, 8), ema=ema, mesh=mesh)
  before = np.asarray(jax.tree.leaves(state.params["diffusion"])[0])
  encoded = np.random.default_rng(0).normal(size=(8, 4, 4, 4)).astype(np.float32)
  assert generative.trains_on == (encoded.shape[1:], encoded.dtype)
  for _ in range(3):
    state, _ = step(state, batch(encoded))
  for tree in (state.params, state.ema):
    assert np.asarray(tree["autoencoder"]).tobytes() == weights.tobytes()
    assert np.asarray(tree["latent_scale"]) == np.float32(1.7)
    assert not np.array_equal(np.asarray(jax.tree.leaves(tree["diffusion"])[0]), before)


def test_the_vector_of_weights_is_the_autoencoder():
  """What decodes a sample is what the autoencoder itself makes of the latents."""
  config, spec = ConvVAE(latent_channels=2, channels=8), ImageSpec(8, 8, 1, 17, 0)
  networks, decoder = config.create(spec, 2), DiscretizedLogistic()
  own = networks.init(jax.random.key(5))
  made = parts(autoencoder=config, decoder=decoder, data=Folder(flatten(own), 2.0))
  generative = LatentDiffusion().create(made, spec)
  params, _ = generative.init(jax.random.key(0))
  z = jax.random.normal(jax.random.key(1), (3, 4, 4, 2))
  np.testing.assert_allclose(
    generative.decode(params, 2.0 * z), decoder.mean(networks.decode(own, z)), atol=1e-6
  )


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"data": object()}, "--config.data.name=latents"),
    ({"autoencoder": ConvVAE(latent_dim=3)}, "latent_channels=4"),
    ({"autoencoder": ConvVAE(multipliers=(1,), latent_channels=1)}, "as large as the images"),
    ({"sampler": DDIM(steps=3)}, "--config.sampler.clip=false"),
    ({"process": LinearVP(num_timesteps=20)}, "--config.vlb.clip=false"),
  ],
)
def test_parts_that_do_not_fit_are_refused(changes, words):
  spec = ImageSpec(8, 8, 2, 17, 0)
  made = {**parts(autoencoder=ConvVAE(latent_channels=2)), **changes}
  made = {"data": Folder(np.zeros(3), 1.0), **made}
  with pytest.raises(ValueError, match=words):
    LatentDiffusion().create(made, spec)
