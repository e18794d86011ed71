"""Latent diffusion: its bound against a linear Gaussian model, its frozen weights, its messages.

The oracle: z ~ N(0, I / scale^2), x = W z + noise of standard deviation STD, so that p(x) =
N(0, W W' / scale^2 + STD^2 I). A network of zeros that predicts v under a variance-preserving
process is the exact denoiser of N(0, I), the law of scale z.
"""

import functools
import math

import jax
import numpy as np
import pytest
from numpy_draws import moved, normal
from plug_ins import Shrink
from scipy import stats
from steps import begin

from diffusion_jax.core import rng
from diffusion_jax.data.digits import Digits
from diffusion_jax.data.latents import Autoencoder
from diffusion_jax.generative import LatentDiffusion
from diffusion_jax.generative.latent_diffusion import flatten
from diffusion_jax.likelihood import ContinuousBound, ProbabilityFlow, Spectrum, VariationalBound
from diffusion_jax.losses import Simple
from diffusion_jax.models import (
  MLP,
  ConvVAE,
  DiscretizedLogistic,
  Gaussian,
  Network,
  NetworkBase,
  VAENetworks,
)
from diffusion_jax.parallel.sharding import MeshShape, create_mesh
from diffusion_jax.processes import PROCESSES, LinearVP
from diffusion_jax.samplers import DDIM, DPMSolverPP2M, Guidance, Heun
from diffusion_jax.training.ema import EMA
from diffusion_jax.training.optimizers import Adam
from diffusion_jax.training.step import Training
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

  Both are among its weights, so that one compiled program serves every scale.
  """

  def create(self, spec, num_outputs):
    del num_outputs

    def encode(params, x, key=None):
      mean = x.reshape(len(x), -1) @ params["matrix"].T
      log_var = 0 * mean + params["log_var"]
      return mean.reshape(-1, 2, 2, 2), log_var.reshape(-1, 2, 2, 2)

    def decode(params, z, key=None):
      return (z.reshape(len(z), -1) @ params["weight"].T).reshape(-1, *spec.shape)

    return VAENetworks(lambda key: weights(1.0), encode, decode, (2, 2, 2))


def weights(scale, shrink=1.0):
  """Of `Linear`.

  Args:
    scale: of the latents that the prior is for.
    shrink: factor on the posterior's mean; 1 makes the best diagonal q.
  """
  matrix, covariance = posterior(scale)
  var = 1 / np.diag(np.linalg.inv(covariance))
  made = {"log_var": np.log(var), "matrix": shrink * matrix, "weight": WEIGHT}
  return jax.tree.map(np.float32, made)


def vector(params):
  """What `flatten` makes of an autoencoder's parameters, without a program for every shape."""
  return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)])


class Zeros(NetworkBase):
  """A network's config whose output is 0."""

  def create(self, spec, num_labels):
    return Network(lambda key: {"w": np.zeros(1, np.float32)}, lambda params, x, *rest: 0 * x)


class Folder:
  """A data section whose autoencoder is given."""

  has_latents = True

  def __init__(self, vector, scale):
    self.stored = Autoencoder(np.float32(vector), scale)

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


SAMPLER = DPMSolverPP2M(steps=50)  # within 5% of its limit


def oracle(scale, shrink=1.0):
  """(the model, its parameters); the model's functions do the same whatever the scale."""
  data = Folder(vector(weights(scale, shrink)), scale)
  made = parts(autoencoder=Linear(), data=data, sampler=SAMPLER)
  generative = LatentDiffusion(prediction="v").create(made, SPEC)
  return generative, generative.init(jax.random.key(0))[0]


@pytest.fixture(scope="module")
def bounds():
  """The compiled likelihoods: name -> (parameters, images) -> estimate."""
  generative, _ = oracle(1.0)
  keys = rng.example_keys(jax.random.key(3), np.arange(NUM))
  jitted = {name: jax.jit(bound) for name, bound in generative.likelihoods.items()}
  return {
    name: functools.partial(lambda f, params, x: f(params, keys, batch(x)), f)
    for name, f in jitted.items()
  }


