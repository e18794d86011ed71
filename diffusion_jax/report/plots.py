"""The plots of the report; each function returns nothing if there is nothing to plot."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from diffusion_jax.report import svg
from diffusion_jax.report.formatting import clipped, finite, number, tick, with_error
from diffusion_jax.report.svg import Key, Mark, Plot, Point, drawable, drawable_error
from diffusion_jax.report.views import Metrics

Points = list[Point]
MAX_POINTS = 1000
"""Maximum points of a training curve; longer ones are thinned evenly."""


def points_of(xs: Sequence[Any], ys: Sequence[Any], errors: Sequence[Any] = ()) -> Points:
  """Return the points of two lists that can be drawn, with their errors if there are any."""
  padded = [*errors, *[None] * max(0, len(ys) - len(errors))]
  rows = [(drawable(x), drawable(y), e) for x, y, e in zip(xs, ys, padded, strict=False)]
  return [Point(x, y, drawable_error(e)) for x, y, e in rows if x is not None and y is not None]


def thinned(points: Points) -> Points:
  """Return at most MAX_POINTS of the points, evenly spaced and with the last one."""
  every = -(-len(points) // MAX_POINTS)
  return points[::-1][::every][::-1] if every > 1 else points


def draw_points(axes: Axes, i: int, points: Points, marker: str | None = "o") -> None:
  """Draw the i-th curve, with error bars where errors are known."""
  x, y, error = zip(*points, strict=True)
  style: Any = {"color": svg.color(i), "ls": svg.dash(i), "marker": marker}
  if any(error):
    axes.errorbar(x, y, error, elinewidth=1.2, **style)
  else:
    axes.plot(x, y, **style)


# Training


def training(rows: Sequence[Mapping[str, Any]]) -> list[Plot]:
  """Plot the loss, the held-out likelihoods and the speed against the step."""
  plots = [_loss(rows), _held_out_bits(rows), _speed(rows)]
  return [plot for plot in plots if plot is not None]


def column(rows: Sequence[Mapping[str, Any]], name: str) -> Points:
  """Return (step, value, error) for the rows that have a step and the value."""
  columns = ([r.get(n) for r in rows] for n in ("step", name, f"{name}_standard_error"))
  return points_of(*columns)


LOSS_NOTE = (
  "Each point is the mean over a logging interval; held out: the whole split, EMA weights."
)


def _loss(rows: Sequence[Mapping[str, Any]]) -> Plot | None:
  curves = {"training": column(rows, "train/loss"), "held out": column(rows, "held_out/loss")}
  return curves_by_step("loss", "Loss", "loss an example", curves, LOSS_NOTE)


def losses(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Plot]:
  """Plot the training losses of several runs in one drawing, their held-out ones in another.

  Args:
    runs: rows of metrics.jsonl by the name of the run in the legend.
  """
  plots = []
  for key, title in (("train/loss", "Training loss"), ("held_out/loss", "Held-out loss")):
    curves = {run: column(rows, key) for run, rows in runs.items()}
    if sum(bool(points) for points in curves.values()) > 1:
      plots.append(
        curves_by_step(f"runs-{slug(key)}", title, "loss an example", curves, is_named=True)
      )
  return [plot for plot in plots if plot is not None]


def _held_out_bits(rows: Sequence[Mapping[str, Any]]) -> Plot | None:
  names = dict.fromkeys(
    name for row in rows for name in row if name.startswith("held_out/") and "bits_per_dim" in name
  )
  curves = {
    name.removeprefix("held_out/").removesuffix("/bits_per_dim"): column(rows, name)
    for name in names
    if not name.endswith("standard_error")
  }
  return curves_by_step("held-out", "Held-out likelihood", "bits/dim", curves)


def _speed(rows: Sequence[Mapping[str, Any]]) -> Plot | None:
  curves = {"": column(rows, "train/images_per_sec")}
  return curves_by_step("speed", "Speed of training", "images/s", curves, from_zero=True)


def curves_by_step(
  name: str,
  title: str,
  unit: str,
  curves: Mapping[str, Points],
  note: str = "",
  from_zero: bool = False,
  is_named: bool = False,
  bars: str = "standard error",
) -> Plot | None:
  """Plot curves against the training step; a curve with few points also has markers.

  Args:
    name: part of the drawing's id, unique in the page.
    title, unit, note: texts.
    curves: points by the name of the curve; empty ones are left out.
    from_zero: whether the y axis begins at zero.
    is_named: whether a single curve is named too.
    bars: meaning of the error bars.
  """
  curves = {k: thinned(points) for k, points in curves.items() if points}
  if not curves:
    return None
  everything = [p for points in curves.values() for p in points]

  def paint(axes: Axes) -> None:
    for i, points in enumerate(curves.values()):
      draw_points(axes, i, points, "o" if len(points) <= 30 else None)
    axes.set(xlabel="training step", ylabel=unit)
    svg.plain_axis(axes.xaxis)
    svg.fit_y(axes, everything)
    if from_zero and min(p.y for p in everything) >= 0:
      axes.set_yscale("linear")
      axes.set_ylim(0, max(p.y + p.error for p in everything) * 1.1 or 1)
      svg.plain_axis(axes.yaxis)

  many = is_named or len(curves) > 1
  keys = [svg.key(label, i) for i, label in enumerate(curves)] if many else []
  last = "; ".join(f"{k or title} {number(p[-1].y).text}" for k, p in curves.items())
  alt = f"{title} against the training step. Last values: {last}."
  marks = [m for k, p in curves.items() for m in svg.marks_of(p, "step", k if many else "")]
  if any(p.error for p in everything):
    note = f"{note} Bars: ± {bars}.".strip()
  return Plot(title, svg.draw_axes(f"plot-{name}", paint, marks=marks), alt, keys, note)


# Likelihood


def bits(metrics: Metrics) -> Plot | None:
  """Plot the terms of each likelihood as stacked bars, next to the baselines."""
  bars = {k: e for k, e in (metrics.get("likelihoods") or {}).items() if _stackable(e)}
  baselines = {k: x for k, v in (metrics.get("baseline") or {}).items() if (x := finite(v))}
  if not bars:
    return None
  names = list(dict.fromkeys(term for e in bars.values() for term in e["terms"]))

  def paint(axes: Axes) -> None:
    for row, estimate in enumerate(bars.values()):
      _bar(axes, row, estimate, names)
    for i, value in enumerate(baselines.values()):
      axes.axvline(value, color=svg.INK, lw=1.4, ls=svg.dash(i + 1))
    axes.set_yticks(range(len(bars)), labels=[clipped(name, 20) for name in bars])
    axes.set(xlabel="bits/dim", ylim=(len(bars) - 0.5, -0.5))
    axes.set_xlim(0, 1.15 * max([*map(_end, bars.values()), *baselines.values(), 1e-9]))
    svg.plain_axis(axes.xaxis)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)

  keys = [svg.key(name, i, "box") for i, name in enumerate(names)]
  keys += [
    Key(f"{k.replace('_', ' ')} {number(v).text}", 0, i + 1, "line")
    for i, (k, v) in enumerate(baselines.items())
  ]
  alt = "Terms in bits/dim: " + "; ".join(_bar_words(k, e) for k, e in bars.items()) + "."
  marks = [m for row, e in enumerate(bars.values()) for m in _bar_marks(row, e, names)]
  drawing = svg.draw_axes("plot-bits", paint, 0.85 + 0.5 * len(bars), marks)
  return Plot("Terms of the bits/dim", drawing, alt, keys)


def _stackable(estimate: Mapping[str, Any]) -> bool:
  """Return whether all terms are known and none is negative."""
  means = [finite(term.get("mean")) for term in (estimate.get("terms") or {}).values()]
  return bool(means) and all(mean is not None and mean >= 0 for mean in means)


def _bar(axes: Axes, row: int, estimate: Mapping[str, Any], names: Sequence[str]) -> None:
  left = 0.0
  for i, name in enumerate(names):
    if name in estimate["terms"]:
      mean = float(estimate["terms"][name]["mean"])
      axes.barh(row, mean, left=left, height=0.56, color=svg.color(i))
      left += mean
  error = drawable_error(estimate.get("standard_error"))
  if error:
    axes.errorbar([left], [row], xerr=[error], color=svg.INK, fmt="none", elinewidth=1.2)
  total = with_error(estimate.get("bits_per_dim"), error or None)[0].text
  axes.annotate(total, (left + error, row), (5, 0), textcoords="offset points", va="center")


def _end(estimate: Mapping[str, Any]) -> float:
  """Return the right end of a bar with its error."""
  total = sum(float(term["mean"]) for term in estimate["terms"].values())
  return total + drawable_error(estimate.get("standard_error"))


def _bar_marks(row: int, estimate: Mapping[str, Any], names: Sequence[str]) -> list[Mark]:
  """Return a mark in the middle of each term."""
  left, marks = 0.0, []
  for name in names:
    if name in estimate["terms"]:
      term = estimate["terms"][name]
      mean, error = float(term["mean"]), drawable_error(term.get("standard_error"))
      words = svg.value_words(Point(0, mean, error))
      marks.append(Mark(left + mean / 2, row, f"{name}: {words} bits/dim"))
      left += mean
  return marks


def _bar_words(key: str, estimate: Mapping[str, Any]) -> str:
  listed = ", ".join(f"{n} {number(t['mean']).text}" for n, t in estimate["terms"].items())
  return f"{key} {number(estimate.get('bits_per_dim')).text}: {listed}"


def timesteps(metrics: Metrics) -> list[Plot]:
  """Plot the curves of each likelihood over the time."""
  return [
    plot
    for key, estimate in (metrics.get("likelihoods") or {}).items()
    for name, curve in (estimate.get("curves") or {}).items()
    if (plot := _timestep_curve(key, estimate.get("description") or key, name, curve)) is not None
  ]


def _timestep_curve(key: str, words: str, name: str, curve: Mapping[str, Any]) -> Plot | None:
  points = points_of(curve.get("t") or [], curve.get("bits_per_dim") or [])
  if not points:
    return None

  def paint(axes: Axes) -> None:
    draw_points(axes, 0, points, "o" if len(points) == 1 else None)
    axes.set(xlabel="time t (0: data, 1: noise)", ylabel="bits/dim a step")
    svg.plain_axis(axes.xaxis)
    svg.fit_y(axes, points, 10)

  top_t, top, _ = max(points, key=lambda p: p.y)
  alt = (
    f"{name} term of {key} at each of {len(points)} steps; largest at t={tick(top_t)}: "
    f"{number(top).text} bits/dim."
  )
  title = f"{name.replace('_', ' ').capitalize()} by time step"
  return Plot(
    title,
    svg.draw_axes(
      f"plot-time-{slug(key)}-{slug(name)}", paint, marks=svg.marks_of(points, "time", name)
    ),
    alt,
    (),
    f"{key}: {words}; the steps sum to the term.",
  )


def slug(name: str) -> str:
  """Return a name as a part of an id, with code points for all but letters and digits."""
  return "".join(c if c.isascii() and c.isalnum() else f"_{ord(c)}" for c in name)


def spectrum(metrics: Metrics) -> list[Plot]:
  """Plot the denoising error by log-SNR on train and test, and the gap between them."""
  measured = metrics.get("spectrum") or {}
  x = measured.get("log_snr") or []
  splits = {s: v for s, v in measured.items() if isinstance(v, Mapping) and v.get("eps_mse")}
  plots = [_spectrum(x, splits), _gap(x, splits)]
  return [plot for plot in plots if plot is not None]


def _spectrum(x: Sequence[Any], splits: Mapping[str, Mapping[str, Any]]) -> Plot | None:
  curves = {
    split: points_of(x, curve["eps_mse"], curve.get("standard_error") or [])
    for split, curve in splits.items()
  }
  curves = {split: points for split, points in curves.items() if points}
  if not curves:
    return None
  twice = [p._replace(error=2 * p.error) for points in curves.values() for p in points]

  def paint(axes: Axes) -> None:
    for i, points in enumerate(curves.values()):
      log_snr, mse, error = np.array(points).T
      color = svg.color(i)
      if error.any():
        low, high = mse - 2 * error, mse + 2 * error
        axes.fill_between(log_snr, low, high, color=color, alpha=0.18, lw=0)
      axes.plot(log_snr, mse, color=color, ls=svg.dash(i), marker="o", ms=3)
    axes.set(xlabel="log-SNR, ln(α²/σ²) (left: noise, right: data)", ylabel="MSE of ε per dim.")
    svg.plain_axis(axes.xaxis)
    svg.fit_y(axes, twice, 20)

  counts = {s: splits[s].get("num_images") for s in curves}
  keys = [
    svg.key(f"{s}, {counts[s]:,} images" if counts[s] else s, i) for i, s in enumerate(curves)
  ]
  endpoints = "; ".join(f"{s} from {_at(p[0])} to {_at(p[-1])}" for s, p in curves.items())
  alt = f"Mean squared error of the noise estimate against log-SNR: {endpoints}."
  note = "Mean squared error of the noise estimate; bands: ± 2 standard errors."
  marks = [m for s, points in curves.items() for m in svg.marks_of(points, "log-SNR", s)]
  drawing = svg.draw_axes("plot-spectrum", paint, marks=marks)
  return Plot("Denoising error by noise level", drawing, alt, keys, note)


def _at(point: Point) -> str:
  return f"{number(point.y).text} at {tick(round(point.x, 2))}"


def _gap(x: Sequence[Any], splits: Mapping[str, Mapping[str, Any]]) -> Plot | None:
  """Plot the test error over the training error, percent: it rises with memorisation."""
  if not {"train", "test"} <= splits.keys():
    return None
  train, test = splits["train"], splits["test"]
  columns = (x, train["eps_mse"], test["eps_mse"])
  points = [tuple(map(drawable, row)) for row in zip(*columns, strict=False)]
  errors = list(zip(_errors(train, len(points)), _errors(test, len(points)), strict=True))
  known = [(*r, *e) for r, e in zip(points, errors, strict=True) if None not in r and r[1]]
  if not known:
    return None
  log_snr, a, b, sa, sb = np.array(known, float).T
  gap = 100 * (b / a - 1)
  error = 200 / np.abs(a) * np.hypot(sa * b / a, sb)  # two standard errors of 100 b / a
  shown = points_of(log_snr.tolist(), gap.tolist(), error.tolist())

  def paint(axes: Axes) -> None:
    axes.axhline(0, color=svg.MUTED, lw=1)
    axes.errorbar(*zip(*shown, strict=True), color=svg.color(1), fmt="o", ms=4, elinewidth=1.2)
    axes.set(xlabel="log-SNR, ln(α²/σ²) (left: noise, right: data)", ylabel="test over train, %")
    svg.plain_axis(axes.xaxis)
    axes.set_ylim(*svg.axis_range([*shown, Point(0, 0)]))
    svg.plain_axis(axes.yaxis)

  worst = int(np.argmax(gap))
  at = tick(round(log_snr[worst], 2))
  alt = f"Test error over training error; largest at log-SNR {at}: {gap[worst]:+.1f}%."
  note = "Above zero: the network denoises its training images better. Bars: ± 2 standard errors."
  marks = svg.marks_of(shown, "log-SNR")
  return Plot("Generalisation gap", svg.draw_axes("plot-gap", paint, marks=marks), alt, (), note)


def _errors(curve: Mapping[str, Any], length: int) -> list[float]:
  errors = [drawable_error(e) for e in curve.get("standard_error") or []]
  return (errors + [0.0] * length)[:length]
