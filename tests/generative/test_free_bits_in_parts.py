"""Free bits under accumulation: the whole batch's mean decides, not the microbatch's."""

import functools

import jax
import numpy as np
import pytest

from diffusion_jax.generative import VAE
from diffusion_jax.likelihood import ImportanceWeighted
from diffusion_jax.losses import ELBO
from diffusion_jax.models import ConvVAE, DiscretizedLogistic
from diffusion_jax.parallel.sharding import MeshShape, create_mesh
from diffusion_jax.training import step
from diffusion_jax.training.objectives import trained_objectives
from diffusion_jax.training.optimizers import Adam
from diffusion_jax.types import Batch, ImageSpec

SPEC = ImageSpec(4, 4, 1, 17, 0)


def model(free_bits):
  parts = {
    "model": ConvVAE(latent_dim=6, channels=8, multipliers=(1,), dropout=0.0),
    "decoder": DiscretizedLogistic(),
    "loss": ELBO(free_bits=free_bits),
    "iwae": ImportanceWeighted(4, 3),
  }
  return VAE().create(parts, SPEC)


def images(num=8, parts=4):
  """Every fourth image is black, the next two are noise, the last is white: unlike microbatches."""
  image = np.random.default_rng(0).integers(0, 17, (num, 4, 4, 1)).astype(np.uint8)
  image[0::parts], image[3::parts] = 0, 16
  return Batch(image, np.zeros(num, np.int32), np.ones(num, np.float32),
               np.arange(num, dtype=np.uint32))  # fmt: skip


def gradient(vae, parts, params, key, batch):
  """Gradient and scalars of a step of this number of microbatches."""
  training = step.Training(accumulation_steps=parts)
  (trained,) = trained_objectives(vae, Adam())
  point = step._Point(vae, params, key, batch, training)
  mesh = create_mesh(MeshShape(), jax.devices()[:1])
  return step._gradient(point, trained, {}, mesh, False, None)[:2]


@pytest.mark.costly
def test_accumulation_has_the_gradient_of_the_whole_batch():
  """With a threshold by which microbatches decide otherwise than the whole batch."""
  key, batch = jax.random.key(1), images()
  params, _ = jax.jit(model(1.0).init)(jax.random.key(0))
  params = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(key, p.shape), params)
  kl = np.asarray(
    jax.jit(model(1.0).batch_statistics, static_argnames="train")(params, key, batch, train=True)
  )
  threshold = float(np.median(kl.mean(0)))
  by_part = kl.reshape(2, 4, -1).mean(0) > threshold
  whole = kl.mean(0) > threshold
  assert 0 < whole.sum() < len(whole)  # some dimensions are free
  assert (by_part != whole).sum() >= 4
  found = []
  for parts in (1, 4):
    found.append(jax.jit(functools.partial(gradient, model(threshold), parts))(params, key, batch))
  (one, one_scalars), (four, four_scalars) = jax.device_get(found)
  np.testing.assert_allclose(four_scalars["loss"], one_scalars["loss"], rtol=1e-6)
  scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(one))
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(four), strict=True):
    np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-6 * scale)


def test_without_free_bits_nothing_is_computed_for_it():
  assert not model(0.0).needs_batch_mean
