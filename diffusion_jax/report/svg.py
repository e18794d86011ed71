"""Draw with Matplotlib as inline SVG in one style, in the colours of the page's theme."""

import io
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from diffusion_jax.report.formatting import finite, tick, with_error

INK, MUTED, LINE = "#1c2126", "#5d6670", "#dcdfe3"
COLORS = ("#2563a8", "#c2541f", "#14806a", "#8a5fb0", "#a87a10", "#4f5b67")
VARIABLES = {
  INK: "var(--ink)",
  MUTED: "var(--muted)",
  LINE: "var(--line)",
  **{color: f"var(--c{i + 1})" for i, color in enumerate(COLORS)},
}
"""Colours of the drawing -> variables of the style sheet, which has light and dark values."""

DASHES = ("solid", (0, (5, 2)), (0, (1.5, 1.8)), (0, (7, 2, 1.5, 2)))
GAP = 0.09
"""Minimum distance of two labels on a logarithmic axis, as a fraction of its length."""

WIDTH = 5.0
"""Width in inches, 72 units per inch: that of a telephone, where type is not shrunk."""

TOO_LARGE = 1e100
"""Values and errors from here on cannot be drawn."""

NARROWEST = 0.01
NARROWEST_WITH_ERROR = 1e-4
"""Least span of a y axis as a fraction of its values: without a known error, and with one."""

STYLE: Any = {
  "svg.fonttype": "none",
  "svg.hashsalt": "diffusion_jax",
  "text.parse_math": False,
  "font.family": "DejaVu Sans",
  "font.size": 11,
  "axes.labelsize": 11,
  "axes.labelcolor": MUTED,
  "axes.edgecolor": MUTED,
  "axes.linewidth": 0.8,
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.grid": True,
  "axes.axisbelow": True,
  "axes.facecolor": "none",
  "figure.facecolor": "none",
  "grid.color": LINE,
  "grid.linewidth": 0.8,
  "text.color": INK,
  "xtick.color": MUTED,
  "ytick.color": MUTED,
  "xtick.major.size": 3,
  "ytick.major.size": 0,
  "lines.linewidth": 1.8,
  "lines.markersize": 4.5,
  "path.simplify": True,
}


class Key(NamedTuple):
  """An entry of a legend: the name, colour and line style of a series."""

  label: str
  color: int
  dash: int
  kind: str


class Point(NamedTuple):
  """A value at x; `error` is zero if it is not known."""

  x: float
  y: float
  error: float = 0.0


class Mark(NamedTuple):
  """A place in a drawing, in units of the data, with the text shown under the pointer."""

  x: float
  y: float
  text: str


class Plot(NamedTuple):
  """A drawing with its texts.

  Attributes:
    title: title of the plot.
    svg: drawing, ready for insertion into HTML.
    alt: description for a reader who does not see the drawing.
    keys: legend; empty for a single series.
    note: hint for reading the plot.
  """

  title: str
  svg: Markup
  alt: str
  keys: Sequence[Key] = ()
  note: str = ""


def color(i: int) -> str:
  """Return the i-th colour; the colours repeat."""
  return COLORS[i % len(COLORS)]


def dash(i: int) -> Any:
  """Return the i-th line style; the styles repeat."""
  return DASHES[i % len(DASHES)]


def key(label: str, i: int, kind: str = "line") -> Key:
  """Return the legend entry of the i-th series."""
  return Key(label, i % len(COLORS) + 1, i % len(DASHES), kind)


def draw_axes(
  name: str,
  paint: Callable[[Axes], None],
  height: float = 2.9,
  marks: Sequence[Mark] = (),
) -> Markup:
  """Draw one pair of axes and return it as SVG, whose data-y has the ends of the y axis.

  Args:
    name: prefix of all ids in the drawing, unique in the page.
    paint: function that draws on the axes.
    height: height of the drawing, inches.
    marks: places with a text for the pointer.
  """
  with matplotlib.rc_context(STYLE):
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(visible=False, axis="x")
    paint(axes)
    stream = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(stream, format="svg", metadata=nothing)
  drawing = inline(stream.getvalue(), name)
  low, high = sorted(axes.get_ylim())
  drawing = drawing.replace("<svg ", f'<svg data-y="{low:.9g} {high:.9g}" ', 1)
  return Markup(drawing.replace("</svg>", f"{_mark_elements(axes, figure, height, marks)}</svg>"))


def _mark_elements(axes: Axes, figure: Figure, height: float, marks: Sequence[Mark]) -> str:
  """Write the marks as invisible circles; a browser shows the title of each without a script."""
  if not marks:
    return ""
  places = axes.transData.transform([(mark.x, mark.y) for mark in marks]) * 72 / figure.dpi
  circles = [
    f'<circle cx="{x:.1f}" cy="{72 * height - y:.1f}" r="5">'
    f"<title>{escape(mark.text)}</title></circle>"
    for (x, y), mark in zip(places, marks, strict=True)
    if np.isfinite((x, y)).all()
  ]
  return f'<g class="marks">{"".join(circles)}</g>'


def inline(svg: str, name: str) -> str:
  """Turn an SVG file into an element of a page: own ids, the page's colours, no style sheet."""
  svg = svg[svg.index("<svg") :].strip()
  svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
  svg = re.sub(
    r"<(defs|metadata)>\s*(<style.*?</style>.*?|.*?)</\1>\s*", _keep_shapes, svg, flags=re.DOTALL
  )
  head, rest = svg.split(">", 1)
  box = re.search(r'viewBox="[^"]*"', head)
  assert box is not None
  rest = re.sub(r'\bid="', f'id="{name}-', rest)
  rest = re.sub(r'xlink:href="#', f'href="#{name}-', rest)
  rest = rest.replace("url(#", f"url(#{name}-")
  for plain, variable in VARIABLES.items():
    rest = rest.replace(plain, variable)
  return f'<svg xmlns="http://www.w3.org/2000/svg" {box[0]} aria-hidden="true">{rest}'


