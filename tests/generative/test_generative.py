"""The wiring: what a config's sections become."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import randomness
from diffusion_jax.generative import VAE, Diffusion
from diffusion_jax.generative.diffusion import _training_labels, _Wiring
from diffusion_jax.losses import ELBO, Simple
from diffusion_jax.models import Bernoulli, ConvVAE, DiscretizedLogistic, UNet
from diffusion_jax.processes import LinearVP
from diffusion_jax.samplers import DDIM, Guidance
from diffusion_jax.types import Batch, ImageSpec

SPEC = ImageSpec(4, 4, 1, 17, 3)
UNLABELLED = SPEC._replace(num_classes=0)


def parts(**changes):
  return {
    "process": LinearVP(num_timesteps=20),
    "model": UNet(channels=8, multipliers=(1,), num_blocks=1, attention_resolutions=()),
    "loss": Simple(),
    "sampler": DDIM(steps=3),
    "guidance": Guidance(),
    **changes,
  }


def vae_parts(**changes):
  model = ConvVAE(latent_dim=3, channels=8, multipliers=(1,))
  return {"model": model, "decoder": DiscretizedLogistic(), "loss": ELBO(), **changes}


def batch(num=6):
  image = np.random.default_rng(0).integers(0, 17, (num, 4, 4, 1)).astype(np.uint8)
  return Batch(image, np.arange(num, dtype=np.int32) % 3, np.ones(num, np.float32),
               np.arange(num, dtype=np.uint32))  # fmt: skip


@pytest.mark.parametrize(
  ("config", "spec", "changes", "words"),
  [
    (Diffusion(conditional=True), UNLABELLED, {}, "has no labels"),
    (Diffusion(), SPEC, {"guidance": Guidance(2.0)}, "guidance.weight=2.0 needs"),
    (
      Diffusion(conditional=True, label_dropout=0.0),
      SPEC,
      {"guidance": Guidance(2.0)},
      "label_dropout=0",
    ),
    (Diffusion(), SPEC, {"sampler": DDIM(steps=21)}, "steps=21"),
  ],
)
def test_parts_that_do_not_fit_are_refused(config, spec, changes, words):
  with pytest.raises(ValueError, match=words):
    config.create(parts(**changes), spec)


def test_labels_are_hidden_as_often_as_asked_and_only_in_training():
  empty = dict.fromkeys(_Wiring._fields)
  wiring = _Wiring(**{**empty, "null_label": 3, "label_dropout": 0.25})
  keys = randomness.example_keys(jax.random.key(0), jnp.arange(8000))
  labels = jnp.arange(8000) % 3
  hidden = np.asarray(_training_labels(wiring, keys, labels, True))
  share = np.mean(hidden == 3)
  assert abs(share - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 8000)
  assert (hidden[hidden != 3] == np.asarray(labels)[hidden != 3]).all()
  assert (_training_labels(wiring, keys, labels, False) == labels).all()


def test_a_diffusion_model_has_what_it_claims():
  generative = Diffusion(conditional=True).create(parts(guidance=Guidance(2.0)), SPEC)
  assert generative.likelihoods == {}
  assert generative.encode is None
  assert generative.decode is None
  assert generative.num_classes == 3
  params, aux = jax.jit(generative.init)(jax.random.key(0))
  assert aux == {}
  samples = generative.sample(params, jax.random.split(jax.random.key(0), 2), jnp.asarray([0, 2]))
  assert samples.images.shape == (2, 4, 4, 1)
  assert samples.num_evaluations == 6


def test_an_untrained_eps_model_loses_the_variance_of_the_noise():
  """The output starts at 0, so the loss of an example is the mean of eps^2: 1 on average."""
  generative = Diffusion().create(parts(), SPEC)
  params, _ = jax.jit(generative.init)(jax.random.key(0))
  loss, metrics, _ = jax.jit(generative.loss, static_argnums=4)(
    params, {}, jax.random.key(1), batch(300), True
  )
  assert metrics == {}
  assert abs(np.mean(loss) - 1.0) < 5 * np.sqrt(2 / (300 * 16))


def test_a_vaes_likelihood_is_its_loss_in_bits():
  generative = VAE().create(vae_parts(), SPEC)
  assert generative.denoise is None
  assert generative.num_levels == 17
  params, _ = jax.jit(generative.init)(jax.random.key(0))
  keys = randomness.example_keys(jax.random.key(4), jnp.arange(6))
  estimate = jax.jit(generative.likelihoods["elbo"])(params, keys, batch())
  np.testing.assert_allclose(
    estimate.bits_per_dim, estimate.terms["reconstruction"] + estimate.terms["kl"], rtol=1e-5
  )
  # The loss draws its z from the first half of its key, split over the examples.
  loss_key = jax.random.key(7)
  keys = randomness.example_keys(jax.random.split(loss_key)[0], jnp.arange(6))
  estimate = jax.jit(generative.likelihoods["elbo"])(params, keys, batch())
  loss, metrics, _ = jax.jit(generative.loss, static_argnums=4)(
    params, {}, loss_key, batch(), False
  )
  np.testing.assert_allclose(loss / (16 * np.log(2)), estimate.bits_per_dim, rtol=1e-5)
  np.testing.assert_allclose(metrics["reconstruction_nats"] + metrics["kl_nats"], loss, rtol=1e-5)


def test_a_bernoulli_vae_counts_two_levels():
  assert VAE().create(vae_parts(decoder=Bernoulli()), SPEC).num_levels == 2


def test_encode_then_decode_has_the_images_shape():
  generative = VAE().create(vae_parts(), SPEC)
  params, _ = jax.jit(generative.init)(jax.random.key(0))
  z = generative.encode(params, jax.random.key(0), batch())
  images = generative.decode(params, z)
  assert images.shape == (6, 4, 4, 1)
