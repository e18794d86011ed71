"""The report's text: its numbers are those of metrics.json, and nothing in it can run or load."""

import base64
import hashlib
import io
import itertools
import json
import math
import os
import re
import subprocess
import sys

import numpy as np
import page
import pytest
from PIL import Image

from diffusion_jax.report import Picture, html, links, write_report

HOSTILE = page.HOSTILE


def shown_agrees(element):
  """Whether a number's text is the exact number, rounded at its last digit."""
  exact, text = float(element.attributes["value"]), element.text
  text = text.replace(",", "").replace("−", "-")
  decimals = len(text.partition(".")[2])
  return abs(float(text) - exact) <= 0.5 * 10**-decimals * (1 + 1e-9)


# Numbers


def test_each_figure_stands_in_its_row_with_error_and_counts(doc, metrics):
  table = doc.one("section", id="figures").one("table")
  for key, figure in metrics["figures"].items():
    error = figure["standard_deviation"] or figure["standard_error"]
    expected = [figure["value"], error, figure["num_samples"], figure["num_reference"]]
    assert page.row(table, key).numbers() == expected
    assert figure["better"] in page.row(table, key).text


def test_every_number_is_shown_as_what_it_is(doc):
  numbers = [e for e in doc.all("data") if "×10" not in e.text]
  assert len(numbers) > 100
  assert all(shown_agrees(e) for e in numbers)


def test_the_check_of_shown_numbers_sees_a_wrong_digit():
  assert not shown_agrees(page.read('<data value="3.24718">3.246</data>').one("data"))
  assert shown_agrees(page.read('<data value="3.24718">3.247</data>').one("data"))


def test_the_cards_show_quality_likelihood_and_both_sides_of_the_manifold(doc, metrics):
  cards = doc.one("div", class_="cards").all("div", class_="card")
  figures = metrics["figures"]
  assert [c.one("h2").text for c in cards] == [
    "fd_digits",
    "vlb",
    "precision_digits",
    "recall_digits",
  ]
  assert cards[0].numbers() == [
    figures["fd_digits"]["value"],
    figures["fd_digits"]["standard_deviation"],
  ]
  assert cards[1].numbers() == [metrics["likelihoods"]["vlb"]["bits_per_dim"], 0.01934]


def test_a_likelihood_of_another_package_has_the_card_and_the_words_that_it_declares(metrics):
  vlb = metrics["likelihoods"]["vlb"]
  own = {**vlb, "description": "a bound of one's own", "card": 0.5, "bits_per_dim": 3.25}
  metrics["likelihoods"] = {"vlb": {**vlb, "card": 0}, "own_5": own}
  doc = page.read(html.render(metrics, {}))
  first = doc.one("div", class_="cards").all("div", class_="card")[0]
  assert first.one("h2").text == "own_5"
  assert "a bound of one's own" in first.text
  assert "a bound of one's own" in page.row(doc.one("section", id="likelihood"), "own_5").text
  assert "own_5: a bound of one's own; the steps sum" in doc.one("body").text


def test_a_model_of_another_package_is_called_as_it_declares(metrics):
  metrics["model"] |= {"kind": "its:Own", "kind_description": "a normalizing flow"}
  assert "a normalizing flow" in page.read(html.render(metrics, {})).one("header").text


def test_the_likelihood_separates_images_from_noise_and_lists_its_terms(doc, metrics):
  section, vlb = doc.one("section", id="likelihood"), metrics["likelihoods"]["vlb"]
  tables = section.all("table")
  assert page.row(tables[0], "vlb").numbers() == [vlb["bits_per_dim"], 0.01934, 0.01921, 0.00224]
  assert page.row(tables[0], "independent").numbers() == [2.42853]
  for name, term in vlb["terms"].items():
    assert page.row(tables[1], name).numbers() == [term["mean"], term["standard_error"]]
  shares = [float(r.all("td")[2].text.rstrip("%")) for r in tables[1].all("tr")[1:]]
  assert sum(shares) == pytest.approx(100, abs=0.15)


def test_the_sweep_is_a_table_too(doc, metrics):
  rows = doc.one("section", id="quality").one("table").all("tr")[1:]
  assert len(rows) == len(metrics["sweep"])
  for shown, row in zip(rows, metrics["sweep"], strict=True):
    fd, precision = row["figures"]["fd_digits"], row["figures"]["precision_digits"]
    assert shown.numbers() == [
      row["num_evaluations"],
      row["num_samples"],
      fd["value"],
      fd["standard_deviation"],
      precision["value"],
    ]
    steps = row["overrides"]["sampler.steps"]
    assert f"sampler.steps={steps}," in shown.text


