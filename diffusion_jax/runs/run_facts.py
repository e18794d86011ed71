"""Read the facts about a run from its folder, damaged or not; nothing here imports JAX."""

import dataclasses
import fcntl
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from diffusion_jax.core.printing import printable

MAX_DEPTH = 3
"""Number of levels of folders that are searched for runs."""

UNDECIDED = ("logging", "distributed")
"""Sections that say nothing about a run's results."""


@dataclasses.dataclass(frozen=True)
class Figure:
  """A measured value with its standard error or deviation; None: it has none.

  Attributes:
    card: place among the report's cards, 0: none.
  """

  value: float
  error: float | None = None
  card: int = 0


@dataclasses.dataclass(frozen=True)
class RunFacts:
  """Facts about one run.

  Attributes:
    name: folder, relative to the folder that was searched.
    state: running, finished, stopped, damaged, or foreign for a folder without a run.
    problem: what is wrong with a damaged or foreign folder; empty for others.
    kind: the generative model and the data set.
    step, num_steps: last step that left a trace, and length of the run.
    loss: loss on the held-out split when it was last measured.
    eval_step: newest evaluated step.
    figures: its figures and likelihoods.
    config: "section.field" -> value.
  """

  name: str
  state: str
  problem: str = ""
  kind: str = ""
  step: int | None = None
  num_steps: int | None = None
  loss: Figure | None = None
  eval_step: int | None = None
  figures: Mapping[str, Figure] = dataclasses.field(default_factory=dict)
  config: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def find_runs(root: Path) -> list[RunFacts]:
  """Return the facts about each run in a folder, sorted by name.

  A folder directly below `root` in which there is no run has its own entry, state "foreign". A
  folder that cannot be read raises no error.

  Args:
    root: a folder with runs, or a run.

  Raises:
    OSError: the folder itself cannot be listed.
  """
  if _looks_like_run(root):
    return [read_run(root, root.name)]
  found = []
  for folder in _children(root):
    runs = list(_runs_below(folder, MAX_DEPTH))
    names = [str(run.relative_to(root)) for run in runs]
    found += [read_run(run, name) for run, name in zip(runs, names, strict=True)]
    if not runs:
      found.append(RunFacts(printable(folder.name), "foreign", "it has no config.json of a run"))
  return found


def _children(folder: Path) -> list[Path]:
  return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _looks_like_run(folder: Path) -> bool:
  return any((folder / name).exists() for name in ("config.json", "checkpoints"))


def _runs_below(folder: Path, depth: int) -> Iterator[Path]:
  """Yield the folder if it looks like a run, otherwise the runs below it."""
  try:
    if _looks_like_run(folder):
      yield folder
    elif depth > 1:
      for child in _children(folder):
        yield from _runs_below(child, depth - 1)
  except OSError:
    return  # a folder of somebody else


def read_run(folder: Path, name: str) -> RunFacts:
  """Return the facts about the run in a folder."""
  name = printable(name)
  try:
    return _read_run(folder, name)
  except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
    reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0][:100]}"
    return RunFacts(name, "damaged", printable(reason))


def _read_run(folder: Path, name: str) -> RunFacts:
  config = _json(folder / "config.json")
  if config is None:
    why = "is missing" if not (folder / "config.json").exists() else "is damaged (no JSON)"
    return RunFacts(name, "damaged", f"config.json {why}")
  fields = flat(config) if isinstance(config, dict) else {}
  if not isinstance(fields.get("generative.name"), str):
    return RunFacts(name, "foreign", "its config.json is not that of a run")
  num_steps = _whole(fields.get("training.num_steps"))
  final, rows = _json(folder / "held_out.json"), metric_rows(folder / "metrics.jsonl")
  steps = [_saved_step(folder), *(_whole(row.get("step")) for row in rows[-1:])]
  step = max((s for s in steps if s is not None), default=0)
  is_finished = isinstance(final, dict) and num_steps is not None and step >= num_steps
  state = "finished" if is_finished else "running" if is_locked(folder / ".lock") else "stopped"
  data = fields.get("data.dataset") or fields.get("data.path") or fields.get("data.name")
  eval_step, figures = _newest_evaluation(folder / "eval")
  return RunFacts(
    name, state, "", f"{fields.get('generative.name')} on {printable(Path(str(data)).name)}",
    step, num_steps, _loss(final, rows), eval_step, figures, fields,
  )  # fmt: skip


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
  """Return "section.field" -> value."""
  sections = {name: value for name, value in config.items() if isinstance(value, Mapping)}
  return {
    f"{name}.{field}": v for name, section in sections.items() for field, v in section.items()
  }


