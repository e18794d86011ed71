"""Reference statistics: every image once, a stamp that says what they are, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.data import ArraySource
from diffusion_jax.evaluation import reference
from diffusion_jax.extractors import Extractor, make_extract
from diffusion_jax.parallel import sharding
from diffusion_jax.types import UserError

NUM = 37
IMAGES = np.random.default_rng(0).integers(0, 17, (NUM, 4, 4, 1)).astype(np.uint8)
SOURCE = ArraySource("tiny train", IMAGES, None, 17, 0)


def apply(params, images):
  flat = images.reshape(images.shape[0], -1).astype(jnp.float32) * params
  return flat[:, :5], flat[:, :3], flat[:, 5:8]


def make(name="tiny", sha256="ab", devices=8, batch_size=16):
  extractor = Extractor(name, {"sha256": sha256, "resize": "none"}, jnp.float32(0.5), apply)
  mesh = sharding.create_mesh(sharding.MeshShape(), jax.devices()[:devices])
  return extractor, make_extract(extractor, mesh, batch_size)


@pytest.fixture
def found():
  return reference.compute(SOURCE, "train", *make(), chunk=20)


def pictures():
  """Levels 0..16 on 0..255 by the rule floor(127.5 x + 128)."""
  return np.floor(127.5 * (IMAGES / 8.0 - 1.0) + 128).clip(0, 255).reshape(NUM, -1)


def test_nothing_is_dropped_and_no_padding_counts(found):
  """37 images in chunks of 20 and batches of 16 over 8 devices: NumPy's mean and covariance."""
  features = 0.5 * pictures()
  assert found.pool.num == NUM
  np.testing.assert_allclose(found.pool.mean, features[:, :5].mean(0), rtol=1e-12)
  np.testing.assert_allclose(found.pool.covariance, np.cov(features[:, :5].T), rtol=1e-9)
  np.testing.assert_allclose(found.spatial.covariance, np.cov(features[:, 5:8].T), rtol=1e-9)
  np.testing.assert_allclose(found.features, features[:, :5], rtol=1e-6)
  np.testing.assert_array_equal(found.places, np.arange(NUM))


def test_the_devices_do_not_matter(found):
  one = reference.compute(SOURCE, "train", *make(devices=1, batch_size=7))
  np.testing.assert_allclose(one.pool.outer, found.pool.outer, rtol=1e-6)


def test_many_images_keep_some_features_and_all_moments(monkeypatch):
  monkeypatch.setattr(reference, "MAX_FEATURES", 10)
  found = reference.compute(SOURCE, "train", *make(), chunk=20)
  assert found.pool.num == NUM
  assert len(found.features) == len(found.places) == 10
  np.testing.assert_allclose(found.features, 0.5 * pictures()[found.places, :5])


def test_the_stamp_says_what_it_is(found):
  stamp = found.stamp
  assert (stamp["data"], stamp["split"], stamp["num"]) == ("tiny", "train", NUM)
  assert stamp["resolution"] == [4, 4, 1]
  assert (stamp["extractor_sha256"], stamp["resize"]) == ("ab", "none")
  assert stamp["augmentation"] == "none"


def test_a_file_gives_back_what_was_saved(found, tmp_path):
  reference.save(tmp_path / "a.npz", found)
  again = reference.load_statistics(tmp_path / "a.npz")
  assert again.stamp == found.stamp
  for name in ("total", "outer"):
    np.testing.assert_array_equal(getattr(again.pool, name), getattr(found.pool, name))
    np.testing.assert_array_equal(getattr(again.spatial, name), getattr(found.spatial, name))
  assert reference.is_statistics(tmp_path / "a.npz")


def test_a_truncated_file_is_refused(found, tmp_path):
  reference.save(tmp_path / "a.npz", found)
  data = (tmp_path / "a.npz").read_bytes()
  (tmp_path / "a.npz").write_bytes(data[: len(data) // 2])
  with pytest.raises(UserError, match="is damaged or cut short; make them again"):
    reference.load_statistics(tmp_path / "a.npz")
  with pytest.raises(UserError, match="no such file"):
    reference.load_statistics(tmp_path / "none.npz")


@pytest.mark.parametrize(
  ("extractor", "resolution", "word"),
  [
    (make(sha256="cd")[0], (4, 4, 1), "extractor_sha256"),
    (make(name="other")[0], (4, 4, 1), "extractor"),
    (make()[0], (8, 8, 1), "resolution"),
  ],
)
def test_a_mismatch_is_refused_with_both_stamps(found, extractor, resolution, word):
  reference.check_reference(found, make()[0], (4, 4, 1))
  with pytest.raises(UserError) as error:
    reference.check_reference(found, extractor, resolution)
  assert f"the reference differs in {word}" in str(error.value)
  assert '"ab"' in str(error.value)
  assert f'"{extractor.stamp["sha256"]}"' in str(error.value)
  assert str(list(resolution)) in str(error.value)


def test_the_cache_is_used_and_mended(tmp_path):
  extractor, extract = make()
  calls = []

  def counted(images):
    calls.append(len(images))
    return extract(images)

  first = reference.cached(SOURCE, "train", extractor, counted, tmp_path)
  again = reference.cached(SOURCE, "train", extractor, counted, tmp_path)
  assert sum(calls) == NUM
  np.testing.assert_array_equal(again.pool.outer, first.pool.outer)
  (file,) = tmp_path.glob("*.npz")
  file.write_bytes(b"damaged")
  reference.cached(SOURCE, "train", extractor, counted, tmp_path)
  assert sum(calls) == 2 * NUM
  reference.cached(SOURCE, "test", extractor, counted, tmp_path)
  assert sum(calls) == 3 * NUM


def test_one_image_is_no_reference():
  alone = ArraySource("one train", IMAGES[:1], None, 17, 0)
  with pytest.raises(UserError, match="has 1 image; statistics need at least 2"):
    reference.compute(alone, "train", *make())