def test_the_memorisation_figures_and_the_verdict(doc, metrics):
  section, check = doc.one("section", id="memorization"), metrics["memorization"]
  assert section.numbers() == [4.5123, 4.6017, 4.7031, 4.9312, 0.5273, -0.8361]
  assert check["verdict"] in section.text
  assert "−0.8361" in section.text


def leaves(value, path=()):
  if isinstance(value, dict):
    for name, part in value.items():
      yield from leaves(part, (*path, name))
  else:
    yield path, value


def plain(text):
  """A value as shown, without separators: 1,500 is 1500 and 8×8×1 is 8 8 1."""
  words = {"yes": "True", "no": "False", "—": "None"}
  return words.get(text, re.sub(r"[,×\[\]]", " ", text).replace(" ", ""))


def test_the_stamp_has_every_leaf_that_repeating_needs(doc, metrics):
  blocks = {b.one("h3").text: b for b in doc.one("section", id="protocol").all("section")}
  titles = {"Weights": metrics["model"], "Samples": metrics["samples"], "Code": metrics["code"]}
  titles["Extractor digits"] = metrics["extractors"]["digits"]
  titles["Reference train"] = metrics["references"]["train"]
  config = titles["Weights"].pop("config")
  for title, stamp in (titles | config).items():
    shown = {d.one("dt").text: plain(d.one("dd").text) for d in blocks[title].all("div")}
    expected = {
      ".".join(path).replace("_", " ").replace("sha256", "SHA-256"): plain(
        str(value).removesuffix(".0") if isinstance(value, float) else str(value)
      )
      for path, value in leaves(stamp)
    }
    assert expected == shown


def test_the_command_is_there_to_the_letter_and_can_be_copied(doc, metrics):
  assert doc.one(id="repeat").text == metrics["repeat"]
  assert doc.one("button", class_="copy").attributes["data-copies"] == "repeat"


def test_what_is_missing_is_said(doc, metrics):
  sentence = doc.one("p", class_="missing")
  assert sentence.text == "Not measured: fid: why, and what to do."
  assert sentence.one("a").attributes["href"] == "#missing"
  assert [li.text for li in doc.one("section", id="missing").all("li")] == metrics["missing"]


@pytest.mark.parametrize(
  ("lines", "sentence"),
  [
    (["fid: no weights"], "Not measured: fid"),
    (
      [f"metric{i}: why" for i in range(6)],
      "Not measured: metric0, metric1, metric2, metric3 and 2 more",
    ),
    (["too few images, so no anchors"], "1 measurement left out"),
    (
      ["Inception weights not found: fetch them", "fd needs at least 9 samples; there are 3"],
      "Not measured: fid and other figures on Inception features, fd",
    ),
    (["kd cannot be computed: singular"], "Not measured: kd"),
    (
      ["no weights: a", "others cannot be: b" * 40, "kid: few"],
      "Not measured: others cannot be, kid and 1 more",
    ),
  ],
)
def test_what_is_missing_is_one_sentence(lines, sentence):
  assert links.missing_sentence(links.missing_reasons({"missing": lines})) == sentence


def test_the_run_has_its_times(doc):
  text = doc.one("section", id="run").text
  assert "2026-01-02 03:04:05 UTC" in text
  assert "88.0" in text
  assert "TFRT_CPU_1" in text


# Absent parts

SECTIONS = {
  "figures": "figures",
  "spectrum": "spectrum",
  "memorization": "memorization",
  "sweep": "quality",
  "likelihoods": "likelihood",
  "run": "run",
}


@pytest.mark.parametrize("part", SECTIONS)
def test_an_absent_part_has_no_section_and_no_link(part, metrics, doc):
  assert doc.all(id=SECTIONS[part])
  assert doc.all("a", href=f"#{SECTIONS[part]}")
  del metrics[part]
  doc = page.read(html.render(metrics, {}))
  assert not doc.all(id=SECTIONS[part])
  assert not doc.all("a", href=f"#{SECTIONS[part]}")


def test_without_pictures_rows_and_other_runs_their_sections_are_absent(metrics):
  doc = page.read(html.render(metrics, {}))
  for name in ("samples", "reconstructions", "others", "training", "comparison"):
    assert not doc.all(id=name)
  assert not doc.all("img")


