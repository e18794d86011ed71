"""Facts about a run for the page, and the pictures that training has saved."""

import re
from pathlib import Path
from typing import Any

from diffusion_jax.browsing.opened_run import OpenedRun
from diffusion_jax.browsing.studio import NUM_TIMES
from diffusion_jax.core.class_names import name_of
from diffusion_jax.core.wording import with_flags
from diffusion_jax.runs.run_facts import RunFacts

STEPS = (1, 2, 3, 4, 5, 8, 10, 15, 20, 25, 30, 40, 50, 60, 75)
"""Numbers of sampler steps on the page; the run's own is added."""

PREVIEW = re.compile(r"(step|reconstructions)_(\d+)\.png")
"""Names of the pictures that training saves: samples, or a VAE's reconstructions."""


def previews_of(folder: Path) -> list[dict[str, Any]]:
  """Return the pictures that training has saved in a run's folder, in their order."""
  found = []
  directory = folder / "samples"
  for path in sorted(directory.iterdir()) if directory.is_dir() else ():
    match = PREVIEW.fullmatch(path.name)
    if match and path.is_file() and not path.is_symlink():
      kind = "Samples" if match[1] == "step" else "Reconstructions"
      found.append({"name": path.name, "kind": kind, "step": int(match[2])})
  return sorted(found, key=lambda entry: (entry["kind"] != "Samples", entry["step"]))


def default_settings(run: OpenedRun) -> dict[str, Any]:
  """Return the settings with which the page begins: the run's own."""
  steps = getattr(run.sampler, "steps", 1)
  weight = run.diffusion.guidance.weight if run.diffusion and not run.refusals["guidance"] else 1.0
  return {
    "step": run.steps[-1],
    "seed": 0,
    "label": -1,
    "sampler": run.sampler_name,
    "steps": min(steps, STEPS[-1]),
    "guidance": plain_number(weight),
  }


def plain_number(value: float) -> float | int:
  """Return a number as JavaScript writes it: 2 rather than 2.0."""
  return int(value) if value == int(value) else value


def shown_facts(run: OpenedRun, name: str, facts: RunFacts) -> dict[str, Any]:
  """Return what the page says and offers of a run, as JSON values."""
  previews = previews_of(run.folder)
  defaults = default_settings(run)
  shape = "x".join(map(str, run.spec.shape))
  words = [facts.kind, f"images of {shape}", run_words(facts)]
  if facts.loss is not None:
    words.append(f"held-out loss {facts.loss.value:.4g}")
  missing = "" if previews else "training has saved no pictures (`logging.sample_every_steps`)"
  refusals = {**run.refusals, "training": missing}
  return {
    "name": name,
    "line": " · ".join(word for word in words if word),
    "steps": run.steps,
    "stepChoices": sorted({*STEPS, getattr(run.sampler, "steps", 1)}),
    "numLevels": NUM_TIMES,
    "num": run.num,
    "height": run.spec.height,
    "width": run.spec.width,
    "diffusion": run.diffusion is not None,
    "samplers": list(run.samplers) or [""],
    "classes": [[label, name_of(label, run.class_names)] for label in run.trained_classes],
    "refusals": {name: with_flags(why) for name, why in refusals.items()},
    "previews": previews,
    "defaults": defaults,
  }


def run_words(facts: RunFacts) -> str:
  """Return a run's state and its step."""
  step = "" if facts.step is None else f", step {facts.step:,}"
  return f"{facts.state}{step}"
