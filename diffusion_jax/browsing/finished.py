"""The page as one file: the answers for a few settings are made once and stored in it."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffusion_jax.browsing.opened_run import OpenedRun
from diffusion_jax.browsing.page_text import page_text
from diffusion_jax.browsing.shown_run import plain_number, shown_facts
from diffusion_jax.browsing.studio import NUM_TIMES, Studio
from diffusion_jax.core.files import write_whole
from diffusion_jax.report.inline_images import png_uri
from diffusion_jax.runs.run_facts import read_run
from diffusion_jax.types import UserError

SEEDS = (0, 1, 2)
WEIGHTS = (0.0, 1.0, 2.0, 4.0)
FEW_STEPS_FIRST = (5, 10, 25)
MOST_TRAINING_STEPS = 8
MOST_PREVIEWS = 24
LEVEL_GAP = 2
"""Noise levels in the file: every second one of the page."""


def write_static_page(run: OpenedRun, path: Path, say: Callable[[str], None]) -> int:
  """Write the gallery of a run as one HTML file that needs no server.

  Returns its size in bytes.

  Args:
    run: the run.
    path: the file.
    say: called with a line for each part that is made.

  Raises:
    UserError: nothing can be drawn with this run.
  """
  studio, name = Studio(run), run.folder.resolve().name
  facts = shown_facts(run, name, read_run(run.folder, name))
  defaults = facts["defaults"]
  choices = offered(run, defaults)
  answers: dict[str, Any] = {}
  for kind, settings in questions(run, defaults, choices):
    if facts["refusals"].get(kind):
      continue
    say(f"{kind} {' '.join(f'{n}={v}' for n, v in settings.items() if n != 'mask')}")
    try:
      answers[answer_key(kind, settings)] = studio.answer(kind, settings)
    except UserError as error:
      if kind == "draw" and settings == defaults:
        raise
      facts["refusals"][kind] = str(error)
  previews = facts["previews"][:: -(-len(facts["previews"]) // MOST_PREVIEWS) or 1]
  for preview in previews:
    with Image.open(run.folder / "samples" / preview["name"]) as image:
      pixels = np.asarray(image.convert("RGB"))
    preview["uri"] = png_uri(pixels)
  shown = {
    **facts,
    "choices": {name: choices[name] for name in ("seed", "guidance", "steps")},
    "steps": choices["step"],
    "samplers": [defaults["sampler"]],
    "numLevels": NUM_TIMES // LEVEL_GAP,
    "levelGap": LEVEL_GAP,
    "previews": previews,
    "hidden": left_half(run),
    "answers": answers,
  }
  page = page_text({"live": False, "run": shown})
  write_whole(path, page)
  return len(page.encode())


def offered(run: OpenedRun, defaults: Mapping[str, Any]) -> dict[str, list[Any]]:
  """Return the values of each setting in the file, in order."""
  steps = run.steps
  kept = sorted({*steps[:: -(-len(steps) // MOST_TRAINING_STEPS)], steps[-1]})
  if run.diffusion is None:
    return {"step": kept, "seed": list(SEEDS), "guidance": [1], "steps": [1]}
  weights = {*map(plain_number, WEIGHTS), defaults["guidance"]}
  guided = not run.refusals["guidance"]
  fewer = {*(s for s in FEW_STEPS_FIRST if s < defaults["steps"]), defaults["steps"]}
  has_steps = hasattr(run.sampler, "steps")
  return {
    "step": kept,
    "seed": list(SEEDS),
    "guidance": sorted(weights) if guided else [defaults["guidance"]],
    "steps": sorted(fewer) if has_steps else [defaults["steps"]],
  }


def questions(
  run: OpenedRun, defaults: Mapping[str, Any], choices: Mapping[str, list[Any]]
) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yield the kind and the settings of each answer in the file.

  Guidance and sampler steps are combined with each other; seeds and training steps change alone.
  """
  yield "draw", dict(defaults)
  for weight in choices["guidance"]:
    for steps in choices["steps"]:
      yield "draw", {**defaults, "guidance": weight, "steps": steps}
  for name in ("seed", "step"):
    for value in choices[name]:
      yield "draw", {**defaults, name: value}
  yield "between", {**defaults, "first": 0, "second": 1}
  yield "inpaint", {**defaults, "picture": 0, "mask": left_half(run)}
  for step in choices["step"]:
    yield "pictures", {"step": step}
    yield "latents", {"step": step, "picture": 0}
  for level in range(0, NUM_TIMES + 1, LEVEL_GAP):
    yield "noise", {"step": defaults["step"], "seed": 0, "label": -1, "level": level}


def left_half(run: OpenedRun) -> str:
  """Return the mask that hides the left half of an image."""
  row = "".join("1" if x < run.spec.width / 2 else "0" for x in range(run.spec.width))
  return row * run.spec.height


def answer_key(kind: str, settings: Mapping[str, Any]) -> str:
  """Return the key by which the page finds an answer, see `keyOf` in page.js."""
  pairs = [list(pair) for pair in sorted(settings.items())]
  return kind + json.dumps(pairs, separators=(",", ":"), ensure_ascii=False)
