"""Grey pictures that are stored in colour are compared with grey ones."""

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.data import load_pictures, with_channels
from diffusion_jax.data.source import ArraySource
from diffusion_jax.evaluation import external_images, reference
from diffusion_jax.evaluation.external_images import Against, match_channels
from diffusion_jax.extractors import Extractor, Features
from diffusion_jax.types import UserError

GREY = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 1), np.uint8)
IN_COLOUR = np.repeat(GREY, 3, axis=-1)
COLOUR = np.random.default_rng(1).integers(0, 256, (6, 4, 4, 3), np.uint8)


def extractor(resolution=None):
  stamp = {"sha256": "0", "resize": "none"}
  return Extractor("mean", stamp, {}, lambda p, x: (x, x, None), resolution)


def features(images):
  """Of any picture; a grey one is as three equal channels."""
  pool = images.reshape(len(images), -1, images.shape[-1]).mean(1)
  pool = np.repeat(pool, 3 // pool.shape[1], axis=1)
  return Features(pool, pool, None)


def source(images):
  return ArraySource("x given", images, None, 256, 0)


def pixels(found):
  return found.gather(np.arange(len(found)))[0]


def test_channels_change_only_where_nothing_is_lost():
  np.testing.assert_array_equal(pixels(with_channels(source(IN_COLOUR), 1)), GREY)
  np.testing.assert_array_equal(pixels(with_channels(source(GREY), 3)), IN_COLOUR)
  assert with_channels(source(IN_COLOUR), 1).spec.shape == (4, 4, 1)
  tinted = IN_COLOUR.copy()
  tinted[5, 3, 3, 2] ^= 1
  for images in (COLOUR, tinted):
    assert with_channels(source(images), 1).spec.shape == (4, 4, 3)


@pytest.mark.parametrize("of_data_set", [True, False])
@pytest.mark.parametrize(
  ("ours", "theirs", "channels"),
  [
    (GREY, IN_COLOUR, None), (IN_COLOUR, GREY, 1), (IN_COLOUR, IN_COLOUR, 3), (GREY, COLOUR, 3),
    (COLOUR, GREY, None), (GREY, GREY, 1), (COLOUR, COLOUR, 3),
  ],
)  # fmt: skip
def test_both_sides_have_the_same_channels(ours, theirs, channels, of_data_set):
  """None: 1 or 3, whichever the side that may not be changed has."""
  if of_data_set and channels is None and ours is COLOUR:
    return  # nothing is lost from the samples, and the data set stays as it is: refused
  other = source(theirs)
  against = Against(source=other) if of_data_set else Against(path=None)
  shown, shown_other = match_channels(source(ours), other, extractor(), against)
  assert shown.spec.shape == shown_other.spec.shape
  assert channels in (None, shown.spec.channels)
  if of_data_set:
    assert shown_other is other


def test_features_of_a_set_and_statistics_decide(tmp_path):
  grey = reference.compute(source(GREY), "given", extractor(), features)
  shown, _ = match_channels(source(IN_COLOUR), grey, extractor(), Against(path=tmp_path))
  assert shown.spec.shape == (4, 4, 1)
  sides = match_channels(
    source(IN_COLOUR), source(IN_COLOUR), extractor((4, 4, 1)), Against(path=tmp_path)
  )
  assert [side.spec.shape for side in sides] == [(4, 4, 1)] * 2
  coloured, _ = match_channels(source(COLOUR), grey, extractor(), Against(path=tmp_path))
  with pytest.raises(UserError, match="the reference differs in resolution"):
    reference.check_reference(grey, extractor(), coloured.spec.shape)


def test_folders_of_both_kinds_agree(tmp_path):
  for name, images in (("grey", GREY[..., 0]), ("rgb", IN_COLOUR)):
    (tmp_path / name).mkdir()
    for i, image in enumerate(images):
      Image.fromarray(image).save(tmp_path / name / f"{i}.png")
  samples = load_pictures(tmp_path / "rgb", "--samples")
  against = Against(path=tmp_path / "grey")
  shown, other = match_channels(samples, external_images.load_other(against), extractor(), against)
  found = external_images.find_reference(other, against, extractor(), features)
  np.testing.assert_array_equal(found.features, features(pixels(shown)).pool)
