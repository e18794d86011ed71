"""Find outcomes on disk, and protect them from replacement by other settings."""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from diffusion_jax import parallel
from diffusion_jax.checkpoints import store
from diffusion_jax.core import files
from diffusion_jax.evaluation import metrics_json
from diffusion_jax.evaluation.context import EvaluationContext, Request
from diffusion_jax.evaluation.drawing import CheckpointUnderTest, Summary
from diffusion_jax.evaluation.foreign_statistics import reference_stamps
from diffusion_jax.evaluation.metrics_json import SCHEMA
from diffusion_jax.inference.restore import Average
from diffusion_jax.metrics import PACKAGED
from diffusion_jax.runs.changes import differences
from diffusion_jax.runs.experiment import SettingFacts, build_experiment, of_today
from diffusion_jax.runs.workdir import lock
from diffusion_jax.types import UserError


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
    content = json.loads(path.read_text())
  except (OSError, ValueError):
    return None
  return content if isinstance(content, dict) and "schema" in content else None


def compare_metrics(
  stored: Summary, context: EvaluationContext, checkpoint: CheckpointUnderTest | None = None
) -> Difference:
  """Compare a metrics.json with the current request.

  Args:
    stored: content of a metrics.json, from `read_metrics`.
    context: the evaluation; before `equip`, references are not compared.
    checkpoint: the checkpoint; None: its weights are not compared.
  """
  if stored["schema"] != SCHEMA:
    return Difference([f"schema: {stored['schema']} -> {SCHEMA}"], True)
  try:
    return _compare(stored, context, checkpoint)
  except (KeyError, TypeError, AttributeError, IndexError) as error:
    return Difference([f"its metrics.json lacks {error}"], True)


def _compare(
  stored: Summary, context: EvaluationContext, checkpoint: CheckpointUnderTest | None
) -> Difference:
  lost = _fields(stored["model"]["config"], metrics_json.json_values(context.experiment.to_dict()))
  samples = stored["samples"]
  lost += _other("seed", samples["seeds"][0], context.seed)
  lost += _other("eval.num_samples", samples["num"], context.num_samples)
  if checkpoint is not None:
    lost += _other("weights", stored["model"]["weights_digest"], checkpoint.weights)
  measured = {
    "eval.likelihoods": (list(stored.get("likelihoods", {})), list(context.estimates)),
    "sweep": (
      [_point(row["overrides"]) for row in stored.get("sweep", [])],
      [_point(setting.overrides) for setting in context.sweep],
    ),
  }
  if stored.get("references"):
    before = stored.get("metrics", PACKAGED)  # older versions had only the package's own
    measured["eval.metrics"] = (before, [metric.name for metric in context.metrics])
  if context.is_equipped:
    stamps = metrics_json.json_values(reference_stamps(context.feature_spaces))
    lost += _stamps(stored["references"], stamps)
    measured["references"] = (list(stored["references"]), list(stamps))
  for name, (old, new) in measured.items():
    if gone := [n for n in old if n not in new]:
      lost.append(f"{name}: {', '.join(gone)} -> {', '.join(new) or 'none'}")
  added = any(n not in old for old, new in measured.values() for n in new)
  return Difference(lost, added or (context.errors is not None and "spectrum" not in stored))


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
  """Return the fields that affect figures and are not compared by their results."""
  facts = SettingFacts(config)
  return {
    name: {k: v for k, v in fields.items() if facts.of_field("affects_figures", name, k)}
    for name, fields in config.items()
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


def is_done(context: EvaluationContext, checkpoint: CheckpointUnderTest) -> bool:
  """Return whether the folder has the outcome of exactly this work."""
  stored = read_metrics(checkpoint.folder / "metrics.json")
  if stored is None or not (checkpoint.folder / "report.html").is_file():
    return False
  return compare_metrics(stored, context, checkpoint) == Difference([], False)


def keep(
  folders: Sequence[Path],
  context: EvaluationContext,
  fresh: bool,
  checkpoint: CheckpointUnderTest | None = None,
) -> None:
  """Raise an error before outcomes of other settings are replaced; `fresh` moves them away.

  An outcome of the same settings, or with less than is measured now, may be replaced.

  Args:
    folders: folders of the steps.
    context, checkpoint: as in `compare_metrics`.
    fresh: true to move outcomes away instead of raising.

  Raises:
    UserError: an outcome differs; the message has the first folder and the differences.
  """
  for folder in folders:
    stored = read_metrics(folder / "metrics.json")
    lost = [] if stored is None else compare_metrics(stored, context, checkpoint).lost
    if lost and not fresh:
      raise UserError(
        f"{folder} holds an evaluation with other settings ({'; '.join(lost)}); give --out=FOLDER "
        "for this one, or --fresh to move that one aside"
      )
    if lost and checkpoint is not None:
      print(f"moved the evaluation with other settings to {_move_aside(folder)}", flush=True)


def _move_aside(folder: Path) -> Path:
  """Move the files of an outcome, metrics.json first; its samples stay for reuse."""
  aside = files.free_name(folder)
  aside.mkdir()
  for file in sorted(folder.iterdir(), key=lambda p: (p.name != "metrics.json", p.name)):
    if file.is_file():
      file.rename(aside / file.name)
  return aside


def check_steps(context: EvaluationContext, step: str, average: Average, fresh: bool) -> None:
  """Raise the errors of `keep` for the requested steps, before anything is computed.

  Args:
    context: the evaluation.
    step: latest, all, or a number.
    average: average of the weights.
    fresh: true if other outcomes will be moved away in their turn.

  Raises:
    UserError: there is no such checkpoint, or there is an outcome of other settings.
  """

  def check() -> None:
    saved = store.saved_steps(context.checkpoints)
    asked = {"all": saved, "latest": saved[-1:]}.get(step) or [int(step)]
    keep([context.folder / f"{saved_step}{average.suffix}" for saved_step in asked], context, fresh)

  parallel.on_process_0(check)


@contextlib.contextmanager
def own_folder(request: Request) -> Iterator[None]:
  """Create and lock the folder of the outcomes; if an error leaves it empty, remove it again.

  Raises:
    UserError: see `prepare_folder`, or another job has the folder.
  """
  folder = request.folder
  is_new = not folder.exists()
  prepare_folder(request)
  with lock(folder, "evaluating"):
    try:
      yield
    except BaseException:
      if is_new and jax.process_index() == 0:
        remove_if_empty(folder)
      raise


def remove_if_empty(folder: Path) -> None:
  """Remove a folder that holds nothing but its lock."""
  with contextlib.suppress(OSError):
    if {path.name for path in folder.iterdir()} <= {".lock"}:
      (folder / ".lock").unlink(missing_ok=True)
      folder.rmdir()


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
