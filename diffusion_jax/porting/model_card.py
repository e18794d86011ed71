"""The model card of exported weights: config, data, figures with their protocol."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusion_jax import __version__


def write_card(
  name: str, config: Mapping[str, Any], meta: Mapping[str, Any], step: int, metrics: Any, usage: str
) -> str:
  """Return the card as Markdown.

  Args:
    name: name of the run.
    config: all sections of its config.
    meta: metadata of its checkpoint.
    step: step of the weights.
    metrics: content of the newest metrics.json of these weights; None: not evaluated.
    usage: Python code that samples from the exported folder.
  """
  data = meta["data"]
  parts = [
    "---\nlibrary_name: diffusers\ntags:\n- diffusion_jax\n---",
    f"# {name}",
    f"Averaged weights of step {step:,}, trained with diffusion_jax {__version__}.",
    "## Data",
    _data(data),
    "## Figures",
    _figures(metrics),
    "## Use",
    f"```python\n{usage}\n```",
    "## Config",
    f"```json\n{json.dumps(config, indent=2)}\n```",
  ]
  return "\n\n".join(parts) + "\n"


def _data(data: Mapping[str, Any]) -> str:
  spec = data["spec"]
  shape = f"{spec['height']}x{spec['width']}x{spec['channels']}"
  if data.get("fingerprint") is None:
    return f"Not known: the weights were imported. Images of {shape}."
  return f"{data['name']}: {data['num']:,} images of {shape}, fingerprint `{data['fingerprint']}`."


def _figures(metrics: Mapping[str, Any] | None) -> str:
  if not metrics or not metrics.get("figures"):
    return "Not measured."
  rows = ["| figure | value | error | samples | protocol |", "|---|---|---|---|---|"]
  for name, figure in metrics["figures"].items():
    error = figure.get("standard_error") or figure.get("standard_deviation")
    shown = "" if error is None else f"{error:.2g}"
    number = figure.get("num_samples") or figure.get("num_images") or ""
    about = str(figure.get("description") or "").replace("|", "/")
    rows.append(f"| {name} | {figure['value']:.4g} | {shown} | {number} | {about} |")
  return "\n".join(rows)


def newest_metrics(workdir: Path, step: int) -> dict[str, Any] | None:
  """Return the metrics.json of a step's averaged weights, or None."""
  path = workdir / "eval" / str(step) / "metrics.json"
  try:
    content = json.loads(path.read_text())
  except (OSError, ValueError):
    return None
  return content if isinstance(content, dict) else None
