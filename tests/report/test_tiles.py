"""Images of their own in the report: whole multiples of their pixels, named, beside real ones."""

import conftest
import numpy as np
import page
import pytest

from diffusion_jax.report import Part, Picture, Row, html
from diffusion_jax.report.inline_images import NARROW_TILE, TILE, tile_width


@pytest.mark.parametrize("side", [1, 2, 8, 16, 28, 32, 48, 64, 80, 96])
@pytest.mark.parametrize("length", [TILE, NARROW_TILE])
def test_a_small_image_is_shown_at_a_whole_multiple_near_the_length(side, length):
  width = tile_width(side, side, length)
  assert width % side == 0
  assert 2 / 3 <= width / length <= 1.5


@pytest.mark.parametrize(
  ("height", "width"), [(128, 128), (256, 256), (97, 97), (256, 512), (2000, 3)]
)
def test_a_large_image_is_reduced_to_the_length(height, width):
  shown = tile_width(height, width, TILE)
  assert shown == max(1, round(width * TILE / max(height, width)))


def test_a_wide_image_keeps_its_longer_side():
  assert tile_width(8, 16, 96) == 96
  assert tile_width(16, 8, 96) == 48


@pytest.fixture(scope="module")
def tiled():
  return page.read(html.render(conftest.full_metrics(), conftest.tiled_pictures()))


def test_each_class_has_real_images_beside_samples_under_its_name(tiled):
  rows = tiled.one("section", id="samples").all("figure")[0].all("div", class_="row")
  assert [row.one("h4").text for row in rows] == ["zero", "one", "two"]
  for row in rows:
    assert [p.text for p in row.all("p", class_="kind")] == ["real", "samples"]
    assert [len(part.all("img")) for part in row.all("div", class_="tiles")] == [5, 5]
    assert row.all("img")[7].attributes["alt"].endswith(", samples, image 3 of 5")


def test_the_head_has_the_first_samples_and_the_section_all(tiled):
  assert len(tiled.one("figure", id="grid").all("img")) == 16
  assert tiled.one("figure", id="grid").all("span", class_="name")[0].text == "zero"
  assert len(tiled.one("section", id="samples").all("figure")[1].all("img")) == 40


def test_only_small_images_are_pixel_art_and_one_of_a_picture_is_reached_by_the_tab_key(tiled):
  large = tiled.one("section", id="others")
  assert {i.attributes["class"] for i in large.all("img")} == {"photo tile"}
  assert {i.attributes["class"] for i in tiled.one("section", id="samples").all("img")} == {
    "pixels tile"
  }
  for figure in tiled.all("figure", class_="picture"):
    buttons = figure.all("button", class_="zoom")
    assert [b.attributes.get("tabindex") for b in buttons].count(None) == 1


@pytest.mark.parametrize("num_classes", [1, 1000])
def test_one_class_and_a_thousand(num_classes):
  image = np.zeros((1, 8, 8, 3), np.uint8)
  rows = [
    Row(f"class {i}", [Part("real", image), Part("samples", image)]) for i in range(num_classes)
  ]
  doc = page.read(html.render({}, {"classes": Picture(image[0], "words", rows)}))
  assert len(doc.one("section", id="samples").all("h4")) == num_classes


def test_names_are_text(tiled):
  image = np.zeros((1, 8, 8, 1), np.uint8)
  picture = Picture(image[0], "w", [Row(page.HOSTILE, [Part("real", image, [page.HOSTILE])])])
  doc = page.read(html.render({}, {"classes": picture}))
  assert doc.one("h4").text == page.HOSTILE
  assert doc.one("span", class_="name").text == page.HOSTILE
  assert len(doc.all("script")) == 1
