"""The y axes: never narrower than the error, whatever the values and the errors are."""

import math

import page
import pytest

from diffusion_jax.report import html, plots, svg, sweep_plots
from diffusion_jax.report.svg import Point

NAN, HUGE = math.nan, 1e300


def ends(plot):
  """The ends of the y axis as the drawing states them."""
  (element,) = [e for e in page.read(str(plot.svg)).all("svg") if "data-y" in e.attributes]
  return [float(end) for end in element.attributes["data-y"].split()]


def swept(values, errors=(), own_error=None):
  """Metrics of a sweep with these values of a figure, whose own error is known or not."""
  errors = [*errors, *[None] * len(values)]
  rows = [
    {
      "overrides": {"sampler.steps": 5 * (i + 1)},
      "num_evaluations": 5 * (i + 1),
      "figures": {"fd": {"value": value, "standard_error": error}},
    }
    for i, (value, error) in enumerate(zip(values, errors, strict=False))
  ]
  return {"figures": {"fd": {"value": values[0], "standard_error": own_error}}, "sweep": rows}


def test_a_sweep_without_errors_is_not_narrower_than_the_error_of_its_figure():
  """The panel that was reported: from 384.5 to 383.3, where the error was 42."""
  (plot,) = sweep_plots.quality(swept([384.5, 383.3, 384.1], own_error=42.0))
  low, high = ends(plot)
  assert high - low >= 2 * 42
  assert "± 42" in plot.note


@pytest.mark.parametrize(
  ("points", "floor"),
  [
    ([(3.0, 0), (3.0, 0)], 0),
    ([(0.0, 0)], 0),
    ([(384.5, 0)], 42),
    ([(1.0, 1e9), (2.0, 0)], 0),
    ([(-5.0, 2), (-5.0001, 3)], 0.1),
    ([(1e-12, 1e-13)], 0),
    ([(1e90, 1e95)], 0),
  ],
)
def test_an_axis_shows_each_error_bar_whole(points, floor):
  points = [Point(i, y, error) for i, (y, error) in enumerate(points)]
  low, high = svg.axis_range(points, floor)
  assert math.isfinite(low)
  assert math.isfinite(high)
  assert all(low < p.y - p.error or p.error == 0 for p in points)
  assert all(low < p.y < high for p in points)
  assert high - low >= 2 * max([floor, *(p.error for p in points)])


def test_without_a_known_error_an_axis_is_no_magnifying_glass():
  low, high = svg.axis_range([Point(0, 100.0), Point(1, 100.001)])
  assert high - low >= 1


@pytest.mark.parametrize(
  ("values", "errors"),
  [
    ([7.0, 7.0, 7.0], []),
    ([7.0, NAN, 9.0], [NAN, 1.0, math.inf]),
    ([7.0, 9.0], [-1.0, HUGE]),
    ([HUGE, 9.0, 8.0], [1.0]),
    ([1.0, 900.0], [5.0, 5.0]),
    ([1.0, 900.0], [0.1, 50.0]),
  ],
)
def test_each_sweep_has_axes_that_show_its_bars(values, errors):
  metrics = swept(values, errors)
  (plot,) = sweep_plots.quality(metrics)
  low, high = ends(plot)
  for row in metrics["sweep"]:
    entry = row["figures"]["fd"]
    error = svg.drawable_error(entry["standard_error"])
    if svg.drawable(entry["value"]) is not None:
      assert low < entry["value"] - error
      assert entry["value"] + error < high
  assert "NaN" not in str(plot.svg)


def test_nothing_but_nan_has_no_plot():
  assert sweep_plots.quality(swept([NAN, NAN], [1.0, 2.0])) == []


def test_held_out_figures_are_drawn_with_their_errors():
  rows = [{"step": s, "held_out/loss": 0.5, "held_out/loss_standard_error": 0.2} for s in (10, 20)]
  (plot,) = plots.training(rows)
  low, high = ends(plot)
  assert low < 0.3 < 0.7 < high
  assert "standard error" in plot.note


def test_every_drawing_states_the_value_of_its_points(metrics, training):
  doc = page.read(html.render(metrics, {}, page.beside(training)))
  drawings = [e for e in doc.all("svg") if "data-y" in e.attributes]
  assert len(drawings) >= 8
  for drawing in drawings:
    marks = drawing.one("g", class_="marks").all("circle")
    assert marks
    assert all(mark.one("title").text for mark in marks)
    width, height = (float(x) for x in drawing.attributes["viewbox"].split()[2:])
    for mark in marks:
      assert 0 <= float(mark.attributes["cx"]) <= width
      assert 0 <= float(mark.attributes["cy"]) <= height


def test_a_mark_lies_on_its_point(metrics):
  quality = sweep_plots.quality(metrics)[0]
  marks = page.read(str(quality.svg)).one("g", class_="marks").all("circle")
  second = metrics["sweep"][1]
  assert marks[1].one("title").text.startswith("sampler ddim, evaluations 20: ")
  assert f"{second['figures']['fd_digits']['value']:.1f}" in marks[1].one("title").text
  uses = [u.attributes for u in page.read(str(quality.svg)).all("use") if "y" in u.attributes]
  x, y = (float(marks[1].attributes[name]) for name in ("cx", "cy"))
  assert min(math.hypot(float(u["x"]) - x, float(u["y"]) - y) for u in uses) < 0.2