def test_pictures_without_any_figure_have_their_sections(pictures):
  doc = page.read(html.render({"memorization": {"c_t": -3.0}}, pictures))
  assert doc.one("section", id="memorization").numbers() == [-3.0]
  doc = page.read(html.render({}, pictures))
  assert [s.attributes["id"] for s in doc.all("section")] == ["samples", "memorization", "others"]
  assert len(doc.all("img")) == 5


@pytest.mark.parametrize("part", ["model", "samples", "figures", "likelihoods", "run", "sweep"])
def test_a_part_whose_fields_are_absent_is_still_a_page(part):
  empty = [{}] if part == "sweep" else {"x": {}} if part in ("figures", "likelihoods") else {}
  metrics = {"figures": {"fd": {"value": 1.0}}, part: empty}
  doc = page.read(html.render(metrics, {}, page.beside([{}], {}, metrics)))
  assert "None" not in doc.one("body").text


def test_nothing_measured_is_still_a_page():
  doc = page.read(html.render({"schema": 1, "missing": ["everything"]}, {}))
  assert [s.attributes["id"] for s in doc.all("section")] == ["missing"]
  assert doc.one("section").one("li").text == "everything"
  assert "None" not in doc.one("body").text


def test_samples_without_a_model_are_named_by_their_source(metrics):
  for part in ("model", "likelihoods", "spectrum", "baseline"):
    del metrics[part]
  metrics["samples"].update(source="some/folder", sampler=None, guidance=None)
  doc = page.read(html.render(metrics, {}))
  assert doc.one("h1").text == "folder"
  assert "some/folder" in doc.one("header").text
  assert "guidance" not in doc.one("header").text


def broken(value, bad):
  """The same structure with every float replaced."""
  if isinstance(value, dict):
    return {k: broken(v, bad) for k, v in value.items()}
  if isinstance(value, list):
    return [broken(v, bad) for v in value]
  return bad if isinstance(value, float) else value


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, None])
def test_a_value_that_is_no_number_is_a_dash(bad, metrics, training, other):
  doc = page.read(
    html.render(broken(metrics, bad), {}, page.beside(broken(training, bad), broken(other, bad)))
  )
  body = doc.one("body")
  attributes = [v for e in body.all() for v in e.attributes.values() if v]
  for text in (body.one("main").text, *attributes):
    assert not re.search(r"\b([nN]a[nN]|[iI]nf|None|Infinity)\b", text), text
  row = page.row(doc.one("section", id="figures").one("table"), "fd_digits")
  assert row.all("td")[0].text.strip() == "—"


def test_single_points_and_zero_errors_are_drawn(metrics, training):
  metrics["sweep"] = metrics["sweep"][:2]
  metrics["spectrum"] = {"log_snr": [0.0], "train": {"eps_mse": [0.5], "standard_error": [0.0]}}
  metrics["likelihoods"]["vlb"].update(
    standard_error=0.0, curves={"x": {"t": [1], "bits_per_dim": [0.0]}}
  )
  doc = page.read(html.render(metrics, {}, page.beside(training[:1])))
  assert doc.all(id="training")
  assert page.row(doc.all("table")[2], "vlb").numbers()[1] == 0


# Nothing runs, nothing loads


def test_markup_in_a_name_stays_text(hostile, full):
  doc = page.read(hostile)
  assert len(doc.all("script")) == 1
  assert doc.one("script").text == page.read(full).one("script").text
  assert not [e for e in doc.all() for name in e.attributes if name.startswith("on")]
  assert all(e.attributes["src"].startswith("data:") for e in doc.all("img"))
  assert HOSTILE in doc.one("p", class_="eyebrow").text
  assert HOSTILE in doc.one(id="repeat").text
  assert len([t for t in doc.all("text") if HOSTILE[:15] in t.text]) >= 3


def test_every_address_is_inside_the_page(hostile, doc):
  for found in (doc, page.read(hostile)):
    ids = [e.attributes["id"] for e in found.all() if "id" in e.attributes]
    assert len(ids) == len(set(ids))
    for element in found.all():
      for name, value in element.attributes.items():
        if name.endswith("href") and element.tag != "link":
          assert value[0] == "#"
          assert value[1:] in ids
        elif name in ("src", "href", "action", "data", "poster", "srcset"):
          assert value.startswith("data:")
        for target in re.findall(r"url\((.*?)\)", value or ""):
          assert target[0] == "#"
          assert target[1:] in ids


