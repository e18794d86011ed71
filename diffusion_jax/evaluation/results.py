"""Find outcomes on disk, and protect them from replacement by other settings."""

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from diffusion_jax import parallel, report
from diffusion_jax.checkpoints import store
from diffusion_jax.core import files
from diffusion_jax.evaluation import metrics_json
from diffusion_jax.evaluation.context import EvaluationContext, Request
from diffusion_jax.evaluation.measure import CheckpointUnderTest, Summary
from diffusion_jax.evaluation.metrics_json import SCHEMA
from diffusion_jax.inference.restore import Average
from diffusion_jax.metrics import PACKAGED
from diffusion_jax.runs.experiment import build_experiment, differences, of_today
from diffusion_jax.types import UserError

UNMEASURED = {"logging", "checkpoint", "mesh", "distributed", "training", "optimizer", "ema"}
"""Sections that do not affect any figure of given weights."""

HOW_IT_RUNS = {
  "data": {"path", "data_dir", "max_ram_gib"},
  "eval": {
    "every_steps",
    "training_likelihoods",
    "batch_size",
    "num_samples",
    "likelihoods",
    "metrics",
  },
  "model": {"remat"},
}
"""Fields without effect on figures, or compared by their results in `compare_metrics`."""


class Difference(NamedTuple):
  """Difference between an evaluation and an outcome on disk.

  Attributes:
    lost: parts of the outcome that would be replaced or lost, one phrase each.
    added: true if more is requested than the outcome has.
  """

  lost: list[str]
  added: bool


def read_metrics(path: Path) -> Summary | None:
  """Return the object in a metrics.json of any version; None if there is nothing to lose."""
  try:
    found = json.loads(path.read_text())
  except (OSError, ValueError):
    return None
  return found if isinstance(found, dict) and "schema" in found else None


def compare_metrics(
  found: Summary, bench: EvaluationContext, subject: CheckpointUnderTest | None = None
) -> Difference:
  """Compare a metrics.json with the current request.

  Args:
    found: content of a metrics.json, from `read_metrics`.
    bench: the evaluation; without instruments, references are not compared.
    subject: the checkpoint; None: its weights are not compared.
  """
  if found["schema"] != SCHEMA:
    return Difference([f"schema: {found['schema']} -> {SCHEMA}"], True)
  try:
    return _compare(found, bench, subject)
  except (KeyError, TypeError, AttributeError, IndexError) as error:
    return Difference([f"its metrics.json lacks {error}"], True)


def _compare(
  found: Summary, bench: EvaluationContext, subject: CheckpointUnderTest | None
) -> Difference:
  lost = _fields(found["model"]["config"], metrics_json.json_values(bench.experiment.to_dict()))
  samples = found["samples"]
  lost += _other("seed", samples["seeds"][0], bench.seed)
  lost += _other("eval.num_samples", samples["num"], bench.num_samples)
  if subject is not None:
    lost += _other("weights", found["model"]["weights_digest"], subject.weights)
  measured = {
    "eval.likelihoods": (list(found.get("likelihoods", {})), list(bench.estimates)),
    "sweep": (
      [_point(row["overrides"]) for row in found.get("sweep", [])],
      [_point(setting.overrides) for setting in bench.sweep],
    ),
  }
  if found.get("references"):
    measured["eval.metrics"] = (_metrics_of(found), [metric.name for metric in bench.metrics])
  if bench.is_equipped:
    stamps = {
      i.extractor.name: metrics_json.json_values(i.reference.stamp) for i in bench.instruments
    }
    lost += _stamps(found["references"], stamps)
    measured["references"] = (list(found["references"]), list(stamps))
  for name, (old, new) in measured.items():
    if gone := [n for n in old if n not in new]:
      lost.append(f"{name}: {', '.join(gone)} -> {', '.join(new) or 'none'}")
  added = any(n not in old for old, new in measured.values() for n in new)
  return Difference(lost, added or (bench.errors is not None and "spectrum" not in found))


def _metrics_of(found: Summary) -> Sequence[str]:
  """Return the names of the requested metrics; older versions had only the package's own."""
  return found.get("metrics", PACKAGED)


