"""Compare several runs side by side, with every difference between their protocols."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from diffusion_jax.report.formatting import (
  DASH,
  Number,
  facts,
  finite,
  label,
  shortened,
  text,
  with_error,
)
from diffusion_jax.report.inline_images import Picture
from diffusion_jax.report.views import Metrics, run_name, spread

MEASUREMENT = (
  "num_samples",
  "num_reference",
  "reference",
  "extractor",
  "protocol",
  "quantisation",
  "split",
  "num_images",
  "num_levels",
  "conditional",
  "options",
  "data",
)
"""Parts of the protocol that must be equal for two figures to be ranked."""


class Cell(NamedTuple):
  """A figure of one run; `mark` is † if its protocol differs from the first run's."""

  value: Number
  error: Number | None
  mark: str
  best: bool


class Row(NamedTuple):
  """A figure of every run."""

  key: str
  unit: str
  better: str
  cells: list[Cell]


class Difference(NamedTuple):
  """A difference between the protocols of the first run and another.

  Attributes:
    run: name of the other run.
    what: part of the protocol.
    here, there: its values in the first run and in the other one.
    figures: names of the affected figures.
    mark: † if it forbids ranking, ‡ if it is part of the comparison itself.
  """

  run: str
  what: str
  here: str
  there: str
  figures: str
  mark: str


class Comparison(NamedTuple):
  """The table, with the runs from left to right and the report's own run first."""

  runs: list[str]
  rows: list[Row]
  differences: list[Difference]


class OtherRun(NamedTuple):
  """A run that is compared.

  Attributes:
    metrics: its metrics.json.
    samples: its samples; None: they are not shown.
    training: rows of its metrics.jsonl.
  """

  metrics: Metrics
  samples: Picture | None = None
  training: Sequence[Mapping[str, Any]] = ()


class ConfigRow(NamedTuple):
  """A config field that differs: "optimizer.learning_rate" and its value in each run."""

  field: str
  values: list[str]


def config_differences(runs: Sequence[Metrics]) -> list[ConfigRow]:
  """Return the config fields that are not equal in all runs, in the order of the config."""
  configs = [_config_fields(run) for run in runs]
  fields = dict.fromkeys(field for config in configs for field in config)
  rows = [ConfigRow(field, [c.get(field, DASH) for c in configs]) for field in fields]
  return [row for row in rows if len(set(row.values)) > 1]


def _config_fields(run: Metrics) -> dict[str, str]:
  config = (run.get("model") or {}).get("config") or {}
  return {
    f"{section}.{field}" if field else str(section): _words(value)
    for section, fields in config.items()
    for field, value in (fields.items() if isinstance(fields, Mapping) else [("", fields)])
  }


def compare_runs(metrics: Metrics, others: Sequence[Metrics]) -> Comparison | None:
  """Compare the runs' figures and protocols; return None if there are no other runs."""
  if not others:
    return None
  runs = [metrics, *others]
  rows = [
    _row(group, key, runs)
    for group in ("figures", "likelihoods")
    for key in dict.fromkeys(key for run in runs for key in run.get(group) or {})
  ]
  differences = [d for other in others for d in _differences(metrics, other)]
  return Comparison(distinct([run_name(r) for r in runs]), rows, differences)


def distinct(names: Sequence[str]) -> list[str]:
  """Make the names distinct by a number after each repeated one."""
  return [
    f"{name} ({names[: i + 1].count(name)})" if names.count(name) > 1 else name
    for i, name in enumerate(names)
  ]


def _entry(group: str, key: str, run: Metrics) -> Mapping[str, Any]:
  return (run.get(group) or {}).get(key) or {}


def _row(group: str, key: str, runs: Sequence[Metrics]) -> Row:
  entries = [_entry(group, key, run) for run in runs]
  of_samples = group == "figures"
  better = next((e["better"] for e in entries if e.get("better")), "")
  better = better if of_samples else "lower"
  protocols = [_protocol(group, key, run) for run in runs]
  first = next((p for p, e in zip(protocols, entries, strict=True) if e), {})
  alike = [_same(first, p) for p in protocols]
  values = [finite(e.get("value" if of_samples else "bits_per_dim")) for e in entries]
  best = _best([v if same else None for v, same in zip(values, alike, strict=True)], better)
  cells = [
    _cell(e, v, bool(e) and not same, v is not None and same and v == best)
    for e, v, same in zip(entries, values, alike, strict=True)
  ]
  return Row(key, "" if of_samples else "bits/dim", better, cells)


