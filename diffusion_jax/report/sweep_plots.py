"""Plots of quality: against network evaluations, against guidance, against 1 / N."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter

from diffusion_jax.report import svg
from diffusion_jax.report.formatting import clipped, error_decimals, finite, number, tick
from diffusion_jax.report.plots import pairs, slug
from diffusion_jax.report.svg import Plot
from diffusion_jax.report.sweep import GUIDANCE, STEPS, Point, figure_names, num_values, series
from diffusion_jax.report.views import Metrics

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
      plots.append(_against(rows, name, "num_evaluations", EVALUATIONS, (STEPS,)))
    if num_values(rows, GUIDANCE) > 2:
      plots.append(_against(rows, name, GUIDANCE, "guidance weight (1: off)", (GUIDANCE,)))
  return [plot for plot in plots if plot is not None]


def _against(
  rows: Sequence[Mapping[str, Any]], name: str, x: str, x_label: str, apart: Sequence[str]
) -> Plot | None:
  curves = series(rows, name, x, apart)
  title = f"{name} against {x_label.split(' (')[0]}"
  return _scatter(f"{slug(name)}-{slug(x)}", title, x_label, name, curves)


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
  return _scatter("common", f"{shared[0]} of each run's sweep", EVALUATIONS, shared[0], curves)


def _scatter(
  name: str, title: str, x_label: str, y_label: str, curves: Mapping[str, Sequence[Point]]
) -> Plot | None:
  """Plot series of points with error bars; logarithmic if the values span enough."""
  everything = [p for points in curves.values() for p in points]
  if not everything:
    return None
  xs, ys = [p.x for p in everything], [p.y for p in everything]

  def paint(axes: Axes) -> None:
    for i, points in enumerate(curves.values()):
      x, y, error = zip(*points, strict=True)
      bars = error if any(error) else None
      axes.errorbar(x, y, bars, color=svg.color(i), ls=svg.dash(i), marker="o", elinewidth=1.2)
    axes.set(xlabel=x_label, ylabel=clipped(y_label, 32))
    svg.plain_axis(axes.xaxis)
    svg.plain_axis(axes.yaxis)
    if svg.spans(xs, 5):
      svg.log_axis(axes, "x", xs, at_values=True)
    if svg.spans(ys, 5):
      svg.log_axis(axes, "y", ys)

  keys = [svg.key(label, i) for i, label in enumerate(curves)] if len(curves) > 1 else []
  alt = (
    f"{title}, {len(everything)} settings, from {number(min(ys)).text} to {number(max(ys)).text}."
  )
  note = "Bars: ± the error of the table." if any(p.error for p in everything) else ""
  return Plot(title, svg.draw_axes(f"plot-sweep-{name}", paint), alt, keys, note)


def infinity(metrics: Metrics) -> list[Plot]:
  """Plot each figure that was extrapolated to infinitely many samples, against 1 / N."""
  figures = metrics.get("figures") or {}
  plots = [_extrapolation(key, figure) for key, figure in figures.items() if figure.get("points")]
  return [plot for plot in plots if plot is not None]


def _extrapolation(key: str, figure: Mapping[str, Any]) -> Plot | None:
  points = [(n, v) for n, v in pairs(*zip(*figure["points"], strict=True)) if n > 0]
  limit, error = finite(figure.get("value")), finite(figure.get("standard_error")) or 0.0
  if len(points) < 2 or limit is None:
    return None
  nums, values = np.array(points).T
  slope = float(((values - limit) / nums).sum() / (1 / nums**2).sum())
  end = float(1 / nums.min())

  def paint(axes: Axes) -> None:
    axes.plot([0, end], [limit, limit + slope * end], color=svg.MUTED, lw=1.2, ls=svg.dash(1))
    axes.plot(1 / nums, values, "o", color=svg.color(0))
    axes.errorbar([0], [limit], [error], color=svg.color(1), fmt="D", ms=6, elinewidth=1.4)
    axes.set(xlabel="samples N, on a scale of 1/N", ylabel=clipped(key, 32))
    axes.set_xlim(-0.04 * end, 1.04 * end)
    _count_axis(axes, nums, end)
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
  drawing = svg.draw_axes(f"plot-limit-{slug(key)}", paint)
  return Plot(f"{key}: the limit of many samples", drawing, alt, keys, note)


def _count_axis(axes: Axes, nums: np.ndarray, end: float) -> None:
  """Put ticks at 1 / N, labelled N; drop labels that would overlap."""
  kept = [0.0]
  for position in sorted(1 / nums):
    if position - kept[-1] > 0.11 * end:
      kept.append(float(position))
  axes.xaxis.set_major_locator(FixedLocator(kept))
  axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: tick(round(1 / x)) if x else "∞"))
