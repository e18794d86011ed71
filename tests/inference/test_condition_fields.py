"""Named arrays that a caller gives: checked, repeated in order, and each image's own in edits."""

import dataclasses
import re
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.core.broadcasting import expand
from diffusion_jax.data import ArraySource
from diffusion_jax.generative import ModelBase
from diffusion_jax.inference import draw
from diffusion_jax.inference.condition_fields import (
  check_same_fields,
  check_shapes,
  fields_of_pictures,
  given_fields,
)
from diffusion_jax.parallel.sharding import MeshShape, create_mesh
from diffusion_jax.types import FieldSpec, ImageSpec, Samples, UserError

FIELDS = {"code": FieldSpec((2,), "float32"), "size": FieldSpec((), "uint8")}
SPEC = ImageSpec(2, 2, 1, 256, 0, FIELDS)


@dataclasses.dataclass(frozen=True, eq=False)
class Told(ModelBase):
  """A model that shows the named arrays which it is given."""

  fields: ClassVar = ("code", "size")
  capabilities: ClassVar = frozenset({"edit", "guide"})

  def inpaint(self, params, keys, condition, x0, is_known):
    return Samples(x0 + expand(condition.fields["code"][:, 0], x0), 1)

  def to_noise(self, params, x0, condition):
    return x0 + expand(condition.fields["code"][:, 0], x0)

  def from_noise(self, params, noise, condition):
    told = [condition.fields["code"][:, :1], condition.fields["size"][:, None]]
    return jnp.concatenate([*told, noise[:, 0, :1, 0]], axis=1)


def test_rows_are_repeated_and_one_array_is_for_all():
  given = {"code": [[1, 2], [3, 4]], "size": 7}
  found = given_fields(given, Told(), SPEC, 3)
  np.testing.assert_array_equal(found["code"], np.float32([[1, 2], [3, 4], [1, 2]]))
  np.testing.assert_array_equal(found["size"], np.uint8([7, 7, 7]))
  assert [str(array.dtype) for array in found.values()] == ["float32", "uint8"]
  assert given_fields({}, Told(), SPEC, 3) == {}


@pytest.mark.parametrize(
  ("given", "line"),
  [
    ({"text": 1}, "fields: 'text' is no named array of this model; it takes code, size"),
    ({"code": np.zeros((2, 3))}, "fields['code'] has shape [2, 3]; it must be [N, 2], or [2] for"),
    ({"code": np.zeros((0, 2))}, "fields['code'] has shape [0, 2]"),
    ({"code": [[1, 2], [3]]}, "fields['code']: "),
    ({"code": [np.nan, 1]}, "fields['code'] has 1 values that are not finite (NaN or infinity)"),
    ({"code": [1e300, 1]}, "not finite"),
    ({"code": ["a", "b"]}, "fields['code'] is <U1; it must hold float32"),
    ({"size": [1.5]}, "fields['size'] is float64; it must hold uint8"),
    ({"size": [-1, 3]}, "fields['size'] holds values from -1 to 3; it must hold uint8"),
    ([1, 2], "fields=[1, 2]: must be a dict of arrays by name"),
  ],
)
def test_what_does_not_fit_is_one_line(given, line):
  with pytest.raises(UserError, match=re.escape(line)) as raised:
    given_fields(given, Told(), SPEC, 3)
  assert "\n" not in str(raised.value)


def test_a_model_without_named_arrays_and_examples_of_another_number():
  with pytest.raises(UserError, match="it takes none; leave fields out"):
    given_fields({"code": 1}, ModelBase(), SPEC, 3)
  with pytest.raises(UserError, match=r"has shape \[3, 2\]; it must be \[4, 2\]"):
    check_shapes({"code": np.zeros((3, 2))}, Told(), SPEC, 4)


def test_images_between_two_have_the_arrays_between_theirs():
  """Numbers are mixed by the share; integers are those of the nearer image."""
  way = draw.make_interpolate(Told(), create_mesh(MeshShape()))
  images = np.zeros((2, 2, 2, 1), np.float32)
  ends = tuple(
    {"code": np.full((2, 2), value, np.float32), "size": np.full(2, value, np.uint8)}
    for value in (1, 3)
  )
  found = way({}, images, images, [0.25, 0.75], ends)
  np.testing.assert_allclose(found[0], [[1.5, 1, 1.5], [2.5, 3, 2.5]], rtol=1e-5)


def test_filled_in_images_have_their_own():
  fill = draw.make_inpaint(Told(), create_mesh(MeshShape()))
  x0 = np.zeros((3, 2, 2, 1), np.float32)
  fields = {"code": np.float32([[1, 0], [2, 0], [3, 0]]), "size": np.zeros(3, np.uint8)}
  found = fill({}, None, 0, x0, x0 > 1, 0, fields)
  np.testing.assert_array_equal(found[:, 0, 0, 0], [1, 2, 3])


def test_pictures_have_them_only_in_an_npz(tmp_path):
  names = ("code", "size")
  np.savez(tmp_path / "a.npz", images=np.zeros((3, 2, 2, 1), np.uint8), code=np.ones((3, 2)),
           size=np.arange(3))  # fmt: skip
  found = fields_of_pictures(tmp_path / "a.npz", "--images", names, SPEC, 2)
  np.testing.assert_array_equal(found["size"], [0, 1])
  with pytest.raises(UserError, match="code has 3 rows, and 4 images are edited"):
    fields_of_pictures(tmp_path / "a.npz", "--images", names, SPEC, 4)
  with pytest.raises(UserError, match="needs the named arrays code, size of each image; give an"):
    fields_of_pictures(tmp_path, "--images", names, SPEC, 2)


def test_other_arrays_than_in_training_are_refused():
  images = np.zeros((4, 2, 2, 1), np.uint8)
  other = ArraySource("other", images, fields={"code": np.zeros((4, 3)), "size": np.arange(4)})
  with pytest.raises(UserError, match=r"other has 'code' as float32\[3\]; .* with float32\[2\]"):
    check_same_fields(Told(), other, SPEC)
  with pytest.raises(UserError, match="other has no named array 'code'"):
    check_same_fields(Told(), ArraySource("other", images), SPEC)


def test_a_guided_model_takes_its_own_arrays_and_a_guide_no_others():
  class Bare(ModelBase):
    capabilities = frozenset({"guide"})

  assert draw.autoguided(Told(), Bare()).fields == ("code", "size")
  with pytest.raises(UserError, match="the guide takes the named arrays code, size, and this run"):
    draw.autoguided(Bare(), Told())