def images(scale, num=NUM):
  return np.float32(evidence(scale).rvs(num, random_state=1).reshape(num, 4, 4, 1))


def batch(image, labels=None):
  num = len(image)
  labels = np.zeros(num, np.int32) if labels is None else labels
  return Batch(image, labels, np.ones(num, np.float32), np.arange(num, dtype=np.uint32))


def gap(encoder, x, scale):
  """KL(q(z | x) || p(z | x)) of each image in nats."""
  matrix, covariance = posterior(scale)
  encoder = jax.tree.map(np.float64, encoder)
  var = np.exp(encoder["log_var"])
  away = x.reshape(len(x), -1) @ (encoder["matrix"] - matrix).T
  precision = np.linalg.inv(covariance)
  constant = np.trace(precision * var) - NUM_LATENTS
  constant += np.linalg.slogdet(covariance)[1] - encoder["log_var"].sum()
  return 0.5 * (constant + np.einsum("ni,ij,nj->n", away, precision, away))


@pytest.mark.parametrize("scale", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("name", ["probability_flow", "continuous_vlb"])
def test_the_bound_is_the_closed_form_elbo_whatever_the_scale(name, scale, bounds):
  """-log p(x) + KL(q || p(z | x)), image by image; a lost or doubled scale is off by nats."""
  _, params = oracle(scale)
  x = images(scale)
  found = bounds[name](params, x)
  nats = np.float64(found.bits_per_dim) * NUM_DIMS * math.log(2)
  away = nats - (gap(weights(scale), x, scale) - evidence(scale).logpdf(x.reshape(NUM, -1)))
  error = away.std(ddof=1) / math.sqrt(NUM)
  assert error < 0.15
  assert abs(away.mean()) < 4 * error + 2e-3 * (name == "continuous_vlb")


def test_a_worse_encoder_loosens_the_bound_by_its_divergence(bounds):
  _, params = oracle(1.0, shrink=0.5)
  x = images(1.0)
  found = bounds["probability_flow"](params, x)
  nats = np.float64(found.bits_per_dim) * NUM_DIMS * math.log(2)
  expected = gap(weights(1.0, shrink=0.5), x, 1.0)
  away = nats - (expected - evidence(1.0).logpdf(x.reshape(NUM, -1)))
  assert expected.mean() > 1.0
  assert abs(away.mean()) < 4 * away.std(ddof=1) / math.sqrt(NUM)


def test_terms_add_up_and_latents_in_a_batch_are_as_good_as_images(bounds):
  """The loss of a batch of the encoder's statistics is that of the images themselves."""
  generative, params = oracle(2.0)
  x = images(2.0)
  found = bounds["continuous_vlb"](params, x)
  assert set(found.terms) == {"reconstruction", "posterior", "prior"}
  total = sum(map(np.asarray, found.terms.values()))
  np.testing.assert_allclose(total, found.bits_per_dim, rtol=1e-5)
  encoder = weights(2.0)
  mean = x[:6].reshape(6, -1) @ encoder["matrix"].T
  both = mean, 0 * mean + encoder["log_var"]
  encoded = np.concatenate([v.reshape(6, 2, 2, 2) for v in both], axis=-1)
  loss = jax.jit(generative.loss, static_argnames="train")
  losses = [
    loss(params, {}, jax.random.key(0), batch(image), train=True)[0] for image in (x[:6], encoded)
  ]
  np.testing.assert_allclose(*losses, rtol=1e-5)


def test_z_is_drawn_anew_at_each_step():
  generative, params = oracle(1.0)
  encode = jax.jit(generative.encode)
  stats_ = batch(np.zeros((4000, 2, 2, 4), np.float32))
  draws = [np.asarray(encode(params, jax.random.key(k), stats_)) for k in (0, 1)]
  assert np.abs(draws[0][:4] - draws[1][:4]).min() > 0
  assert abs(np.std(draws[0]) - 1.0) < 5 / math.sqrt(2 * 32000)


def test_samples_are_the_decoders_means_and_the_way_ends_there():
  generative, params = oracle(2.0)
  keys = rng.example_keys(jax.random.key(0), np.arange(3000))
  found = np.asarray(jax.jit(generative.sample)(params, keys).images)
  covariance = np.cov(found.reshape(3000, -1).T)
  expected = WEIGHT @ WEIGHT.T / 4.0
  assert np.abs(covariance - expected).max() < 0.15 * np.abs(expected).max()
  path = jax.jit(generative.trajectory)(params, keys[:5])
  np.testing.assert_allclose(path[-1], found[:5], atol=1e-4)


VAE, VAE_SPEC = ConvVAE(latent_channels=2, channels=8), ImageSpec(8, 8, 1, 17, 0)


@pytest.fixture(scope="module")
def networks():
  return VAE.create(VAE_SPEC, 2)


@pytest.fixture(scope="module")
def own(networks):
  """Parameters of the VAE, none of which is zero."""
  shapes = jax.eval_shape(networks.init, jax.random.key(5))
  return moved(jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes), std=0.5)


