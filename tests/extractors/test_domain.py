"""A data set's own features: a classifier that has learned it, in a file that knows itself."""

import jax
import numpy as np
import pytest

from diffusion_jax.core import rng
from diffusion_jax.core.pixels import as_pictures
from diffusion_jax.data import ArraySource, Digits
from diffusion_jax.extractors import domain, load_domain, make_extract, train_domain
from diffusion_jax.extractors.domain import Recipe, data_name, default_features_path
from diffusion_jax.parallel import sharding
from diffusion_jax.types import UserError


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """Features of the digits after a short training, and their file."""
  path = tmp_path_factory.mktemp("features") / "digits.npz"
  digits = Digits()
  recipe = Recipe(num_steps=60, batch_size=64)
  return train_domain(digits.load("train"), digits.load("test"), path, recipe), path


@pytest.mark.costly
def test_it_has_learned_the_classes(trained):
  extractor, _ = trained
  assert extractor.name == "digits"
  assert extractor.stamp["accuracy"] > 0.9
  test = Digits().load("test")
  images, labels = test.gather(np.arange(len(test)))
  extract = make_extract(extractor, sharding.create_mesh(sharding.MeshShape()), 64)
  features = extract(as_pictures(images, 17))
  assert features.pool.shape == (297, 64)
  assert features.spatial is None
  right = (features.logits.argmax(-1) == labels).mean()
  assert right == pytest.approx(extractor.stamp["accuracy"], abs=0.004)  # at most one of 297


def test_the_file_gives_the_same_network(trained):
  extractor, path = trained
  again = load_domain(path)
  assert again.stamp == extractor.stamp
  image = np.full((1, 8, 8, 1), 100, np.uint8)
  found, expected = (jax.jit(e.apply)(e.params, image) for e in (again, extractor))
  for a, b in zip(found, expected, strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.costly
def test_the_same_recipe_gives_the_same_hash(tmp_path):
  train = Digits().load("train")
  recipe = Recipe(num_steps=2, batch_size=8)
  first, second = (train_domain(train, None, tmp_path / f"{i}.npz", recipe) for i in "ab")
  other = train_domain(train, None, tmp_path / "c.npz", recipe._replace(seed=1))
  assert first.stamp["sha256"] == second.stamp["sha256"] != other.stamp["sha256"]


def test_features_of_other_draws_are_kept_apart(trained):
  """A file that an older version has trained from unnamed keys is not read as today's."""
  extractor, _ = trained
  assert extractor.stamp["draws"] == rng.DRAWS
  assert f"draws{rng.DRAWS}" in default_features_path(Digits().load("train")).name


def test_the_shift_of_an_image_depends_on_its_own_key_alone():
  keys = rng.example_keys(jax.random.key(0), np.arange(6))
  x = np.random.default_rng(0).normal(size=(6, 5, 5, 1)).astype(np.float32)
  run = jax.jit(lambda x, keys: domain._shift(x, keys, 2))
  whole, part = run(x, keys), run(x[3:], keys[3:])
  np.testing.assert_array_equal(whole[3:], part)
  assert not np.array_equal(whole, x)


@pytest.mark.parametrize("damage", ["truncated", "changed", "text", "of another kind"])
def test_a_damaged_file_is_refused(trained, tmp_path, damage):
  _, path = trained
  data = path.read_bytes()
  broken = tmp_path / "broken.npz"
  if damage == "changed":  # an archive that is whole, with one weight of another value
    with np.load(path) as file:
      arrays = {name: file[name] for name in file.files}
    arrays["hidden/bias"] = arrays["hidden/bias"] + np.float32(1e-3)
    np.savez(broken, **arrays)
  elif damage == "of another kind":
    np.savez(broken, images=np.zeros(3))
  else:
    broken.write_bytes({"truncated": data[:-100], "text": b"hello"}[damage])
  kind = {"truncated": "is damaged or cut short", "text": "is no .npz"}
  with pytest.raises(UserError, match=kind.get(damage, "is not a readable file of fe")) as error:
    load_domain(broken)
  assert "python -m diffusion_jax.features" in str(error.value)
  assert "\n" not in str(error.value)


def test_what_is_missing_is_said(tmp_path):
  with pytest.raises(UserError, match="no such file; make one"):
    load_domain(tmp_path / "none.npz")


def test_a_set_without_labels_has_random_features(tmp_path):
  images = np.random.default_rng(0).integers(0, 256, (40, 12, 10, 1), np.uint8)
  source = ArraySource("photos train", images, None, 256, 0)
  extractor = train_domain(source, None, tmp_path / "x.npz", Recipe())
  assert (extractor.name, extractor.resolution) == ("random_photos", (12, 10, 1))
  assert "random convolutions" in extractor.stamp["network"]
  extract = make_extract(extractor, sharding.create_mesh(sharding.MeshShape()), 8)
  features = extract(images)
  assert features.logits.shape == (40, 0)
  np.testing.assert_allclose(features.pool.mean(0), 0, atol=0.3)
  assert 0.5 < features.pool.std() < 2
  again = train_domain(source, None, tmp_path / "y.npz", Recipe())
  assert again.stamp == extractor.stamp
  labelled = ArraySource("photos train", images, np.zeros(40, int), 256, 1)
  assert default_features_path(labelled) != default_features_path(source)


def test_features_that_are_not_finite_are_refused(trained):
  params = jax.tree.map(lambda leaf: leaf * np.float32(np.nan), trained[0].params)
  broken = trained[0]._replace(params=params)
  extract = make_extract(broken, sharding.create_mesh(sharding.MeshShape()), 8)
  with pytest.raises(UserError, match="the features of digits are not finite"):
    extract(np.zeros((2, 8, 8, 1), np.uint8))


def test_names_of_data_sets():
  images = np.zeros((2, 4, 4, 1), np.uint8)
  for name, expected in (("digits train", "digits"), ("My Set-1 given", "my_set_1")):
    assert data_name(ArraySource(name, images, None, 256, 0)) == expected
