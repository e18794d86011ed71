"""Texts for people: data sets and durations."""

import contextlib
import re
from collections.abc import Iterator

from diffusion_jax.types import ImageSpec, UserError


def describe_data(name: str, num_images: int, spec: ImageSpec) -> str:
  """Return one line: "digits train, 1,500 images of 8x8x1, 17 levels, 10 classes"."""
  size = "x".join(str(n) for n in spec.shape)
  levels = f", {spec.num_levels} levels" if spec.num_levels else ""
  classes = f"{spec.num_classes} classes" if spec.num_classes else "no labels"
  named = "".join(f", {n} {f.dtype}{list(f.shape)}" for n, f in spec.fields.items())
  return f"{name}, {num_images:,} images of {size}{levels}, {classes}{named}"


def duration(seconds: float) -> str:
  """Format seconds as 1h05m, 3m20s or 12s."""
  seconds = max(round(seconds), 0)
  hours, minutes = seconds // 3600, seconds // 60 % 60
  if hours:
    return f"{hours}h{minutes:02d}m"
  return f"{minutes}m{seconds % 60:02d}s" if minutes else f"{seconds}s"


def with_flags(text: str) -> str:
  """Rewrite a library's message for the command line: `a.b=1` becomes --config.a.b=1."""
  return re.sub(r"`([a-z_0-9]+\.[a-z_0-9]+=[^`]*)`", r"--config.\1", text)


@contextlib.contextmanager
def in_python() -> Iterator[None]:
  """Rewrite errors for Python: --config.a.b=1 becomes a.b=1, and --workdir=x workdir=x."""
  try:
    yield
  except UserError as error:
    text = re.sub(r"(?<![\w-])--(?:config\.)?(?=[a-z_]+)", "", str(error))
    if text == str(error):
      raise
    raise type(error)(text) from error
