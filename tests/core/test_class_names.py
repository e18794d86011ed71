"""Names of classes as typed, in names of files, and as captions."""

import numpy as np
import pytest

from diffusion_jax.core.class_names import class_numbers, in_file_name
from diffusion_jax.core.picture_grid import LINE, image_grid, label_captions
from diffusion_jax.types import UserError

NAMES = ["cat", "ship", "great white, shark", "Ka\u0308se", "a/b"]


@pytest.mark.parametrize(
  ("given", "numbers"),
  [
    ("cat,ship", [0, 1]),
    ("ship,0", [1, 0]),
    (" Cat , SHIP", [0, 1]),
    ("ship,great white, shark,4", [1, 2, 4]),
    ("K\u00e4se", [3]),
    ("a/b", [4]),
    (["ship", 3], [1, 3]),
  ],
)
def test_names_and_numbers_may_be_mixed(given, numbers):
  assert class_numbers(given, NAMES, "--labels") == numbers


def test_an_unknown_name_gets_the_nearest_and_the_list():
  with pytest.raises(UserError, match=r"no class is called 'shop'. Did you mean 'ship'.*cat, ship"):
    class_numbers("cat,shop", NAMES, "--labels=cat,shop")


@pytest.mark.parametrize("given", ["", ",", "cat,", "cat,,ship"])
def test_a_missing_class_is_told(given):
  with pytest.raises(
    UserError, match=r"a class is missing; give e\.g\. cat, or leave the flag out"
  ):
    class_numbers(given, NAMES, f"--labels={given}")


def test_names_with_commas_are_quoted_in_lists():
  with pytest.raises(UserError, match="Classes: cat, ship, 'great white, shark', "):
    class_numbers("x7", NAMES, "--labels=x7")


def test_a_name_that_is_the_number_of_another_class_is_a_name():
  names = ["1", "2", "10"]
  assert class_numbers("1,10", names, "--labels") == [0, 2]
  with pytest.raises(UserError, match="no class is called '0'"):
    class_numbers("0", names, "--labels")
  assert class_numbers([0, "10"], names, "labels") == [0, 2]
  assert class_numbers("0,2", ["0", "1", "2"], "--labels") == [0, 2]


def test_a_name_of_two_classes_is_refused():
  with pytest.raises(UserError, match="may be any of Cat, cAt"):
    class_numbers("cat", ["Cat", "cAt"], "--labels")
  assert class_numbers("Cat", ["Cat", "cAt"], "--labels") == [0]


def test_names_of_files_have_no_separators_and_are_short():
  assert in_file_name(4, NAMES) == "a_b"
  assert in_file_name(3, NAMES) == "K\u00e4se"
  assert in_file_name(0, ["../.."]) == "0"
  assert in_file_name(0, ["\u732b" * 200]) == "\u732b" * 20
  assert in_file_name(7, NAMES) == "7"


def test_captions_are_names_numbers_or_what_the_fonts_have():
  assert label_captions([1, 0, -1], NAMES) == ["ship", "cat", ""]
  assert label_captions([3], []) == ["3"]
  assert label_captions([0], ["\u200b"]) == ["class 0"]
  assert label_captions([1], ["a", "\U0001f6a2"]) == ["class 1"]


def test_a_grid_repeats_no_captions_of_the_row_above():
  images = np.zeros((6, 32, 32, 1), np.uint8)
  plain, once = image_grid(images, 3), image_grid(images, 3, ["a", "b", "c"] * 2)
  assert once.shape == (plain.shape[0] + LINE, *plain.shape[1:])
  np.testing.assert_array_equal(once[LINE:], plain)
  assert (once[:LINE] < 128).any()
  assert len(image_grid(images, 3, list("abcdef"))) == len(plain) + 2 * LINE


def test_pictures_are_enlarged_for_captions_up_to_a_width():
  images = np.zeros((2, 8, 8, 3), np.uint8)
  assert image_grid(images, 2, ["0", "1"]).shape[1] == image_grid(images, 2).shape[1]
  wide = image_grid(images, 2, ["automobile", "x" * 100])
  assert image_grid(images, 2).shape[1] < wide.shape[1] <= 2 * 80 + 6
