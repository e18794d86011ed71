"""The plots of the report; each function returns nothing if there is nothing to plot."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from diffusion_jax.report import svg
from diffusion_jax.report.formatting import clipped, finite, number, tick
from diffusion_jax.report.svg import Key, Plot
from diffusion_jax.report.views import Metrics

Pairs = list[tuple[float, float]]
MAX_POINTS = 1000
"""Maximum points of a training curve; longer ones are thinned evenly."""


def pairs(xs: Sequence[Any], ys: Sequence[Any]) -> Pairs:
  """Return the finite points of two lists."""
  both = [(finite(x), finite(y)) for x, y in zip(xs, ys, strict=False)]
  return [(x, y) for x, y in both if x is not None and y is not None]


def thinned(points: Pairs) -> Pairs:
  """Return at most MAX_POINTS of the points, evenly spaced and with the last one."""
  every = -(-len(points) // MAX_POINTS)
  return points[::-1][::every][::-1] if every > 1 else points


# Training


def training(rows: Sequence[Mapping[str, Any]]) -> list[Plot]:
  """Plot the loss, the held-out likelihoods and the speed against the step."""
  plots = [_loss(rows), _held_out_bits(rows), _speed(rows)]
  return [plot for plot in plots if plot is not None]


def column(rows: Sequence[Mapping[str, Any]], name: str) -> Pairs:
  """Return (step, value) for the rows that have both."""
  return pairs([r.get("step") for r in rows], [r.get(name) for r in rows])


def _loss(rows: Sequence[Mapping[str, Any]]) -> Plot | None:
  curves = {"training": column(rows, "train/loss"), "held out": column(rows, "held_out/loss")}
  note = "Each point is the mean over a logging interval; held out: the whole split, EMA weights."
  return _curves("loss", "Loss", "loss an example", curves, note)


def _held_out_bits(rows: Sequence[Mapping[str, Any]]) -> Plot | None:
  names = dict.fromkeys(
    name for row in rows for name in row if name.startswith("held_out/") and "bits_per_dim" in name
  )
  curves = {
    name.removeprefix("held_out/").removesuffix("/bits_per_dim"): column(rows, name)
    for name in names
    if not name.endswith("standard_error")
  }
  return _curves("held-out", "Held-out likelihood", "bits/dim", curves)


def _speed(rows: Sequence[Mapping[str, Any]]) -> Plot | None:
  curves = {"": column(rows, "train/images_per_sec")}
  return _curves("speed", "Speed of training", "images/s", curves, from_zero=True)


def _curves(
  name: str,
  title: str,
  unit: str,
  curves: Mapping[str, Pairs],
  note: str = "",
  from_zero: bool = False,
) -> Plot | None:
  """Plot curves against the step; a curve with few points also has markers."""
  curves = {k: thinned(points) for k, points in curves.items() if points}
  if not curves:
    return None
  values = [y for points in curves.values() for _, y in points]

  def paint(axes: Axes) -> None:
    for i, points in enumerate(curves.values()):
      few = "o" if len(points) <= 30 else None
      axes.plot(*zip(*points, strict=True), color=svg.color(i), ls=svg.dash(i), marker=few)
    axes.set(xlabel="training step", ylabel=unit)
    svg.plain_axis(axes.xaxis)
    svg.plain_axis(axes.yaxis)
    if from_zero:
      axes.set_ylim(0, max(values) * 1.1 or 1)
    elif svg.spans(values, 5):
      svg.log_axis(axes, "y", values)

  keys = [svg.key(label, i) for i, label in enumerate(curves)] if len(curves) > 1 else []
  last = "; ".join(f"{k or title} {number(p[-1][1]).text}" for k, p in curves.items())
  alt = f"{title} against the training step. Last values: {last}."
  return Plot(title, svg.draw_axes(f"plot-{name}", paint), alt, keys, note)


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
    axes.set_xlim(
      0,
      1.12
      * max([finite(e["bits_per_dim"]) or 0 for e in bars.values()] + list(baselines.values())),
    )
    svg.plain_axis(axes.xaxis)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)

  keys = [svg.key(name, i, "box") for i, name in enumerate(names)]
  keys += [
    Key(f"{k.replace('_', ' ')} {number(v).text}", 0, i + 1, "line")
    for i, (k, v) in enumerate(baselines.items())
  ]
  alt = "Terms in bits/dim: " + "; ".join(_bar_words(k, e) for k, e in bars.items()) + "."
  drawing = svg.draw_axes("plot-bits", paint, 0.85 + 0.5 * len(bars))
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
  total = number(estimate.get("bits_per_dim")).text
  axes.annotate(total, (left, row), (5, 0), textcoords="offset points", va="center")


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
  points = pairs(curve.get("t") or [], curve.get("bits_per_dim") or [])
  if not points:
    return None
  values = [y for _, y in points]

  def paint(axes: Axes) -> None:
    axes.plot(*zip(*points, strict=True), color=svg.color(0))
    axes.set(xlabel="time t (0: data, 1: noise)", ylabel="bits/dim a step")
    svg.plain_axis(axes.xaxis)
    svg.plain_axis(axes.yaxis)
    if svg.spans(values, 10):
      svg.log_axis(axes, "y", values)

  top_t, top = max(points, key=lambda p: p[1])
  alt = (
    f"{name} term of {key} at each of {len(points)} steps; largest at t={tick(top_t)}: "
    f"{number(top).text} bits/dim."
  )
  title = f"{name.replace('_', ' ').capitalize()} by time step"
  return Plot(
    title,
    svg.draw_axes(f"plot-time-{slug(key)}-{slug(name)}", paint),
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
  curves = {split: pairs(x, curve["eps_mse"]) for split, curve in splits.items()}
  curves = {split: points for split, points in curves.items() if points}
  if not curves:
    return None
  values = [y for points in curves.values() for _, y in points]

  def paint(axes: Axes) -> None:
    for i, (split, points) in enumerate(curves.items()):
      _band(axes, i, x, splits[split])
      axes.plot(*zip(*points, strict=True), color=svg.color(i), ls=svg.dash(i), marker="o", ms=3)
    axes.set(xlabel="log-SNR, ln(α²/σ²) (left: noise, right: data)", ylabel="MSE of ε per dim.")
    svg.plain_axis(axes.xaxis)
    svg.plain_axis(axes.yaxis)
    if svg.spans(values, 20):
      svg.log_axis(axes, "y", values)

  counts = {s: splits[s].get("num_images") for s in curves}
  keys = [
    svg.key(f"{s}, {counts[s]:,} images" if counts[s] else s, i) for i, s in enumerate(curves)
  ]
  endpoints = "; ".join(f"{s} from {_at(p[0])} to {_at(p[-1])}" for s, p in curves.items())
  alt = f"Mean squared error of the noise estimate against log-SNR: {endpoints}."
  note = "Mean squared error of the noise estimate; bands: ± 2 standard errors."
  return Plot(
    "Denoising error by noise level", svg.draw_axes("plot-spectrum", paint), alt, keys, note
  )


def _at(point: tuple[float, float]) -> str:
  return f"{number(point[1]).text} at {tick(round(point[0], 2))}"


def _band(axes: Axes, i: int, x: Sequence[Any], curve: Mapping[str, Any]) -> None:
  errors = curve.get("standard_error") or []
  known = [
    (a, b, e)
    for a, b, e in zip(
      map(finite, x), map(finite, curve["eps_mse"]), map(finite, errors), strict=False
    )
    if a is not None and b is not None and e is not None
  ]
  if known:
    a, b, e = np.array(known).T
    low = np.maximum(b - 2 * e, b * 1e-2)  # stays on a logarithmic axis
    axes.fill_between(a, low, b + 2 * e, color=svg.color(i), alpha=0.18, lw=0)


def _gap(x: Sequence[Any], splits: Mapping[str, Mapping[str, Any]]) -> Plot | None:
  """Plot the test error over the training error, percent: it rises with memorisation."""
  if not {"train", "test"} <= splits.keys():
    return None
  train, test = splits["train"], splits["test"]
  columns = (x, train["eps_mse"], test["eps_mse"])
  points = [tuple(map(finite, row)) for row in zip(*columns, strict=False)]
  errors = list(zip(_errors(train, len(points)), _errors(test, len(points)), strict=True))
  known = [(*r, *e) for r, e in zip(points, errors, strict=True) if None not in r and r[1]]
  if not known:
    return None
  log_snr, a, b, sa, sb = np.array(known, float).T
  gap = 100 * (b / a - 1)
  error = 200 / a * np.hypot(sa * b / a, sb)  # two standard errors of 100 b / a

  def paint(axes: Axes) -> None:
    axes.axhline(0, color=svg.MUTED, lw=1)
    axes.errorbar(log_snr, gap, error, color=svg.color(1), fmt="o", ms=4, elinewidth=1.2)
    axes.set(xlabel="log-SNR, ln(α²/σ²) (left: noise, right: data)", ylabel="test over train, %")
    svg.plain_axis(axes.xaxis)
    svg.plain_axis(axes.yaxis)

  worst = int(np.argmax(gap))
  at = tick(round(log_snr[worst], 2))
  alt = f"Test error over training error; largest at log-SNR {at}: {gap[worst]:+.1f}%."
  note = "Above zero: the network denoises its training images better. Bars: ± 2 standard errors."
  return Plot("Generalisation gap", svg.draw_axes("plot-gap", paint), alt, (), note)


def _errors(curve: Mapping[str, Any], length: int) -> list[float]:
  errors = [finite(e) or 0.0 for e in curve.get("standard_error") or []]
  return (errors + [0.0] * length)[:length]
