"""Send the evaluations of a run to its trackers: figures with errors, and grids."""

import contextlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from diffusion_jax import parallel
from diffusion_jax.core.files import read_png, write_json
from diffusion_jax.runs.experiment import Experiment
from diffusion_jax.runs.run_facts import evaluated_figures, is_locked
from diffusion_jax.training.logger import Logging
from diffusion_jax.training.trackers import Events, WeightsAndBiases

SENT = "trackers.json"
"""File beside metrics.json: the trackers that have this evaluation, and its identity."""


def send_from_process_0(workdir: Path, experiment: Experiment) -> None:
  """Call `send_evaluations` on one process. A collective."""
  parallel.on_process_0(lambda: send_evaluations(workdir, experiment.logging, experiment.to_dict()))


def send_evaluations(workdir: Path, logging: Logging, resolved: Mapping[str, Any]) -> None:
  """Send each evaluation in a run's eval/ that a tracker lacks; print what cannot be sent.

  Weights & Biases takes one writer at a time: while the run trains, its evaluations wait for the
  next call after its end.

  Args:
    workdir: folder of the run.
    logging: its trackers.
    resolved: its whole config, section -> field -> value.
  """
  if logging.tensorboard:
    events = lambda: Events(workdir / "tensorboard", None)  # noqa: E731
    _send("TensorBoard", workdir, events, _to_events)
  if run := logging.wandb_run(workdir):
    if is_locked(workdir / ".lock"):
      print("Weights & Biases: the run is still training; evaluate after its end sends the figures")
      return
    opened = lambda: WeightsAndBiases(run, resolved)  # noqa: E731
    _send("Weights & Biases", workdir, opened, WeightsAndBiases.evaluation)


def _send(tracker: str, workdir: Path, opened: Callable[[], Any], to: Callable[..., None]) -> None:
  """Send to one tracker what it lacks; the tracker is opened only if there is something."""
  lacking = [folder for folder in _evaluated(workdir / "eval") if tracker not in _sent(folder)]
  if not lacking:
    return
  try:
    with contextlib.closing(opened()) as sink:
      for folder in lacking:
        step, _, average = folder.name.partition("-")
        group = f"eval-{average}" if average else "eval"
        to(sink, int(step), group, _values(folder, group), _grids(folder, group))
        names = [*_sent(folder), tracker]
        write_json(folder / SENT, {"identity": _metrics(folder)["identity"], "sent": names})
  except Exception as error:
    reason = str(error).partition("\n")[0]
    print(f"{tracker} has not got the evaluation ({reason}); metrics.json has it", flush=True)


def _evaluated(folder: Path) -> list[Path]:
  """Return the folders with a readable metrics.json, by step."""
  found = [p for p in folder.iterdir() if p.name.partition("-")[0].isdigit() and _metrics(p)]
  return sorted(found, key=lambda p: (int(p.name.partition("-")[0]), p.name))


def _metrics(folder: Path) -> dict[str, Any]:
  with contextlib.suppress(OSError, ValueError):
    content = json.loads((folder / "metrics.json").read_text())
    return content if isinstance(content, dict) and "identity" in content else {}
  return {}


def _sent(folder: Path) -> list[str]:
  """Return the trackers that have the folder's evaluation as it is."""
  with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
    stored = json.loads((folder / SENT).read_text())
    if stored["identity"] == _metrics(folder)["identity"]:
      return list(stored["sent"])
  return []


def _values(folder: Path, group: str) -> dict[str, float]:
  values = {}
  for name, figure in evaluated_figures(_metrics(folder)).items():
    values[f"{group}/{name}"] = figure.value
    if figure.error is not None:
      values[f"{group}/{name}_error"] = figure.error
  return values


def _grids(folder: Path, group: str) -> dict[str, UInt8[np.ndarray, "H W C"]]:
  return {f"{group}/{path.stem}": read_png(path) for path in sorted(folder.glob("*.png"))}


def _to_events(
  events: Events,
  step: int,
  group: str,
  values: dict[str, float],
  grids: dict[str, UInt8[np.ndarray, "H W C"]],
) -> None:
  del group
  events.scalars(step, values)
  for name, grid in grids.items():
    events.image(step, name, grid)
