"""Runs side by side: what is ranked, and what is said of their protocols."""

import copy

import numpy as np
import page
import pytest

from diffusion_jax.report import Beside, OtherRun, Part, Picture, Row, comparison, html


def test_figures_that_were_measured_otherwise_are_marked_and_not_ranked(doc, metrics, other):
  tables = doc.one("section", id="comparison").all("table")
  for key, figure in metrics["figures"].items():
    cells = page.row(tables[0], key).all("td")
    assert [c.numbers()[0] for c in cells] == [figure["value"], other["figures"][key]["value"]]
    assert [c.text.endswith("†") for c in cells] == [False, True]
    assert not page.row(tables[0], key).all("td", class_="n best")
  best = page.row(tables[0], "vlb").one("td", class_="n best")
  assert best.numbers()[0] == other["likelihoods"]["vlb"]["bits_per_dim"]


def test_the_common_plot_says_that_the_runs_were_measured_differently(doc, metrics):
  def note(found):
    return found.one("section", id="comparison").all("figure", class_="plot")[0].text

  assert "† The runs were measured differently" in note(doc)
  alike = page.read(html.render({"sweep": metrics["sweep"]}, {}, page.beside((), metrics)))
  assert "measured differently" not in note(alike)


def test_equal_values_have_no_best(metrics):
  found = comparison.compare_runs(metrics, [copy.deepcopy(metrics)])
  assert not [cell for row in found.rows for cell in row.cells if cell.best]
  assert found.runs[1] == "runs/ddpm_digits, step 1,000 (2)"
  assert found.differences == []


def test_each_difference_of_protocol_is_listed_with_both_values(doc):
  rows = doc.one("section", id="comparison").all("table")[-1].all("tr")[1:]
  found = {r.all("td")[0].text: [c.text for c in r.all("td")[1:]] for r in rows}
  assert found["num samples †"] == ["1,500", "500", "all figures"]
  assert found["guidance ‡"] == ["weight 2", "weight 1", "all samples"]
  assert found["extractor †"][0].startswith("digits, 9f2c1d7e9f2c…")
  assert found["extractor †"][1].startswith("digits, 77aa55ee77aa…")
  assert len(found) == 3


@pytest.mark.parametrize(
  ("path", "value", "what"),
  [
    (("references", "train", "fingerprint"), "f00d", "reference †"),
    (("references", "train", "split"), "test", "reference †"),
    (("figures", "fd_digits", "num_reference"), 10, "num reference †"),
    (("samples", "quantisation"), "round", "quantisation †"),
    (("likelihoods", "vlb", "num_images"), 10, "num images †"),
    (("likelihoods", "vlb", "options", "clip"), False, "options †"),
    (("model", "data", "fingerprint"), "f00d", "data †"),
    (("samples", "sampler", "steps"), 10, "sampler ‡"),
    (("samples", "auto_spacing"), "trailing for all", "auto spacing ‡"),
    (("samples", "seeds"), [7], "seeds ‡"),
    (("model", "weights"), "raw", "weights ‡"),
    (("model", "ema", "decay"), 0.9, "ema ‡"),
  ],
)
def test_one_difference_is_found_alone(path, value, what, metrics):
  changed = copy.deepcopy(metrics)
  part = changed
  for name in path[:-1]:
    part = part[name]
  part[path[-1]] = value
  found = comparison.compare_runs(metrics, [changed])
  assert [f"{d.what} {d.mark}" for d in found.differences] == [what]
  marked = {row.key for row in found.rows if row.cells[1].mark}
  assert bool(marked) == (what[-1] == "†")


def test_runs_that_were_measured_alike_are_ranked_by_direction(metrics):
  changed = copy.deepcopy(metrics)
  changed["model"]["step"] = 2000
  for entry in changed["figures"].values():
    entry["value"] *= 1.1
  doc = page.read(html.render(metrics, {}, page.beside((), changed)))
  (table,) = doc.one("section", id="comparison").all("table")  # no differences: no second table
  for key, figure in metrics["figures"].items():
    best = page.row(table, key).one("td", class_="n best").numbers()[0]
    run = metrics if figure["better"] == "lower" else changed
    assert best == run["figures"][key]["value"]
  assert "runs/ddpm_digits, step 2,000" in table.text


def test_each_config_field_that_differs_is_listed_and_no_other(metrics, other):
  config = other["model"]["config"]
  config["optimizer"]["learning_rate"] = 5e-4
  config["model"]["dropout"] = 0.1  # a field that the first run, of an older version, lacks
  rows = comparison.config_differences([metrics, other])
  assert {row.field: row.values for row in rows} == {
    "model.dropout": ["—", "0.1"],
    "optimizer.learning_rate": ["0.002", "0.0005"],
  }
  doc = page.read(html.render(metrics, {}, page.beside((), other)))
  shown = doc.one("div", **{"aria-label": "Differences of config"})
  assert page.row(shown, "optimizer.learning_rate").all("td")[1].text == "0.0005"


def test_equal_configs_are_called_equal(doc):
  assert "The configs of the runs are equal." in doc.one("section", id="comparison").text


def test_loss_curves_of_both_runs_share_their_axes(metrics, other, training):
  rows = [{**row, "train/loss": 2 * row.get("train/loss", 0.1)} for row in training]
  beside = Beside(training, [OtherRun(other, None, rows)])
  section = page.read(html.render(metrics, {}, beside)).one("section", id="comparison")
  (loss,) = [
    f for f in section.all("figure") if f.all("h3") and f.one("h3").text == "Training loss"
  ]
  assert len(loss.one("ul", class_="legend").all("li")) == 2
  names = {m.text.split(", step ")[0] for m in loss.all("title")}
  assert names == {"runs/ddpm_digits", "runs/ddpm_digits_wide"}


def test_samples_of_both_runs_stand_side_by_side(metrics, other, pictures):
  images = np.arange(20 * 64, dtype=np.uint8).reshape(20, 8, 8, 1)
  picture = Picture(images[0], "words", [Row("", [Part("", images, ["cat"] * 20)])])
  pictures["samples"] = picture
  section = page.read(html.render(metrics, pictures, Beside((), [OtherRun(other, picture)]))).one(
    "section", id="comparison"
  )
  figures = section.one("div", class_="pictures beside").all("figure")
  assert [f.one("h4").text.split(",")[0] for f in figures] == [
    "runs/ddpm_digits",
    "runs/ddpm_digits_wide",
  ]
  assert [len(f.all("img")) for f in figures] == [16, 16]


def test_without_samples_of_the_other_run_there_is_nothing_to_compare(metrics, other, pictures):
  section = page.read(html.render(metrics, pictures, page.beside((), other)))
  assert not section.all("div", class_="pictures beside")