def _fields(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
  """Return the config fields that affect figures, as "section.field: old -> new"."""
  with contextlib.suppress(UserError):  # an older version lacks newer fields
    old = build_experiment(of_today(old)).to_dict()
  old = json.loads(json.dumps(old))
  if not old["eval"].get("spectrum_images"):  # no measured spectrum would be replaced
    old["eval"]["spectrum_images"] = new["eval"]["spectrum_images"]
  fatal, harmless = differences(_deciding(old), _deciding(new))
  return fatal + harmless


def _deciding(config: Mapping[str, Any]) -> dict[str, Any]:
  return {
    name: {k: v for k, v in fields.items() if k not in HOW_IT_RUNS.get(name, ())}
    for name, fields in config.items()
    if name not in UNMEASURED
  }


def _other(name: str, old: Any, new: Any) -> list[str]:
  return [] if old == new else [f"{name}: {old} -> {new}"]


def _point(overrides: Mapping[str, str]) -> str:
  return " ".join(f"{name}={value}" for name, value in overrides.items())


def _stamps(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
  """Return the references that share a name but differ."""
  lost = []
  for name in (n for n in old if n in new and old[n] != new[n]):
    keys = [k for k in {**old[name], **new[name]} if old[name].get(k) != new[name].get(k)]
    lost.append(f"another reference for {name} ({', '.join(keys)})")
  return lost


def is_done(bench: EvaluationContext, subject: CheckpointUnderTest) -> bool:
  """Return whether the folder has the outcome of exactly this work."""
  found = read_metrics(subject.folder / "metrics.json")
  if found is None or not (subject.folder / "report.html").is_file():
    return False
  return compare_metrics(found, bench, subject) == Difference([], False)


def keep(
  folders: Sequence[Path],
  bench: EvaluationContext,
  fresh: bool,
  subject: CheckpointUnderTest | None = None,
) -> None:
  """Raise an error before outcomes of other settings are replaced; `fresh` moves them away.

  An outcome of the same settings, or with less than is measured now, may be replaced.

  Args:
    folders: folders of the steps.
    bench, subject: as in `compare_metrics`.
    fresh: true to move outcomes away instead of raising.

  Raises:
    UserError: an outcome differs; the message has the first folder and the differences.
  """
  for folder in folders:
    found = read_metrics(folder / "metrics.json")
    lost = [] if found is None else compare_metrics(found, bench, subject).lost
    if lost and not fresh:
      raise UserError(
        f"{folder} holds an evaluation with other settings ({'; '.join(lost)}); give --out=FOLDER "
        "for this one, or --fresh to move that one aside"
      )
    if lost and subject is not None:
      print(f"moved the evaluation with other settings to {_move_aside(folder)}", flush=True)


def _move_aside(folder: Path) -> Path:
  """Move the files of an outcome, metrics.json first; its samples stay for reuse."""
  aside = files.free_name(folder)
  aside.mkdir()
  for file in sorted(folder.iterdir(), key=lambda p: (p.name != "metrics.json", p.name)):
    if file.is_file():
      file.rename(aside / file.name)
  return aside


def check_steps(bench: EvaluationContext, step: str, average: Average, fresh: bool) -> None:
  """Raise the errors of `keep` for the requested steps, before anything is computed.

  Args:
    bench: the evaluation.
    step: latest, all, or a number.
    average: average of the weights.
    fresh: true if other outcomes will be moved away in their turn.

  Raises:
    UserError: there is no such checkpoint, or there is an outcome of other settings.
  """

  def check() -> None:
    saved = store.saved_steps(bench.checkpoints)
    asked = {"all": saved, "latest": saved[-1:]}.get(step) or [int(step)]
    keep([bench.folder / f"{number}{average.suffix}" for number in asked], bench, fresh)

  parallel.on_process_0(check)


def prepare_folder(request: Request) -> None:
  """Create the folder of the outcomes.

  Raises:
    UserError: it cannot be written, or the processes do not share it.
  """
  folder = request.folder
  what, advice = (
    (f"--out={folder}", "choose another")
    if request.out
    else (f"{folder}", "give --out=FOLDER for the evaluation")
  )
  parallel.on_process_0(lambda: files.make_writable(folder, what, advice))
  parallel.check_shared(folder)


def find_compared(given: Sequence[Path]) -> list[Summary]:
  """Return the metrics of other runs: a metrics.json, or a run's newest evaluated step.

  A report page of each is rendered here, so that none fails after the measurement.

  Raises:
    UserError: a path has no metrics, or damaged ones.
  """
  return [_find_compared(path) for path in given]


def _find_compared(path: Path) -> Summary:
  where = f"--compare={path}"
  place = path if path.suffix == ".json" else _newest(path)
  if place is None or not place.is_file():
    raise UserError(
      f"{where}: no metrics.json there; run python -m diffusion_jax.evaluate --workdir={path} first"
    )
  try:
    found = json.loads(place.read_text())
    if found["schema"] != SCHEMA:
      raise ValueError(f"schema {found['schema']}, this version reads {SCHEMA}")
    report.render(found, {}, (), [found])
  except Exception as error:
    raise UserError(
      f"{where}: {place} is no metrics.json that can be compared ({type(error).__name__}: "
      f"{str(error).partition(chr(10))[0][:200]}); evaluate that run again, or leave it out"
    ) from error
  return found


def _newest(folder: Path) -> Path | None:
  """Return the newest step's metrics.json of a run, of a folder of --out, or of one step."""
  for root in (folder / "eval", folder):
    places = [p for p in root.glob("*/metrics.json") if p.parent.name.isdigit()]
    if places:
      return max(places, key=lambda p: int(p.parent.name))
  own = folder / "metrics.json"
  return own if own.is_file() else None