def _cell(entry: Mapping[str, Any], value: float | None, differs: bool, best: bool) -> Cell:
  error = spread(entry)[0]
  shown, shown_error = with_error(value, error)
  return Cell(shown, None if error is None else shown_error, "†" if differs else "", best)


def _best(values: Sequence[float | None], better: str) -> float | None:
  """Return the best of the comparable values, or None unless at least two of them differ."""
  known = [v for v in values if v is not None]
  if len(set(known)) < 2 or not better:
    return None
  return min(known) if better == "lower" else max(known)


def _same(a: Mapping[str, str], b: Mapping[str, str]) -> bool:
  return all(a.get(key) == b.get(key) for key in MEASUREMENT)


def same_protocol(group: str, key: str, here: Metrics, there: Metrics) -> bool:
  """Return whether a figure was measured alike in two runs, so that it may be ranked."""
  return _same(_protocol(group, key, here), _protocol(group, key, there))


def _protocol(group: str, key: str, run: Metrics) -> dict[str, str]:
  """Return the protocol of a figure, each part as text; empty if the run lacks the figure."""
  entry = _entry(group, key, run)
  if not entry:
    return {}
  if group == "likelihoods":
    names = ("split", "num_images", "num_levels", "conditional", "options")
    data = (run.get("model") or {}).get("data")
    return {**{name: _words(entry.get(name)) for name in names}, "data": _data(data)}
  names = ("num_samples", "num_reference", "protocol")
  return {
    **{name: text(entry.get(name), name) for name in names},
    "reference": _reference(run, entry),
    "extractor": _extractor(run, entry.get("extractor")),
    "quantisation": text((run.get("samples") or {}).get("quantisation")),
  }


def _words(value: Any) -> str:
  if isinstance(value, Mapping):
    return ", ".join(f"{f.name} {f.text}" for f in facts(value)) or DASH
  return text(value, "num")


def _data(stamp: Mapping[str, Any] | None) -> str:
  stamp = stamp or {}
  return " ".join(text(stamp[k]) for k in ("name", "fingerprint") if stamp.get(k)) or DASH


def _reference(run: Metrics, entry: Mapping[str, Any]) -> str:
  """Return data, split and content of a figure's reference; its name if it has no stamp."""
  name, extractor = entry.get("reference"), entry.get("extractor")
  references = run.get("references") or {}
  keys = f"{extractor}_{name}", name, extractor
  stamp = next((references[key] for key in keys if references.get(key)), {})
  keys = ("data", "split", "fingerprint", "sha256", "augmentation", "quantisation")
  return ", ".join(text(stamp[k]) for k in keys if stamp.get(k)) or text(name)


def _extractor(run: Metrics, name: str | None) -> str:
  stamp = (run.get("extractors") or {}).get(name) or {}
  keys = ("sha256", "resize", "input")
  return ", ".join([text(name), *(text(stamp[k]) for k in keys if stamp.get(k))])


def _sampling(run: Metrics) -> dict[str, str]:
  """Return the settings with which the images were drawn, each part as text."""
  samples, model = run.get("samples") or {}, run.get("model") or {}
  names = ("sampler", "auto_spacing", "guidance", "num_evaluations", "labels", "seeds")
  return {
    **{name: _words(samples.get(name)) for name in names},
    "weights": text(model.get("weights")),
    "ema": _words(model.get("ema")),
  }


def _differences(here: Metrics, there: Metrics) -> list[Difference]:
  name = run_name(there)
  keys_by_change: dict[tuple[str, str, str], list[str]] = {}
  for group in ("figures", "likelihoods"):
    for key in _entry_keys(group, here, there):
      a, b = _protocol(group, key, here), _protocol(group, key, there)
      for what in a:
        if a[what] != b[what]:
          keys_by_change.setdefault((what, a[what], b[what]), []).append(key)
  num_figures = len(_entry_keys("figures", here, there))
  measured = [
    _difference(name, *k, "all figures" if len(v) == num_figures > 1 else ", ".join(v), "†")
    for k, v in keys_by_change.items()
  ]
  a, b = _sampling(here), _sampling(there)
  drawn = [_difference(name, k, a[k], b[k], "all samples", "‡") for k in a if a[k] != b[k]]
  return measured + drawn


def _difference(run: str, what: str, here: str, there: str, figures: str, mark: str) -> Difference:
  """Make a difference with short hashes, unless the difference is not visible in them."""
  if shortened(here) != shortened(there):
    here, there = shortened(here), shortened(there)
  return Difference(run, label(what), here, there, figures, mark)


def _entry_keys(group: str, here: Metrics, there: Metrics) -> list[str]:
  return [key for key in here.get(group) or {} if _entry(group, key, there)]
