"""Render the page from its sections, and replace the file in one move."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from diffusion_jax.core.files import write_whole
from diffusion_jax.report import comparison, course, plots, sweep, sweep_plots, views
from diffusion_jax.report.comparison import OtherRun
from diffusion_jax.report.inline_images import (
  Picture,
  Shown,
  show,
  show_all,
  show_hero,
  show_others,
  shows_part,
)
from diffusion_jax.report.links import Link, missing_reasons, missing_sentence, shown_links
from diffusion_jax.report.views import Metrics

HERE = Path(__file__).parent

SECTIONS = {
  "figures": "Figures",
  "samples": "Samples",
  "course": "Quality over training",
  "quality": "Quality against cost",
  "limit": "Limit of many samples",
  "likelihood": "Likelihood",
  "spectrum": "Noise levels",
  "memorization": "Memorisation",
  "reconstructions": "Reconstructions",
  "others": "Further pictures",
  "comparison": "Comparison",
  "training": "Training",
  "missing": "Not measured",
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


class Beside(NamedTuple):
  """Parts of a report from outside its evaluation.

  Attributes:
    training: rows of metrics.jsonl.
    compared: other runs.
    other_steps: metrics.json of the run's other steps.
    links: files and folders beside the report.
  """

  training: Sequence[Mapping[str, Any]] = ()
  compared: Sequence[OtherRun] = ()
  other_steps: Sequence[Metrics] = ()
  links: Sequence[Link] = ()


ALONE = Beside()
"""A report of one evaluation without anything besides."""


def write_report(
  path: Path, metrics: Metrics, pictures: Mapping[str, Picture], beside: Beside = ALONE
) -> None:
  """Write the report as one HTML file that loads nothing.

  The old file stays until the new one is complete. The same input gives the same bytes. A part
  without data has no section.

  Args:
    path: path of the file; missing folders are created.
    metrics: content of metrics.json, schema 1.
    pictures: pictures by name. "samples", "classes", "real", "progression", "reconstructions" and
      "nearest" have places of their own; the others appear under further pictures.
    beside: training, other runs and steps, and links.
  """
  page = render(metrics, pictures, beside)
  path.parent.mkdir(parents=True, exist_ok=True)
  write_whole(path, page)


def render(metrics: Metrics, pictures: Mapping[str, Picture], beside: Beside = ALONE) -> str:
  """Render the page as text; the arguments are those of `write_report`."""
  hero = show_hero(pictures["samples"]) if "samples" in pictures else None
  cards = views.cards(views.figure_rows(metrics), views.likelihood_rows(metrics))
  eyebrow = f"Evaluation of {views.run_name(metrics)}"
  return _page(eyebrow, metrics, sections(metrics, pictures, beside), beside.links, cards, hero)


def write_course(
  path: Path, steps: Sequence[Metrics], pictures: Mapping[str, Picture], links: Sequence[Link]
) -> None:
  """Write the page of all evaluated steps: figures over training, and samples of each.

  Args:
    path: path of the file.
    steps: metrics.json of at least two steps; the last one is compared with the others.
    pictures: pictures by their titles.
    links: report of each step, in their order.
  """
  numbers = [course.step_of(metrics) for metrics in steps]
  addresses = {n: x.href for n, x in zip(numbers, links, strict=True) if n is not None}
  content = course.course_of(steps[-1], steps[:-1], addresses)
  shown = [Section("course", SECTIONS["course"], {"course": content})] if content else []
  if pictures:
    grids = [show(name, picture) for name, picture in pictures.items()]
    shown.append(Section("samples", SECTIONS["samples"], {"pictures": grids}))
  eyebrow = f"{len(steps)} evaluated steps, the newest of {views.run_name(steps[-1])}"
  newest = {**steps[-1], "repeat": None, "missing": []}
  write_whole(path, _page(eyebrow, newest, shown, (), [], None))


def _page(
  eyebrow: str,
  metrics: Metrics,
  shown: Sequence[Section],
  links: Sequence[Link],
  cards: Sequence[views.Card],
  hero: Shown | None,
) -> str:
  """Return the page with its head and its sections."""
  script = (HERE / "page.js").read_text(encoding="utf-8")
  environment = Environment(
    loader=FileSystemLoader(HERE),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  reasons = missing_reasons(metrics)
  return (
    environment.get_template("template.html")
    .render(
      title=views.title(metrics),
      eyebrow=eyebrow,
      subtitle=views.subtitle(metrics),
      strip=views.strip(metrics),
      repeat=metrics.get("repeat"),
      missing=missing_sentence(reasons) if reasons else "",
      links=shown_links(links),
      cards=cards,
      hero=hero,
      sections=shown,
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


def sections(metrics: Metrics, shown: Mapping[str, Picture], beside: Beside) -> list[Section]:
  """List the sections that have data, in the page's order."""
  contents = {
    **_measured(metrics, shown),
    "samples": {"pictures": _samples(shown)},
    "course": {"course": course.course_of(metrics, beside.other_steps)},
    "reconstructions": {"pictures": show_all(shown, "reconstructions")},
    "others": {"pictures": show_others(shown)},
    "comparison": _comparison(metrics, shown.get("samples"), beside),
    "training": {"plots": plots.training(beside.training)},
    "missing": {"reasons": missing_reasons(metrics)},
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


def _samples(shown: Mapping[str, Picture]) -> list[Shown]:
  """Return the pictures of samples; all samples only if the head does not show them all."""
  names = ["classes", "real", "samples", "progression"]
  if "samples" in shown and not shows_part(shown["samples"]):
    names.remove("samples")
  return show_all(shown, *names)


def _comparison(metrics: Metrics, samples: Picture | None, beside: Beside) -> dict[str, Any]:
  others = beside.compared
  runs = [metrics, *(other.metrics for other in others)]
  table = comparison.compare_runs(metrics, runs[1:])
  if table is None:
    return {"table": None}
  plot = sweep_plots.common(dict(zip(table.runs, runs, strict=True)))
  if plot and any(d.mark == "†" for d in table.differences):
    plot = plot._replace(note=f"{plot.note} {NOT_ALIKE}".strip())
  pictures = [samples, *(other.samples for other in others)]
  shown = [
    show_hero(p)._replace(title=run) for run, p in zip(table.runs, pictures, strict=True) if p
  ]
  rows = [beside.training, *(other.training for other in others)]
  losses = plots.losses(dict(zip(table.runs, rows, strict=True)))
  return {
    "table": table,
    "plots": ([plot] if plot else []) + losses,
    "config": comparison.config_differences(runs),
    "samples": shown if len(shown) > 1 else [],
  }