def _json(path: Path) -> Any:
  """Return the content of a JSON file; None if there is none."""
  try:
    return json.loads(path.read_text())
  except (OSError, ValueError, RecursionError):
    return None


def metric_rows(path: Path) -> list[dict[str, Any]]:
  """Return the readable rows of metrics.jsonl."""
  rows = []
  try:
    lines = path.read_text(errors="replace").splitlines()
  except OSError:
    return []
  for line in lines:
    try:
      row = json.loads(line)
    except ValueError:
      continue  # cut short by a kill
    if isinstance(row, dict):
      rows.append(row)
  return rows


def _whole(value: Any) -> int | None:
  return int(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _number(value: Any) -> float | None:
  return float(value) if _whole(value) is not None and not isinstance(value, bool) else None


def _saved_step(folder: Path) -> int | None:
  """Return the newest checkpoint's step."""
  checkpoints = folder / "checkpoints"
  names = [p.name for p in checkpoints.iterdir()] if checkpoints.is_dir() else []
  return max((int(name) for name in names if re.fullmatch("[0-9]+", name)), default=None)


def is_locked(path: Path) -> bool:
  """Return whether a process holds a run's lock."""
  try:
    with path.open("rb") as file:
      fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
  except BlockingIOError:
    return True
  except OSError:
    return False
  return False


def _loss(final: Any, rows: list[dict[str, Any]]) -> Figure | None:
  """Return the newest held-out loss, of the end or of a row."""
  is_mapping = isinstance(final, Mapping)
  named = {f"held_out/{name}": value for name, value in final.items()} if is_mapping else {}
  for row in (named, *reversed(rows)):
    if (value := _number(row.get("held_out/loss"))) is not None:
      return Figure(value, _number(row.get("held_out/loss_standard_error")))
  return None


def _newest_evaluation(folder: Path) -> tuple[int | None, dict[str, Figure]]:
  """Return the newest evaluated step, and its figures; None and {} without any."""
  files = [p for p in folder.glob("*/metrics.json") if re.fullmatch("[0-9]+", p.parent.name)]
  for file in sorted(files, key=lambda p: -int(p.parent.name)):
    metrics = _json(file)
    if isinstance(metrics, dict):
      return int(file.parent.name), evaluated_figures(metrics)
  return None, {}


def evaluated_figures(metrics: Mapping[str, Any]) -> dict[str, Figure]:
  """Return the figures of a metrics.json, and its likelihoods as NAME/bits_per_dim."""
  found = {}
  for group, key in (("figures", "value"), ("likelihoods", "bits_per_dim")):
    for name, entry in _entries(metrics, group):
      value, deviation = _number(entry.get(key)), _number(entry.get("standard_deviation"))
      error = _number(entry.get("standard_error")) if deviation is None else deviation
      if value is not None:
        title = name if group == "figures" else f"{name}/bits_per_dim"
        found[printable(title)] = Figure(value, error, _whole(entry.get("card")) or 0)
  return found


def _entries(metrics: Mapping[str, Any], group: str) -> list[tuple[str, Mapping[str, Any]]]:
  entries = metrics.get(group)
  listed = entries.items() if isinstance(entries, Mapping) else ()
  return [(name, entry) for name, entry in listed if isinstance(entry, Mapping)]