@pytest.mark.parametrize(
  "optimizer",
  [Adam(learning_rate=0.1, weight_decay=0.5, decay="non_bias"), Shrink(learning_rate=0.1)],
)
def test_the_frozen_weights_have_no_gradient_and_no_decay(own, optimizer):
  """Of all that the optimizer sees, only the diffusion model's parameters move."""
  frozen = vector(own)
  assert frozen.tobytes() == flatten(own).tobytes()
  made = parts(
    autoencoder=VAE, decoder=DiscretizedLogistic(), data=Folder(frozen, 1.7),
    model=MLP(hidden=8, depth=1),
  )  # fmt: skip
  generative = LatentDiffusion(prediction="v").create(made, VAE_SPEC)
  ema = EMA(decay=0.5)
  mesh = create_mesh(MeshShape())
  state, step = begin(generative, optimizer, Training(10, 8), ema=ema, mesh=mesh)
  before = np.asarray(jax.tree.leaves(state.params["diffusion"])[0])
  encoded = normal(0, 8, 4, 4, 4)
  assert generative.trains_on == (encoded.shape[1:], encoded.dtype)
  for _ in range(3):
    state, _ = step(state, batch(encoded))
  for tree in (state.params, state.ema):
    assert np.asarray(tree["autoencoder"]).tobytes() == frozen.tobytes()
    assert np.asarray(tree["latent_scale"]) == np.float32(1.7)
    assert not np.array_equal(np.asarray(jax.tree.leaves(tree["diffusion"])[0]), before)


def test_the_vector_of_weights_is_the_autoencoder(networks, own):
  """What decodes a sample is what the autoencoder itself makes of the latents."""
  decoder = DiscretizedLogistic()
  made = parts(autoencoder=VAE, decoder=decoder, data=Folder(vector(own), 2.0))
  generative = LatentDiffusion().create(made, VAE_SPEC)
  params, _ = generative.init(jax.random.key(0))
  z = normal(1, 3, 4, 4, 2)
  expected = jax.jit(lambda own, z: decoder.mean(networks.decode(own, z)))(own, z)
  assert np.std(np.asarray(expected)) > 0.1
  np.testing.assert_allclose(jax.jit(generative.decode)(params, 2.0 * z), expected, atol=1e-6)


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"data": Digits()}, "`data.name=latents`"),
    ({"autoencoder": ConvVAE(latent_dim=3)}, "latent_channels=4"),
    ({"autoencoder": ConvVAE(multipliers=(1,), latent_channels=1)}, "as large as the images"),
    ({"sampler": DDIM(steps=3)}, "`sampler.clip=False`"),
    ({"process": LinearVP(num_timesteps=20)}, "`vlb.clip=False`"),
  ],
)
def test_parts_that_do_not_fit_are_refused(changes, words):
  spec = ImageSpec(8, 8, 2, 17, 0)
  made = {**parts(autoencoder=ConvVAE(latent_channels=2)), **changes}
  made = {"data": Folder(np.zeros(3), 1.0), **made}
  with pytest.raises(ValueError, match=words):
    LatentDiffusion().create(made, spec)
