"""Parts of a report from outside its evaluation: other runs and steps, and links to files."""

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jax
import numpy as np

from diffusion_jax import report
from diffusion_jax.core import files, npz
from diffusion_jax.core.class_names import name_of
from diffusion_jax.evaluation import metrics_json, results
from diffusion_jax.evaluation.measure import Summary
from diffusion_jax.evaluation.metrics_json import SCHEMA, training_rows
from diffusion_jax.report import Beside, Link, OtherRun, Part, Picture, Row
from diffusion_jax.types import UserError

SHOWN = 16
"""Number of samples of another run."""

SHOWN_STEPS = 12
"""Number of steps whose samples are on the page of all steps."""


def find_compared(given: Sequence[Path]) -> list[OtherRun]:
  """Return runs given by a metrics.json, or by a folder with its newest evaluated step.

  A report page of each is rendered here, so that none fails after the measurement.

  Raises:
    UserError: a path has no metrics, or damaged ones.
  """
  return [_find_compared(path) for path in given]


def _find_compared(path: Path) -> OtherRun:
  where = f"--compare={path}"
  file = path if path.suffix == ".json" else _newest(path)
  if file is None or not file.is_file():
    raise UserError(
      f"{where}: no metrics.json there; run python -m diffusion_jax.evaluate --workdir={path} first"
    )
  try:
    metrics = json.loads(file.read_text())
    if metrics["schema"] != SCHEMA:
      raise ValueError(f"schema {metrics['schema']}, this version reads {SCHEMA}")
    run = OtherRun(metrics, _samples(file.parent, metrics), _training(file.parent, metrics))
    report.render(metrics, {}, Beside(compared=[run]))
  except Exception as error:
    raise UserError(
      f"{where}: {file} is no metrics.json that can be compared ({type(error).__name__}: "
      f"{str(error).partition(chr(10))[0][:200]}); evaluate that run again, or leave it out"
    ) from error
  return run


def _newest(folder: Path) -> Path | None:
  """Return the newest step's metrics.json of a run, of a folder of --out, or of one step."""
  for root in (folder / "eval", folder):
    candidates = [p for p in root.glob("*/metrics.json") if p.parent.name.isdigit()]
    if candidates:
      return max(candidates, key=lambda p: int(p.parent.name))
  file = folder / "metrics.json"
  return file if file.is_file() else None


def _samples(folder: Path, metrics: Summary) -> Picture | None:
  """Return an evaluation's first samples, from its folder or its grid; None without both."""
  name = str((metrics.get("samples") or {}).get("folder") or "")
  try:
    chunk = npz.read_npz(folder / name / "000000.npz", name)
    images, labels = chunk["images"][:SHOWN], chunk["labels"][:SHOWN]
    names = ((metrics.get("model") or {}).get("data") or {}).get("classes") or []
    captions = [name_of(int(label), names) if label >= 0 else "" for label in labels]
    rows = [Row("", [Part("", images, captions)])]
    return Picture(images[0], f"The first {len(images)} samples.", rows)
  except (OSError, UserError, KeyError, IndexError, ValueError, TypeError):
    return _grid(folder / "samples.png", "The first samples.")


def _grid(path: Path, caption: str) -> Picture | None:
  try:
    return Picture(files.read_png(path), caption)
  except (OSError, ValueError):
    return None


def _training(folder: Path, metrics: Summary) -> list[dict[str, Any]]:
  """Return the training log of the run that a folder of an evaluation belongs to."""
  workdir = Path(str((metrics.get("model") or {}).get("workdir") or folder))
  inside = folder.parent.parent if folder.parent.name == "eval" else workdir
  return training_rows(inside) or training_rows(workdir)


def average_of(folder: Path) -> str:
  """Return the part of an evaluation's folder that names the average: "100-raw" gives "-raw"."""
  return folder.name.removeprefix(folder.name.partition("-")[0])


