"""Values of `eval.preset`: a first look, or the numbers that a paper reports."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from diffusion_jax.core.config import Override
from diffusion_jax.core.field_types import as_text
from diffusion_jax.runs.evaluating import Evaluating
from diffusion_jax.runs.experiment import Experiment

PRESETS: Mapping[str, Mapping[str, Any]] = {
  "quick": {
    "num_samples": 1000,
    "num_seeds": 1,
    "likelihood_images": 256,
    "likelihood_repeats": 1,
    "spectrum_images": 0,
  },
  "full": {
    "num_samples": None,  # as many as the reference, at most 50,000
    "num_seeds": 3,  # their spread is the error bar of the metrics
    "likelihood_images": None,
    "likelihood_repeats": 1,
    "spectrum_images": 2048,
  },
}
"""Name -> field of the section `eval` -> its value."""


def fill_in(experiment: Experiment, overrides: Sequence[Override]) -> tuple[Experiment, str]:
  """Return the experiment with the fields of its preset, and a line that names them.

  Fields with a flag keep their value. A preset in the run's config also leaves what that config
  sets to another value than the default; a preset given as a flag replaces it. Without a preset
  nothing changes, and the line is empty.

  Args:
    experiment: config of the run, with `overrides` applied.
    overrides: flags of this command.
  """
  options = experiment.eval
  if options.preset is None:
    return experiment, ""
  flags = {override.field for override in overrides if override.section == "eval"}
  preset = PRESETS[options.preset]
  kept = flags & set(preset)
  if "preset" not in flags:
    defaults = {field.name: field.default for field in dataclasses.fields(Evaluating)}
    kept |= {name for name in preset if getattr(options, name) != defaults[name]}
  filled = {name: value for name, value in preset.items() if name not in kept}
  line = f"eval.preset={options.preset}: {_listed(filled) or 'no field is left to it'}"
  if kept:
    line += f"; as you set them: {_listed({n: getattr(options, n) for n in preset if n in kept})}"
  return experiment.replace(eval=dataclasses.replace(options, **filled)), line


def _listed(fields: Mapping[str, Any]) -> str:
  return ", ".join(f"{name}={as_text(value)}" for name, value in fields.items())
