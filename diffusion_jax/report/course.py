"""Quality over training: the figures of a run's evaluated steps."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from diffusion_jax.report.comparison import same_protocol
from diffusion_jax.report.formatting import Number, count, text, with_error
from diffusion_jax.report.plots import curves_by_step, slug
from diffusion_jax.report.svg import Plot, Point, drawable, drawable_error
from diffusion_jax.report.views import Metrics, spread

MAX_PLOTS = 6
"""Maximum number of figures that are plotted; the table has all of them."""

VALUES = {"figures": "value", "likelihoods": "bits_per_dim"}
"""Group of metrics.json -> key of the value."""


class CourseRow(NamedTuple):
  """A step: its number, the address of its report, and its figures with their errors.

  Attributes:
    mark: † where a figure was measured otherwise than that of this report.
  """

  step: Number
  href: str
  cells: list[tuple[Number, Number | None, str]]


class Course(NamedTuple):
  """The evaluated steps as plots and as a table."""

  plots: list[Plot]
  names: list[str]
  rows: list[CourseRow]
  has_marks: bool


def course_of(
  metrics: Metrics, others: Sequence[Metrics], addresses: Mapping[int, str] | None = None
) -> Course | None:
  """Return the course of a run's figures; None if only one step was evaluated.

  Args:
    metrics: content of metrics.json; only figures measured like its own are plotted.
    others: metrics of the run's other steps.
    addresses: address of each step's report.
  """
  steps = {step: other for other in [*others, metrics] if (step := step_of(other)) is not None}
  if len(steps) < 2 or step_of(metrics) is None:
    return None
  runs = [steps[step] for step in sorted(steps)]
  keys = [
    (group, key)
    for group in VALUES
    for key in dict.fromkeys(k for r in runs for k in _in(r, group))
  ]
  rows = [_row(metrics, run, keys, addresses or {}) for run in runs]
  plots = [
    plot for group, key in _by_card(metrics, keys) if (plot := _plot(metrics, runs, group, key))
  ]
  has_marks = any(mark for row in rows for _, _, mark in row.cells)
  return Course(plots[:MAX_PLOTS], [key for _, key in keys], rows, has_marks)


def check_course(metrics: Metrics) -> None:
  """Read every figure of a step as the course does, without drawing.

  Raises:
    KeyError, TypeError, AttributeError, ValueError: the figures have another form.
  """
  keys = [(group, key) for group in VALUES for key in _in(metrics, group)]
  _row(metrics, metrics, keys, {})
  for group, key in keys:
    drawable(_in(metrics, group)[key].get(VALUES[group]))


def step_of(metrics: Metrics) -> int | None:
  """Return the step that was evaluated, if there is one."""
  step = (metrics.get("model") or {}).get("step")
  return step if isinstance(step, int) else None


def _in(run: Metrics, group: str) -> Mapping[str, Any]:
  return run.get(group) or {}


def _by_card(metrics: Metrics, keys: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
  """Return the figures with those of the cards first."""

  def place(item: tuple[str, str]) -> float:
    return _in(metrics, item[0]).get(item[1], {}).get("card") or float("inf")

  return sorted(keys, key=place)


def _row(
  metrics: Metrics, run: Metrics, keys: Sequence[tuple[str, str]], addresses: Mapping[int, str]
) -> CourseRow:
  cells = []
  for group, key in keys:
    entry = _in(run, group).get(key) or {}
    error = spread(entry)[0]
    value, shown = with_error(entry.get(VALUES[group]), error)
    alike = not entry or same_protocol(group, key, metrics, run)
    cells.append((value, None if error is None else shown, "" if alike else "†"))
  step = step_of(run)
  return CourseRow(count(step), addresses.get(step or 0, ""), cells)


def _plot(metrics: Metrics, runs: Sequence[Metrics], group: str, key: str) -> Plot | None:
  points = []
  for run in runs:
    entry = _in(run, group).get(key) or {}
    value, step = drawable(entry.get(VALUES[group])), step_of(run)
    if value is not None and step is not None and same_protocol(group, key, metrics, run):
      points.append(Point(step, value, drawable_error(spread(entry)[0])))
  if len(points) < 2:
    return None
  entry = _in(metrics, group).get(key) or {}
  better = entry.get("better") if group == "figures" else "lower"
  unit = text(entry.get("unit")) if entry.get("unit") else key
  unit = "bits/dim" if group == "likelihoods" else unit
  note = f"{better} is better.".capitalize() if better else ""
  title = f"{key} over training"
  name = f"course-{group}-{slug(key)}"
  return curves_by_step(name, title, unit, {"": points}, note, bars="the error of the table")
