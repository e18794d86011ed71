"""Render the page from its sections, and replace the file in one move."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from diffusion_jax.core.files import write_whole
from diffusion_jax.report import comparison, plots, sweep, sweep_plots, views
from diffusion_jax.report.inline_images import HERO_WIDTH, Picture, show, show_all, show_others
from diffusion_jax.report.views import Metrics

HERE = Path(__file__).parent

SECTIONS = {
  "figures": "Figures",
  "samples": "Classes and progression",
  "quality": "Quality against cost",
  "limit": "Limit of many samples",
  "likelihood": "Likelihood",
  "spectrum": "Noise levels",
  "memorization": "Memorisation",
  "reconstructions": "Reconstructions",
  "others": "Further pictures",
  "comparison": "Comparison",
  "training": "Training",
  "protocol": "Protocol",
  "run": "Run",
}
"""Section -> heading, in the order of the page."""

NOT_ALIKE = "† The runs were measured differently: see the differences of protocol."


class Section(NamedTuple):
  """A part of the page: its id, its heading and the data of its block in the template."""

  id: str
  heading: str
  content: Mapping[str, Any]


def write_report(
  path: Path,
  metrics: Mapping[str, Any],
  pictures: Mapping[str, Picture],
  training: Sequence[Mapping[str, Any]] = (),
  compared: Sequence[Mapping[str, Any]] = (),
) -> None:
  """Write the report as one HTML file that loads nothing.

  The old file stays until the new one is complete. The same input gives the same bytes. A part
  without data has no section.

  Args:
    path: path of the file; missing folders are created.
    metrics: content of metrics.json, schema 1.
    pictures: pictures by name. "samples", "classes", "progression", "reconstructions" and "nearest"
      have places of their own; the others appear under further pictures.
    training: rows of metrics.jsonl.
    compared: metrics.json of other runs.
  """
  page = render(metrics, pictures, training, compared)
  path.parent.mkdir(parents=True, exist_ok=True)
  write_whole(path, page)


def render(
  metrics: Metrics,
  pictures: Mapping[str, Picture],
  training: Sequence[Mapping[str, Any]] = (),
  compared: Sequence[Metrics] = (),
) -> str:
  """Render the page as text; the arguments are those of `write_report`."""
  hero = show("samples", pictures["samples"], HERO_WIDTH) if "samples" in pictures else None
  script = (HERE / "copy.js").read_text(encoding="utf-8")
  environment = Environment(
    loader=FileSystemLoader(HERE),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  return (
    environment.get_template("template.html")
    .render(
      title=views.title(metrics),
      full_name=views.run_name(metrics),
      subtitle=views.subtitle(metrics),
      strip=views.strip(metrics),
      repeat=metrics.get("repeat"),
      missing=list(metrics.get("missing") or []),
      cards=views.cards(views.figure_rows(metrics), views.likelihood_rows(metrics)),
      hero=hero,
      sections=sections(metrics, pictures, training, compared),
      style=Markup((HERE / "style.css").read_text(encoding="utf-8")),
      script=Markup(script),
      policy=policy(script),
    )
    .lstrip()
  )


def policy(script: str) -> str:
  """Return the content security policy: the page loads nothing and runs only this script."""
  digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
  rules = {
    "default-src": "'none'",
    "img-src": "data:",
    "style-src": "'unsafe-inline'",
    "script-src": f"'sha256-{digest}'",
    "base-uri": "'none'",
    "form-action": "'none'",
  }
  return "; ".join(f"{name} {value}" for name, value in rules.items())


def sections(
  metrics: Metrics,
  shown: Mapping[str, Picture],
  training: Sequence[Mapping[str, Any]],
  compared: Sequence[Metrics],
) -> list[Section]:
  """List the sections that have data, in the page's order."""
  contents = {
    **_measured(metrics, shown),
    "samples": {"pictures": show_all(shown, "classes", "progression")},
    "reconstructions": {"pictures": show_all(shown, "reconstructions")},
    "others": {"pictures": show_others(shown)},
    "comparison": _comparison(metrics, compared),
    "training": {"plots": plots.training(training)},
    "protocol": {"blocks": views.protocol(metrics), "config": views.config_blocks(metrics)},
    "run": {"run": views.describe_run(metrics)},
  }
  return [
    Section(name, heading, contents[name])
    for name, heading in SECTIONS.items()
    if any(contents[name].values())
  ]


def _measured(metrics: Metrics, shown: Mapping[str, Picture]) -> dict[str, dict[str, Any]]:
  """Return the sections of the measurements."""
  baseline = [
    (name.replace("_", " "), views.number(value))
    for name, value in (metrics.get("baseline") or {}).items()
  ]
  rows, likelihoods = views.figure_rows(metrics), views.likelihood_rows(metrics)
  return {
    "figures": {
      "rows": rows,
      "shared_protocol": views.shared_protocol(rows),
      "has_anchors": any(row.anchor for row in rows),
    },
    "quality": {"plots": sweep_plots.quality(metrics), "table": sweep.sweep_table(metrics)},
    "limit": {"plots": sweep_plots.infinity(metrics)},
    "likelihood": {
      "rows": likelihoods,
      "baseline": baseline if likelihoods else [],
      "bits": plots.bits(metrics),
      "plots": plots.timesteps(metrics),
    },
    "spectrum": {"plots": plots.spectrum(metrics)},
    "memorization": {
      "rows": views.memorization_rows(metrics),
      "verdict": (metrics.get("memorization") or {}).get("verdict"),
      "pictures": show_all(shown, "nearest"),
    },
  }


def _comparison(metrics: Metrics, compared: Sequence[Metrics]) -> dict[str, Any]:
  table = comparison.compare_runs(metrics, compared)
  if table is None:
    return {"table": None, "plots": []}
  plot = sweep_plots.common(dict(zip(table.runs, [metrics, *compared], strict=True)))
  if plot and any(d.mark == "†" for d in table.differences):
    plot = plot._replace(note=f"{plot.note} {NOT_ALIKE}".strip())
  return {"table": table, "plots": [plot] if plot else []}
