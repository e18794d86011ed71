"""The sweep over sampler, steps and guidance: its table, and the series of its plots."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from diffusion_jax.report.formatting import Number, count, text, with_error
from diffusion_jax.report.svg import Point, drawable, drawable_error
from diffusion_jax.report.views import Metrics, spread

STEPS = "sampler.steps"
GUIDANCE = "guidance.weight"


class SweepRow(NamedTuple):
  """One setting of a sweep."""

  overrides: str
  num_evaluations: Number
  num_samples: Number
  cells: list[tuple[Number, Number | None]]


class Sweep(NamedTuple):
  """The sweep as a table: the names of its figures and one row per setting."""

  names: list[str]
  rows: list[SweepRow]


def sweep_table(metrics: Metrics) -> Sweep | None:
  """Return the settings of a sweep in their order; None if there is no sweep."""
  rows = metrics.get("sweep") or []
  if not rows:
    return None
  names = list(dict.fromkeys(name for row in rows for name in row.get("figures") or {}))
  return Sweep(names, [_sweep_row(row, names) for row in rows])


def _sweep_row(row: Mapping[str, Any], names: Sequence[str]) -> SweepRow:
  figures = row.get("figures") or {}
  cells = []
  for name in names:
    error = spread(figures.get(name) or {})[0]
    value, shown = with_error((figures.get(name) or {}).get("value"), error)
    cells.append((value, None if error is None else shown))
  return SweepRow(
    overrides_text(row.get("overrides") or {}),
    count(row.get("num_evaluations")),
    count(row.get("num_samples")),
    cells,
  )


def overrides_text(overrides: Mapping[str, Any]) -> str:
  """Format overrides as on the command line: sampler.steps=10, guidance.weight=2."""
  return ", ".join(f"{key}={text(value)}" for key, value in overrides.items()) or "as trained"


def series(
  rows: Sequence[Mapping[str, Any]], figure: str, x: str, apart: Sequence[str]
) -> dict[str, list[Point]]:
  """Return the points of a figure against x, one series per setting of everything else.

  Args:
    rows: rows of the sweep.
    figure: name of the figure.
    x: "num_evaluations", or the name of an override.
    apart: overrides that do not separate series, because x depends on them.

  Returns:
    Series by the overrides that differ between them (empty text for a single series); the points
    are in the order of x.
  """
  varying = _varying(rows, apart)
  curves: dict[str, list[Point]] = {}
  for row in rows:
    if (point := _point(row, figure, x)) is not None:
      overrides = row.get("overrides") or {}
      name = ", ".join(f"{_short(k)} {text(overrides.get(k))}" for k in varying)
      curves.setdefault(name, []).append(point)
  return {name: sorted(points) for name, points in curves.items()}


def _point(row: Mapping[str, Any], figure: str, x: str) -> Point | None:
  entry = (row.get("figures") or {}).get(figure) or {}
  x_value = drawable(row.get(x) if x in row else (row.get("overrides") or {}).get(x))
  value = drawable(entry.get("value"))
  if x_value is None or value is None:
    return None
  return Point(x_value, value, drawable_error(spread(entry)[0]))


def _varying(rows: Sequence[Mapping[str, Any]], apart: Sequence[str]) -> list[str]:
  """Return the overrides with more than one value, in their order."""
  all_overrides = [row.get("overrides") or {} for row in rows]
  keys = dict.fromkeys(key for overrides in all_overrides for key in overrides)
  values = {key: {text(o.get(key)) for o in all_overrides} for key in keys}
  return [key for key in keys if key not in apart and len(values[key]) > 1]


def _short(key: str) -> str:
  """Return the short name of an override, for a legend."""
  return {"sampler.name": "sampler", GUIDANCE: "guidance"}.get(key, key)


def figure_names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
  """Return the names of the figures of a sweep."""
  return list(dict.fromkeys(name for row in rows for name in row.get("figures") or {}))


def num_values(rows: Sequence[Mapping[str, Any]], key: str) -> int:
  """Return the number of values of an override."""
  return len({text(v) for row in rows if (v := (row.get("overrides") or {}).get(key)) is not None})