def test_no_address_of_the_network_and_no_import(full):
  assert not re.findall(r"""(?:src|href|url\(|action)[=("'\s]*(?:https?:)?//""", full)
  assert "@import" not in full
  assert set(re.findall(r"https?://[^\s\"'<]*", full)) <= {"http://www.w3.org/2000/svg"}


def test_the_policy_allows_the_one_script_and_nothing_else(doc):
  policy = doc.one("meta", **{"http-equiv": "Content-Security-Policy"}).attributes["content"]
  rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
  digest = hashlib.sha256(doc.one("script").text.encode()).digest()
  assert rules["default-src"] == "'none'"
  assert rules["img-src"] == "data:"
  assert rules["script-src"] == f"'sha256-{base64.b64encode(digest).decode()}'"
  assert not [e for e in doc.all() if e.tag in ("iframe", "object", "embed", "base", "form")]


# Pictures and writing


def pixels(element):
  data = element.attributes["src"].removeprefix("data:image/png;base64,")
  image = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
  return image[..., None] if image.ndim == 2 else image


def test_pictures_keep_every_pixel_and_say_what_they_are(doc, pictures):
  shown = {e.attributes["alt"].split(": ", 1)[1]: e for e in doc.all("img")}
  assert len(shown) == len(pictures) == 5
  for picture in pictures.values():
    element = shown[picture.caption]
    np.testing.assert_array_equal(pixels(element), picture.image)
    assert element.attributes["class"] == "pixels"
    for width in re.findall(r"(\d+)px", element.attributes["style"]):  # wide and narrow
      assert int(width) % picture.image.shape[1] == 0


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pictures_of_one_three_and_four_channels(channels):
  image = np.arange(6 * channels, dtype=np.uint8).reshape(2, 3, channels)
  doc = page.read(html.render({}, {"extra": Picture(image, "words")}))
  np.testing.assert_array_equal(pixels(doc.one("img")), image)
  assert doc.one("section").attributes["id"] == "others"


def test_a_wide_photograph_is_not_pixel_art():
  doc = page.read(html.render({}, {"extra": Picture(np.zeros((2, 1200, 3), np.uint8), "wide")}))
  assert doc.one("img").attributes["class"] == "photo"


@pytest.mark.parametrize("shape", [(2, 2, 2), (0, 2, 3)])
def test_a_picture_that_cannot_be_shown_is_refused(shape):
  with pytest.raises(ValueError, match="x".join(map(str, shape))):
    Picture(np.zeros(shape, np.uint8), "words")


def test_the_same_input_gives_the_same_bytes(full, metrics, pictures, training, other, tmp_path):
  assert html.render(metrics, pictures, page.beside(training, other)) == full
  file = tmp_path / "metrics.json"
  file.write_text(json.dumps(metrics))
  program = (
    "import hashlib, json, sys; from diffusion_jax.report import html;"
    "page = html.render(json.load(open(sys.argv[1])), {});"
    "print(hashlib.sha256(page.encode()).hexdigest())"
  )
  digests = {
    subprocess.run(
      [sys.executable, "-c", program, str(file)],
      env={**os.environ, "PYTHONHASHSEED": seed},
      capture_output=True,
      text=True,
      check=True,
    ).stdout
    for seed in ("1", "2")
  }
  assert digests == {hashlib.sha256(html.render(metrics, {}).encode()).hexdigest() + "\n"}


def test_a_report_is_replaced_in_one_move(tmp_path, metrics, monkeypatch):
  path = tmp_path / "eval" / "report.html"
  write_report(path, metrics, {})
  before = path.read_text(encoding="utf-8")
  assert before == html.render(metrics, {})
  assert [p.name for p in path.parent.iterdir()] == ["report.html"]

  def fail(*_):
    raise OSError("the disk is gone")

  monkeypatch.setattr(os, "replace", fail)
  with pytest.raises(OSError, match="the disk is gone"):
    write_report(path, {}, {})
  assert path.read_text(encoding="utf-8") == before


def test_the_headings_form_an_outline(doc):
  levels = [int(e.tag[1]) for e in doc.all() if re.fullmatch(r"h[1-6]", e.tag)]
  assert levels[0] == 1
  assert levels.count(1) == 1
  assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
  links = [a.attributes["href"] for a in doc.one("nav").one("ul").all("a")]
  assert links == [f"#{s.attributes['id']}" for s in doc.all("section", class_="part")]
