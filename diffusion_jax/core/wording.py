"""Texts for people: data sets and durations."""

import re
import shlex
from typing import Any

from diffusion_jax.types import ImageSpec

MAX_SHOWN = 80
"""Length of a wrong value in a message, in characters."""


def one_line(value: Any) -> str:
  """Return a wrong value for a message, as one short line."""
  text = " ".join(repr(value).split())
  return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def describe_data(name: str, num_images: int, spec: ImageSpec) -> str:
  """Return one line: "digits train, 1,500 images of 8x8x1, 17 levels, 10 classes"."""
  size = "x".join(str(n) for n in spec.shape)
  levels = f", {spec.num_levels} levels" if spec.num_levels else ""
  count = f"{spec.num_classes} class{'' if spec.num_classes == 1 else 'es'}"
  classes = count if spec.num_classes else "no labels"
  named = "".join(f", {n} {f.dtype}{list(f.shape)}" for n, f in spec.fields.items())
  images = "image" if num_images == 1 else "images"
  return f"{name}, {num_images:,} {images} of {size}{levels}, {classes}{named}"


def duration(seconds: float) -> str:
  """Format seconds as 1h05m, 3m20s or 12s."""
  seconds = max(round(seconds), 0)
  hours, minutes = seconds // 3600, seconds // 60 % 60
  if hours:
    return f"{hours}h{minutes:02d}m"
  return f"{minutes}m{seconds % 60:02d}s" if minutes else f"{seconds}s"


ARGUMENTS = ("config", "data", "workdir", "fresh", "step", "ema", "init_from", "init_partial")
"""Arguments of `train` and `load_run` that are flags of the commands too."""

SETTING = re.compile(rf"`(?:([a-z_0-9]+\.[a-z_0-9]+)=|({'|'.join(ARGUMENTS)})(?:=|(?=`)))([^`]*)`")
"""A field with its value, `sampler.steps=50`, or an argument, `fresh=True` or `workdir`."""


IN_TEXT = {"True": "true", "False": "false", "None": "none"}
"""Python's words in a command line's text, as `core.field_types.as_text` writes them."""


def with_flags(text: str) -> str:
  """Rewrite a library's message for the command line: `a.b=1` becomes --config.a.b=1.

  An argument becomes its flag: `workdir=runs/x` --workdir=runs/x, and `fresh=True` --fresh. A value
  that a shell would change is quoted.
  """
  return SETTING.sub(_as_flag, text) if "`" in text else text


def _as_flag(found: re.Match[str]) -> str:
  field, argument, value = found.groups()
  if argument and (value == "True" or "=" not in found[0]):
    return f"--{argument}"
  name = f"config.{field}" if field else argument
  return f"--{name}={value if value == '...' else shlex.quote(IN_TEXT.get(value, value))}"
