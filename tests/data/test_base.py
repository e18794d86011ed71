"""Data sets from outside: what one must give, and how what it lacks is said."""

import dataclasses

import numpy as np
import pytest
from plug_ins import Stripes

from diffusion_jax.data import (
  SOURCES,
  ArraySource,
  DataSetBase,
  SourceBase,
  load_split,
  load_splits,
)
from diffusion_jax.types import ImageSpec, UserError

IMAGES = np.zeros((6, 4, 4, 1), np.uint8)


def test_a_data_set_from_outside_needs_only_to_load():
  cls = SOURCES.find("plug_ins:Stripes", "config.data.name")
  train, test = load_splits(cls(num_images=8))
  assert test is None
  assert train.spec == ImageSpec(8, 8, 1, 256, 4)
  assert train.about.counts == [2, 2, 2, 2]
  assert train.gather_fields(np.arange(2)) == {}


def test_every_data_set_of_the_package_keeps_the_contract():
  for name in SOURCES:
    SOURCES.find(name, "config.data.name")


def test_a_data_set_that_lacks_a_member_is_one_line():
  with pytest.raises(UserError) as error:
    SOURCES.find("plug_ins:NoLoad", "config.data.name")
  assert str(error.value) == (
    'config.data.name=plug_ins:NoLoad: load is missing (Return the split "train" or "test"; '
    "raise a UserError if it is invalid); see diffusion_jax.data.base.DataSet."
  )


class Whole(SourceBase):
  """A source that keeps the contract; the cases below break it."""

  name, spec = "whole", ImageSpec(4, 4, 1, 256, 2)

  def __len__(self):
    return 6

  def gather(self, index):
    return IMAGES[index], np.zeros(len(index), np.int32)


class Bare:
  name = "bare"


BROKEN = {
  "nothing": (Bare, "gave Bare without spec (Shape, levels, classes and named arrays"),
  "length": (Bare, "__len__ (Return the number of examples)"),
  "spec": ({"spec": (4, 4, 1)}, "gave spec=(4, 4, 1); it must be an ImageSpec"),
  "empty": ({"__len__": lambda self: 0}, "gave no example; give at least one"),
  "images alone": ({"gather": lambda self, i: IMAGES[i]}, "gathers ndarray; it must be images"),
  "floats": (
    {"gather": lambda self, i: (IMAGES[i] / 255, np.zeros(len(i), np.int32))},
    "gathers images of float64[2, 4, 4, 1]; its spec declares uint8[2, 4, 4, 1]",
  ),
  "labels": (
    {"gather": lambda self, i: (IMAGES[i], np.full(len(i), 7, np.int32))},
    "gathers the label 7; its spec allows 0 to 1",
  ),
  "no such field": (
    {"gather_fields": lambda self, i: {"text": np.zeros((len(i), 3), np.float32)}},
    "gathers the named array 'text' and declares none of that name",
  ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_source_that_does_not_keep_the_contract_is_one_line(name):
  members, line = BROKEN[name]
  cls = members if isinstance(members, type) else type("Broken", (Whole,), members)

  @dataclasses.dataclass(frozen=True)
  class Own(DataSetBase):
    def load(self, split):
      return cls()

  with pytest.raises(UserError) as error:
    load_split(Own(), "train")
  assert str(error.value).startswith("config.data: Own.load('train') g")
  assert line in str(error.value)
  assert "\n" not in str(error.value)


def test_a_whole_source_passes():
  @dataclasses.dataclass(frozen=True)
  class Own(DataSetBase):
    def load(self, split):
      return Whole()

  assert load_split(Own(), "train").name == "whole"


@pytest.mark.parametrize(
  ("arrays", "line"),
  [
    ({"images": IMAGES[..., 0]}, "images are uint8[6, 4, 4]; they must be uint8 [N H W C]"),
    (
      {"images": IMAGES + 20, "num_levels": 17},
      "images hold the value 20; with num_levels=17 all must be between 0 and 16",
    ),
    ({"labels": np.zeros(5, int)}, "labels are int64[5]; they must be one class number for each"),
    (
      {"labels": np.full(6, 3), "num_classes": 2},
      "the labels are between 0 and 3; with num_classes=2 all must be between 0 and 1",
    ),
    ({"labels": np.full(6, -1)}, "the labels are between -1 and 0; none may be negative"),
    ({"fields": {"text": np.zeros(5)}}, "'text' has 5 rows beside 6 images; it must have one"),
    ({"fields": {"text": np.full((6, 2), np.nan)}}, "'text' is not finite (NaN or infinity) in 6"),
    ({"fields": {"text": np.array(["a"] * 6)}}, "'text' is <U1; it must hold numbers"),
  ],
)
def test_arrays_that_do_not_fit_are_one_line(arrays, line):
  @dataclasses.dataclass(frozen=True)
  class Own(DataSetBase):
    def load(self, split):
      return ArraySource(**{"name": "own", "images": IMAGES, **arrays})

  with pytest.raises(UserError) as error:
    load_split(Own(), "train")
  assert line in str(error.value)


def test_a_mirrored_image_does_not_leave_its_mask_behind():
  @dataclasses.dataclass(frozen=True)
  class Own(DataSetBase):
    flip: bool = True

    def load(self, split):
      return ArraySource("own", IMAGES, fields={"mask": IMAGES[..., 0]})

  with pytest.raises(UserError, match=r"'mask' is \[4, 4\]; give it a third axis, or set"):
    load_split(Own(), "train")
  assert load_split(Own(flip=False), "train").spec.fields["mask"] == ((4, 4), "uint8")


def test_stripes_are_what_the_programs_read():
  """So that the trial of the programs trains on something."""
  images, labels = Stripes().load("train").gather(np.arange(4))
  assert [int(image.max()) for image in images] == [60, 120, 180, 240]
  assert labels.tolist() == [0, 1, 2, 3]
