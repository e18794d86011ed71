"""Quality over training, and the links and pages that lead to it."""

import copy
import math

import page
import pytest

from diffusion_jax.report import Beside, Link, course_of, html, write_course


def at_step(metrics, step, factor):
  """The metrics of another step, with larger distances."""
  other = copy.deepcopy(metrics)
  other["model"]["step"] = step
  for entry in other["figures"].values():
    entry["value"] *= factor
  return other


@pytest.fixture
def earlier(metrics):
  return [at_step(metrics, 750, 1.5), at_step(metrics, 250, 3.0)]


def test_each_figure_is_drawn_over_the_steps_with_its_errors(metrics, earlier):
  section = page.read(html.render(metrics, {}, Beside(other_steps=earlier))).one(
    "section", id="course"
  )
  (plot,) = [f for f in section.all("figure") if f.one("h3").text == "fd_digits over training"]
  texts = [m.one("title").text for m in plot.one("g", class_="marks").all("circle")]
  assert [t.split(":")[0] for t in texts] == ["step 250", "step 750", "step 1,000"]
  assert all("±" in t for t in texts)
  rows = section.one("table").all("tr")[1:]
  values = [row.numbers()[1] for row in rows]
  assert values == [x["figures"]["fd_digits"]["value"] for x in (earlier[1], earlier[0], metrics)]


def test_a_step_that_was_measured_otherwise_is_marked_and_not_drawn(metrics, earlier):
  for entry in earlier[0]["figures"].values():
    entry["num_samples"] = 7
  course = course_of(metrics, earlier)
  assert course.has_marks
  assert [any(mark for _, _, mark in row.cells) for row in course.rows] == [False, True, False]
  (plot,) = [p for p in course.plots if p.title == "fd_digits over training"]
  assert "step 750" not in str(plot.svg)


def test_one_step_has_no_course(metrics):
  assert course_of(metrics, []) is None
  assert course_of(metrics, [copy.deepcopy(metrics)]) is None  # the same step
  assert not page.read(html.render(metrics, {})).all(id="course")


def test_missing_and_infinite_values_are_left_out(metrics, earlier):
  earlier[0]["figures"]["fd_digits"]["value"] = None
  earlier[1]["figures"]["fd_digits"] = {**metrics["figures"]["fd_digits"], "value": math.inf}
  course = course_of(metrics, earlier)
  assert "fd_digits over training" not in [p.title for p in course.plots]
  assert len(course.rows) == 3


def test_the_page_of_all_steps_links_each_report(tmp_path, metrics, earlier):
  links = [Link("x", f"{step}/report.html") for step in (250, 750, 1000)]
  write_course(tmp_path / "report.html", [earlier[1], earlier[0], metrics], {}, links)
  doc = page.read((tmp_path / "report.html").read_text())
  hrefs = [a.attributes["href"] for a in doc.one("table").all("a")]
  assert hrefs == ["250/report.html", "750/report.html", "1000/report.html"]
  assert "3 evaluated steps" in doc.one("header").text


def test_links_lead_to_files_and_never_to_a_script(metrics):
  links = [
    Link("metrics.json", "metrics.json"),
    Link("TensorBoard", "../../tensorboard/", "tensorboard --logdir=a"),
    Link("evil", "javascript:alert(1)"),
  ]
  doc = page.read(html.render(metrics, {}, Beside(links=links)))
  shown = doc.one("ul", class_="links")
  assert [a.attributes["href"] for a in shown.all("a")] == ["metrics.json", "../../tensorboard/"]
  assert shown.one("code").text == "tensorboard --logdir=a"
