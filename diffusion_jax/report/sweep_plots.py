"""Plots of quality: against network evaluations, against guidance, against 1 / N."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter

from diffusion_jax.report import svg
from diffusion_jax.report.formatting import clipped, error_decimals, number, tick, with_error
from diffusion_jax.report.plots import draw_points, points_of, slug
from diffusion_jax.report.svg import Mark, Plot, Point, drawable, drawable_error
from diffusion_jax.report.sweep import GUIDANCE, STEPS, figure_names, num_values, series
from diffusion_jax.report.views import Metrics, spread

MAX_PLOTS = 4
"""Maximum number of figures of a sweep that are plotted; the table has all of them."""

EVALUATIONS = "network evaluations per image"


def quality(metrics: Metrics) -> list[Plot]:
  """Plot each figure of the sweep against network evaluations, and against varying guidance.

  A plot needs at least two numbers of evaluations, or three guidance weights.
  """
  rows = metrics.get("sweep") or []
  plots = []
  for name in figure_names(rows)[:MAX_PLOTS]:
    if len({row.get("num_evaluations") for row in rows}) > 1:
      curves = series(rows, name, "num_evaluations", (STEPS,))
      plots.append(_against(metrics, name, "num_evaluations", EVALUATIONS, curves))
    if num_values(rows, GUIDANCE) > 2:
      curves = series(rows, name, GUIDANCE, (GUIDANCE,))
      plots.append(_against(metrics, name, GUIDANCE, "guidance weight (1: off)", curves))
  return [plot for plot in plots if plot is not None]


def _against(
  metrics: Metrics, name: str, x: str, x_label: str, curves: Mapping[str, Sequence[Point]]
) -> Plot | None:
  title = f"{name} against {x_label.split(' (')[0]}"
  return _scatter(
    f"{slug(name)}-{slug(x)}", title, x_label, name, curves, figure_error(metrics, name)
  )


def figure_error(metrics: Metrics, name: str) -> float:
  """Return the error of a figure of the run itself; 0 if it is not known.

  The settings of a sweep are measured with one seed, so most have no error of their own.
  """
  return drawable_error(spread((metrics.get("figures") or {}).get(name) or {})[0])


def common(runs: Mapping[str, Metrics]) -> Plot | None:
  """Plot the first figure that at least two sweeps share, against network evaluations.

  Args:
    runs: metrics by the name of the run in the plot.
  """
  swept = {name: run["sweep"] for name, run in runs.items() if run.get("sweep")}
  if len(swept) < 2:
    return None
  first, *others = (figure_names(rows) for rows in swept.values())
  shared = [name for name in first if all(name in names for names in others)]
  if not shared:
    return None
  curves = {
    f"{run}: {setting}" if setting else run: points
    for run, rows in swept.items()
    for setting, points in series(rows, shared[0], "num_evaluations", (STEPS,)).items()
  }
  floor = max(figure_error(run, shared[0]) for run in runs.values())
  title = f"{shared[0]} of each run's sweep"
  return _scatter("common", title, EVALUATIONS, shared[0], curves, floor)


def _scatter(
  name: str,
  title: str,
  x_label: str,
  y_label: str,
  curves: Mapping[str, Sequence[Point]],
  floor: float,
) -> Plot | None:
  """Plot series of points with error bars; logarithmic if the values span enough.

  Args:
    name: part of the drawing's id, unique in the page.
    title, x_label, y_label: texts.
    curves: points by the name of the series; empty series are left out.
    floor: the figure's error, for settings that have none; the axis is never narrower.
  """
  curves = {label: list(points) for label, points in curves.items() if points}
  everything = [p for points in curves.values() for p in points]
  if not everything:
    return None
  xs, ys = [p.x for p in everything], [p.y for p in everything]

  def paint(axes: Axes) -> None:
    for i, points in enumerate(curves.values()):
      draw_points(axes, i, points)
    axes.set(xlabel=x_label, ylabel=clipped(y_label, 32))
    svg.plain_axis(axes.xaxis)
    if svg.spans(xs, 5):
      svg.log_axis(axes, "x", xs, at_values=True)
    svg.fit_y(axes, everything, floor=floor)

  keys = [svg.key(label, i) for i, label in enumerate(curves)] if len(curves) > 1 else []
  alt = (
    f"{title}, {len(everything)} settings, from {number(min(ys)).text} to {number(max(ys)).text}."
  )
  note = "Bars: ± the error of the table." if any(p.error for p in everything) else ""
  if floor and not all(p.error for p in everything):
    words = with_error(None, floor)[1].text
    note = f"{note} The figure's own error is ± {words}; smaller differences mean nothing.".strip()
  x_name = "evaluations" if x_label == EVALUATIONS else "weight"
  marks = [m for label, points in curves.items() for m in svg.marks_of(points, x_name, label)]
  return Plot(title, svg.draw_axes(f"plot-sweep-{name}", paint, marks=marks), alt, keys, note)


def infinity(metrics: Metrics) -> list[Plot]:
  """Plot each figure that was extrapolated to infinitely many samples, against 1 / N."""
  figures = metrics.get("figures") or {}
  plots = [_extrapolation(key, figure) for key, figure in figures.items() if figure.get("points")]
  return [plot for plot in plots if plot is not None]


def _extrapolation(key: str, figure: Mapping[str, Any]) -> Plot | None:
  points = [p for p in points_of(*zip(*figure["points"], strict=True)) if p.x > 0]
  limit, error = drawable(figure.get("value")), drawable_error(spread(figure)[0])
  if len(points) < 2 or limit is None:
    return None
  nums, values, _ = np.array(points).T
  slope = float(((values - limit) / nums).sum() / (1 / nums**2).sum())
  end = float(1 / nums.min())

  def paint(axes: Axes) -> None:
    axes.plot([0, end], [limit, limit + slope * end], color=svg.MUTED, lw=1.2, ls=svg.dash(1))
    axes.plot(1 / nums, values, "o", color=svg.color(0))
    axes.errorbar([0], [limit], [error], color=svg.color(1), fmt="D", ms=6, elinewidth=1.4)
    axes.set(xlabel="samples N, on a scale of 1/N", ylabel=clipped(key, 32))
    axes.set_xlim(-0.04 * end, 1.04 * end)
    _count_axis(axes, nums, end)
    axes.set_ylim(*svg.axis_range([*points, Point(0, limit, error)]))
    svg.plain_axis(axes.yaxis)

  shown = number(limit, error_decimals(error)).text
  keys = [
    svg.Key("subsets of N samples", 1, 0, "dot"),
    svg.Key(f"extrapolated: {shown}", 2, 0, "dot"),
    svg.Key("straight line through it, least squares", 0, 1, "line"),
  ]
  first = f"{number(values[nums.argmin()]).text} at N={tick(nums.min())}"
  alt = f"{key} of subsets against 1/N; {first}, extrapolated to {shown}."
  note = (
    "The distance of a finite sample is too large by about a constant over N. The intercept of "
    "the straight line estimates the distance of infinitely many samples."
  )
  words = svg.value_words(Point(0, limit, error))
  marks = [Mark(1 / p.x, p.y, f"N {tick(p.x)}: {number(p.y).text}") for p in points]
  marks.append(Mark(0, limit, f"extrapolated: {words}"))
  drawing = svg.draw_axes(f"plot-limit-{slug(key)}", paint, marks=marks)
  return Plot(f"{key}: the limit of many samples", drawing, alt, keys, note)


def _count_axis(axes: Axes, nums: np.ndarray, end: float) -> None:
  """Put ticks at 1 / N, labelled N; drop labels that would overlap."""
  kept = [0.0]
  for position in sorted(1 / nums):
    if position - kept[-1] > 0.11 * end:
      kept.append(float(position))
  axes.xaxis.set_major_locator(FixedLocator(kept))
  axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: tick(round(1 / x)) if x else "∞"))
