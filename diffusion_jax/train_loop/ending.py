"""Last lines of a training run: held-out figures, pictures, and the next commands."""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def describe_end(workdir: Path, step: int) -> list[str]:
  """Return the lines that follow "finished: ...".

  Args:
    workdir: folder of the run.
    step: its last step.
  """
  rows = [("held out", figure) for figure in _figures(_held_out(workdir))]
  rows += [("picture", str(p)) for p in sorted((workdir / "samples").glob(f"*_{step:08d}.png"))]
  folder = f"--workdir={workdir}"
  sample = ["diffusion-jax", "sample", folder, "--num=64", "--out=samples.png"]
  rows += [("sample", shlex.join(sample))]
  rows += [("evaluate", shlex.join(["diffusion-jax", "evaluate", folder]))]
  return [f"  {name:<11}{text}" for name, text in rows]


def _held_out(workdir: Path) -> Mapping[str, Any]:
  try:
    return json.loads((workdir / "held_out.json").read_text())
  except (OSError, ValueError):
    return {}


def _figures(values: Mapping[str, Any]) -> list[str]:
  """Return the loss and each bound in bits/dim with its standard error."""
  figures = []
  for name, value in values.items():
    if value is None or not (name == "loss" or name.endswith("/bits_per_dim")):
      continue
    error = values.get(f"{name}_standard_error")
    spread = "" if error is None else f" ± {error:.4f}"
    bound, _, unit = name.replace("bits_per_dim", "bits/dim").partition("/")
    figures.append(f"{bound.replace('_', ' ')} {value:.4f}{spread} {unit}".rstrip())
  return figures