def other_steps(folder: Path) -> dict[Path, Summary]:
  """Return the evaluations of a run's other steps with the same average, in their order.

  A damaged metrics.json is left out.
  """
  found: dict[Path, Summary] = {}
  for place in folder.parent.glob("*/metrics.json"):
    step = place.parent.name.partition("-")[0]
    if (
      place.parent == folder or not step.isdigit() or average_of(place.parent) != average_of(folder)
    ):
      continue
    metrics = results.read_metrics(place)
    if metrics is not None and metrics["schema"] == SCHEMA and _has_course(metrics):
      found[place.parent] = metrics
  return dict(sorted(found.items(), key=lambda item: item[1]["model"]["step"]))


def _has_course(metrics: Summary) -> bool:
  """Return whether the figures have the form that the plots need."""
  try:
    report.check_course(metrics)
    return isinstance(metrics["model"]["step"], int)
  except (KeyError, TypeError, AttributeError, ValueError):
    return False


def make_links(folder: Path, workdir: Path, metrics: Summary, has_others: bool) -> list[Link]:
  """Return links to the files of an evaluation and of its run, as far as they exist.

  Args:
    folder, metrics: the evaluation.
    workdir: folder of the run.
    has_others: true if other steps of the run were evaluated.
  """
  links = [Link("metrics.json", "metrics.json")]
  samples = str((metrics.get("samples") or {}).get("folder") or "")
  if samples and (folder / samples).is_dir():
    links.append(Link("samples", quote(f"{samples}/")))
  if (workdir / "metrics.jsonl").is_file():
    links.append(Link("training log", _address(folder, workdir / "metrics.jsonl")))
  if (workdir / "tensorboard").is_dir():
    command = shlex.join(["tensorboard", f"--logdir={workdir / 'tensorboard'}"])
    links.append(Link("TensorBoard", _address(folder, workdir / "tensorboard") + "/", command))
  if has_others:
    links.append(Link("all steps", quote(f"../{course_page(folder).name}")))
  return links


def _address(folder: Path, target: Path) -> str:
  """Return a relative address, which keeps its meaning when the run is moved as a whole."""
  return quote(Path(os.path.relpath(target.resolve(), folder.resolve())).as_posix())


def course_page(folder: Path) -> Path:
  """Return the path of the page of all steps, beside the folders of the steps."""
  return folder.parent / f"report{average_of(folder)}.html"


def write_all_steps(folder: Path, metrics: Summary, others: Mapping[Path, Summary]) -> None:
  """Write the page of all steps, if more than one was evaluated.

  Args:
    folder: folder of a step.
    metrics: its metrics.json.
    others: metrics.json of the run's other steps by their folders.
  """
  if not others:
    return
  steps = {**others, folder: metrics}
  steps = dict(sorted(steps.items(), key=lambda item: item[1]["model"]["step"]))
  links = [
    Link(f"report of step {m['model']['step']:,}", quote(f"{p.name}/report.html"))
    for p, m in steps.items()
  ]
  chosen = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), SHOWN_STEPS)).astype(int))
  pictures = {}
  for place, measured in (list(steps.items())[i] for i in chosen):
    if (picture := _samples(place, measured)) is not None:
      pictures[f"step {measured['model']['step']:,}"] = picture
  report.write_course(course_page(folder), list(steps.values()), pictures, links)


def write_evaluation(
  folder: Path,
  workdir: Path,
  metrics: Summary,
  pictures: Mapping[str, Picture],
  compared: Sequence[OtherRun],
) -> None:
  """Write the pictures, the report, the page of all steps, and last metrics.json.

  metrics.json is the mark of finished work.
  """
  if jax.process_index():
    return
  folder.mkdir(parents=True, exist_ok=True)
  for name, picture in pictures.items():
    files.write_png(folder / f"{name}.png", picture.image)
  stored = metrics_json.json_values(metrics)
  others = other_steps(folder)
  links = make_links(folder, workdir, stored, bool(others))
  beside = Beside(training_rows(workdir), compared, list(others.values()), links)
  report.write_report(folder / "report.html", stored, pictures, beside)
  write_all_steps(folder, stored, others)
  files.write_json(folder / "metrics.json", stored)