def _keep_shapes(match: re.Match[str]) -> str:
  """Keep definitions that hold shapes; drop style sheets and metadata."""
  return "" if match[1] == "metadata" or "<style" in match[2] else match[0]


def plain_axis(axis: Any, bins: int = 6) -> None:
  """Put round numbers on a linear axis."""
  axis.set_major_locator(ticker.MaxNLocator(bins, steps=[1, 2, 2.5, 5, 10]))
  axis.set_major_formatter(ticker.FuncFormatter(lambda x, _: tick(x)))


def log_axis(axes: Axes, which: str, values: Sequence[float], at_values: bool = False) -> None:
  """Make an axis logarithmic, with a few ticks at round numbers or at the values themselves."""
  getattr(axes, f"set_{which}scale")("log")
  axis = getattr(axes, f"{which}axis")
  low, high = getattr(axes, f"get_{which}lim")()
  places = sorted(set(values)) if at_values else round_numbers(low, high)
  axis.set_major_locator(ticker.FixedLocator(spaced(places, low, high)))
  axis.set_minor_locator(ticker.NullLocator())
  axis.set_major_formatter(ticker.FuncFormatter(lambda x, _: tick(x)))


def round_numbers(low: int | float, high: int | float) -> list[float]:
  """Return at least three numbers of a positive range, the roundest possible."""
  first, last = int(np.floor(np.log10(low))), int(np.ceil(np.log10(high)))
  fine = (np.arange(1, 10, step) for step in (1, 0.5, 0.1))
  for digits in ((1,), (1, 3), (1, 2, 5), *fine):
    rounded = [float(f"{d:.2g}e{p}") for p in range(first, last + 1) for d in digits]
    if len(rounded := [x for x in rounded if low <= x <= high]) >= 3:
      return rounded
  return [low, high]


def spaced(positions: Sequence[int | float], low: int | float, high: int | float) -> list[float]:
  """Select places whose labels do not overlap on a log axis, starting from the last one."""
  kept: list[float] = []
  for position in sorted(positions, reverse=True):
    if not kept or np.log(kept[-1] / position) >= GAP * np.log(high / low):
      kept.append(position)
  return kept[::-1]


def spans(values: Sequence[float] | np.ndarray, ratio: int | float) -> bool:
  """Return whether all are positive and the largest is more than `ratio` times the smallest."""
  return len(values) > 0 and min(values) > 0 and max(values) > ratio * min(values)


def drawable(value: Any) -> float | None:
  """Return the value as a float, or None if it is not finite or too large to be drawn."""
  x = finite(value)
  return x if x is not None and abs(x) < TOO_LARGE else None


def drawable_error(value: Any) -> float:
  """Return an error, or 0 if it is unknown, negative or too large to be drawn."""
  return max(drawable(value) or 0.0, 0.0)


def axis_range(points: Sequence[Point], floor: int | float = 0.0) -> tuple[float, float]:
  """Return the ends of a linear axis that shows every value with its whole error.

  Args:
    points: the values; at least one.
    floor: an error that is known of the figure but not of each point: the axis is at least as wide
      as that error bar.
  """
  low, high = min(p.y - p.error for p in points), max(p.y + p.error for p in points)
  largest = max([floor, *(p.error for p in points)])
  fraction = NARROWEST_WITH_ERROR if largest else NARROWEST
  needed = max(2 * largest, fraction * max(abs(low), abs(high))) or 1.0
  if high - low < needed:
    low, high = (low + high - needed) / 2, (low + high + needed) / 2
  return low - 0.05 * (high - low), high + 0.05 * (high - low)


def fit_y(
  axes: Axes, points: Sequence[Point], ratio: int | float = 5, floor: int | float = 0.0
) -> None:
  """Scale the y axis, never narrower than the error; logarithmic only if each error bar fits.

  Args:
    axes: the axes, with everything drawn.
    points, floor: see `axis_range`.
    ratio: least ratio of the largest to the smallest value for a logarithmic axis.
  """
  low, high = min(p.y - p.error for p in points), max(p.y + p.error for p in points)
  if spans([p.y for p in points], ratio) and low > 0 and high - low >= 2 * floor:
    margin = (high / low) ** 0.05
    axes.set_ylim(low / margin, high * margin)
    log_axis(axes, "y", [])
  else:
    axes.set_ylim(*axis_range(points, floor))
    plain_axis(axes.yaxis)


def value_words(point: Point) -> str:
  """Return a point's value with its error, in words: "3.2 ± 0.1"."""
  value, error = with_error(point.y, point.error or None)
  return f"{value.text} ± {error.text}" if error.exact else value.text


MAX_MARKS = 150
"""Maximum number of marks of one curve."""


def marks_of(points: Sequence[Point], x_name: str, series: str = "") -> list[Mark]:
  """Return a mark for each point, or evenly spaced ones of a long curve.

  Args:
    points: points of one curve.
    x_name: name of x in the text: "step".
    series: name of the curve in the text; empty: none.
  """
  every = max(1, -(-len(points) // MAX_MARKS))
  name = f"{series}, " if series else ""
  return [
    Mark(p.x, p.y, f"{name}{x_name} {tick(p.x)}: {value_words(p)}")
    for p in points[::-1][::every][::-1]
  ]
