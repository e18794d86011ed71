"""Named arrays of a batch: with their images everywhere, and refused where they do not fit."""

import hashlib

import numpy as np
import pytest

from diffusion_jax.core.wording import describe_data
from diffusion_jax.data import (
  Arrays,
  ArraySource,
  TrainStream,
  fingerprint,
  full_pass,
  with_channels,
)
from diffusion_jax.data.latents import LatentSource
from diffusion_jax.types import FieldSpec, ImageSpec, UserError

NUM = 23
PIXELS = np.stack([np.arange(NUM), 100 + np.arange(NUM)], axis=-1).astype(np.uint8)
IMAGES = PIXELS[:, None, :, None]
FIELDS = {
  "embedding": np.arange(NUM)[:, None] + np.array([0.0, 0.5]),
  "small": IMAGES + 1,
  "tokens": np.arange(NUM) + 1000,
}


def named(**changes):
  return ArraySource("named", IMAGES, fields={**FIELDS, **changes})


def records(batch):
  return np.minimum(batch.image[:, 0, 0, 0], batch.image[:, 0, 1, 0]).astype(int)


def test_a_source_declares_its_named_arrays():
  assert named().spec.fields == {
    "embedding": FieldSpec((2,), "float32"),
    "small": FieldSpec((1, 2, 1), "uint8"),
    "tokens": FieldSpec((), "int32"),
  }
  text = describe_data("named", NUM, named().spec)
  assert text.endswith("embedding float32[2], small uint8[1, 2, 1], tokens int32[]")


@pytest.mark.parametrize("flip", [False, True])
def test_named_arrays_stay_with_their_images(flip):
  """Images among them are mirrored with the image, other arrays never."""
  batch = TrainStream(named(), 50, 3, flip).batch(2)
  number = records(batch)
  np.testing.assert_array_equal(batch.fields["embedding"][:, 0], number)
  np.testing.assert_array_equal(batch.fields["tokens"], number + 1000)
  np.testing.assert_array_equal(batch.fields["small"], batch.image + 1)
  assert (batch.image[:, 0, 0, 0] >= 100).any() == flip


def test_processes_cut_the_same_named_arrays():
  whole = TrainStream(named(), 8, 3, True).batch(5)
  for rows in (np.arange(3), np.arange(3, 8)):
    part = TrainStream(named(), 8, 3, True, rows).batch(5)
    for name, array in part.fields.items():
      np.testing.assert_array_equal(array, whole.fields[name][rows])


def test_padding_has_named_arrays_too():
  *_, last = full_pass(named(), 8)
  assert last.mask.sum() == 7
  assert {len(array) for array in last.fields.values()} == {8}
  np.testing.assert_array_equal(last.fields["tokens"], records(last) + 1000)


def test_a_fingerprint_sees_named_arrays_and_is_the_old_one_without():
  bare = ArraySource("named", IMAGES)
  facts = repr((NUM, (1, 2, 1, 256, 0))).encode()
  digest = hashlib.sha256(facts + IMAGES.tobytes() + bytes(4 * NUM))
  assert fingerprint(bare) == digest.hexdigest()[:16]
  other = named(tokens=np.arange(NUM))
  assert len({fingerprint(s) for s in (bare, named(), other)}) == 3


def test_a_spec_is_stored_and_read_back():
  spec = named().spec
  assert ImageSpec.from_json(spec.to_json()) == spec
  plain = {"height": 8, "width": 8, "channels": 1, "num_levels": 17, "num_classes": 10}
  assert ImageSpec.from_json(plain).to_json() == plain


def test_other_views_of_the_images_keep_them():
  grey = named()
  assert with_channels(grey, 3).gather_fields(np.arange(2)).keys() == FIELDS.keys()
  stats = np.zeros((NUM, 1, 1, 2), np.float32)
  latents = LatentSource("latents", stats, np.zeros(NUM, int), 0, grey)
  assert latents.spec.fields == grey.spec.fields
  batch = TrainStream(latents, 5, 0).batch(0)
  np.testing.assert_array_equal(batch.fields["embedding"][:, 0] + 1000, batch.fields["tokens"])


class TestFile:
  def write(self, path, fields=("embedding",), **arrays):
    np.savez(path / "a.npz", **{"images": IMAGES, **arrays})
    return Arrays(path=str(path / "a.npz"), fields=fields)

  def test_they_are_read_beside_the_images(self, tmp_path):
    data = self.write(tmp_path, embedding=FIELDS["embedding"])
    source = data.load("train")
    np.testing.assert_array_equal(source.gather_fields(np.array([4]))["embedding"], [[4.0, 4.5]])
    assert not source.about.notes
    assert data.known_spec() == source.spec

  def test_each_split_has_its_own(self, tmp_path):
    data = self.write(
      tmp_path, train_embedding=FIELDS["embedding"], test_images=IMAGES[:2],
      test_embedding=FIELDS["embedding"][:2],
    )  # fmt: skip
    assert data.load("test").spec == data.load("train").spec
    assert not data.load("train").about.notes

  def test_an_array_that_nothing_names_is_not_read(self, tmp_path):
    data = self.write(tmp_path, (), embedding=FIELDS["embedding"])
    assert data.load("train").spec.fields == {}
    assert data.load("train").about.notes == ["arrays that are not read: embedding"]

  @pytest.mark.parametrize(
    ("arrays", "message"),
    [
      ({}, r"fields=embedding`: .*a.npz has the array.* images; it needs train_embedding or"),
      ({"embedding": np.zeros(3)}, "'embedding' has 3 rows beside 23 images; it must have one"),
      ({"embedding": np.zeros(())}, "'embedding' has no rows beside 23 images"),
      (
        {"embedding": np.where(np.arange(NUM) < 2, np.inf, 0)},
        r"'embedding' is not finite \(NaN or infinity\) in 2 of 23 rows",
      ),
      ({"embedding": np.full(NUM, 2**40)}, "which int32 does not"),
    ],
  )
  def test_what_does_not_fit_is_named(self, tmp_path, arrays, message):
    with pytest.raises(UserError, match=message):
      self.write(tmp_path, **arrays).load("train")

  @pytest.mark.parametrize("fields", [("a", "a"), ("",), ("a b",)])
  def test_names_are_names(self, fields):
    with pytest.raises(ValueError, match=r"fields=.* must be different names"):
      Arrays(fields=fields)
