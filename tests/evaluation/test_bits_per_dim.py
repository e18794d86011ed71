"""Bits/dim over a split: every image once, and errors that tell images from draws."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.data import ArraySource
from diffusion_jax.evaluation import bits_per_dim
from diffusion_jax.generative import ModelBase
from diffusion_jax.parallel import sharding
from diffusion_jax.runs.resumable import Chunks
from diffusion_jax.types import Estimate


def generative(noise):
  """An estimator whose value is the image's first pixel plus noise from its key."""

  def value(params, keys, batch):
    draws = jax.vmap(lambda k: jax.random.normal(k, (3,)))(keys)
    bits = batch.image[:, 0, 0, 0] * params + noise * draws[:, 0]
    return Estimate(bits, {"pixel": batch.image[:, 0, 0, 0] * 1.0, "curve": draws})

  class Mine(ModelBase):
    likelihoods: ClassVar = {"mine": value}

  return Mine()


def source(num):
  images = np.random.default_rng(0).integers(0, 200, (num, 2, 2, 1)).astype(np.uint8)
  return ArraySource("mine test", images, None, 256, 0), images[:, 0, 0, 0].astype(float)


def run(tmp_path, noise, num=37, repeats=2, devices=8, batch_size=16):
  mesh = sharding.create_mesh(sharding.MeshShape(), jax.devices()[:devices])
  estimate = bits_per_dim.make_estimate(generative(noise), "mine", mesh)
  told = []
  split = bits_per_dim.SplitEstimate(
    jnp.float32(2.0), source(num)[0], mesh, Chunks(tmp_path, {}), batch_size, repeats, 5
  )
  values = bits_per_dim.estimate_split(estimate, split, lambda num, new: told.append((num, new)))
  assert sum(count for count, _ in told) == num * repeats
  assert all(is_new for _, is_new in told)
  told.clear()  # a second time everything is read from the disk
  bits_per_dim.estimate_split(estimate, split, lambda num, new: told.append((num, new)))
  assert sum(count for count, _ in told) == num * repeats
  assert not any(is_new for _, is_new in told)
  return values


def test_every_image_counts_once_per_repeat(tmp_path):
  values = run(tmp_path, noise=0.0)
  assert values["bits_per_dim"].shape == (2, 37)
  np.testing.assert_allclose(values["bits_per_dim"][0], 2.0 * source(37)[1])
  np.testing.assert_array_equal(values["pixel"][1], source(37)[1])


def test_neither_devices_nor_batches_change_a_draw(tmp_path):
  one = run(tmp_path / "a", noise=1.0, devices=1, batch_size=8)
  eight = run(tmp_path / "b", noise=1.0, devices=8, batch_size=32)
  np.testing.assert_allclose(one["bits_per_dim"], eight["bits_per_dim"], rtol=1e-6)
  assert np.abs(one["curve"][0] - one["curve"][1]).min() > 0  # the repeats differ


def test_the_errors_separate_images_from_draws():
  """1,000 splits of 50 images with 3 draws each: the reported errors are the true spreads."""
  rng = np.random.default_rng(1)
  image_std, draw_std, num, repeats = 0.5, 2.0, 50, 3
  images = rng.normal(0, image_std, (1000, 1, num))
  values = images + rng.normal(0, draw_std, (1000, repeats, num))
  found = [bits_per_dim.standard_errors(v) for v in values]
  total, draws = np.sqrt(np.mean(np.square(found), axis=0))
  assert total == pytest.approx(values.mean((1, 2)).std(), rel=0.05)
  assert draws == pytest.approx(draw_std / np.sqrt(num * repeats), rel=0.02)
  assert np.sqrt(total**2 - draws**2) == pytest.approx(image_std / np.sqrt(num), rel=0.1)


def test_one_repeat_gives_the_sum_of_the_errors_alone():
  summary = bits_per_dim.summarize_estimates({"bits_per_dim": np.array([[1.0, 3.0]])})
  assert summary["standard_error"] == pytest.approx(1.0)
  assert summary["standard_error_monte_carlo"] is None
  assert summary["standard_error_images"] is None


def test_terms_and_curves_are_means(tmp_path):
  values = run(tmp_path, noise=1.0)
  summary = bits_per_dim.summarize_estimates(values)
  assert summary["num_images"] == 37
  assert summary["terms"]["pixel"]["mean"] == pytest.approx(source(37)[1].mean())
  np.testing.assert_allclose(
    summary["curves"]["curve"]["bits_per_dim"], values["curve"].mean((0, 1))
  )
  assert summary["curves"]["curve"]["t"] == pytest.approx([1 / 3, 2 / 3, 1.0])
