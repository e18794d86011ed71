"""The grid of a sweep over the settings with which a run is sampled."""

import itertools
from collections.abc import Sequence

from diffusion_jax.types import UserError

SWEPT = ("sampler", "guidance")
"""Sections that a sweep may vary: they affect the sampling, not the meaning of weights."""


def sweep_points(axes: Sequence[str]) -> list[dict[str, str]]:
  """Return the grid of a sweep: every combination of the axes' values.

  Raises:
    UserError: an axis that is not section.field=value,value,... of the sampler or the guidance, or
      that has a field or a value twice.
  """
  if not axes:
    return []
  rows: dict[str, list[tuple[str, str]]] = {}
  for axis in axes:
    name, equals, text = axis.partition("=")
    values = text.split(",")
    if not equals or not all(values) or name.count(".") != 1:
      raise UserError(f"--sweep={axis}: write section.field=value,value, e.g. sampler.steps=10,50")
    if name.partition(".")[0] not in SWEPT:
      raise UserError(
        f"--sweep={axis}: a sweep varies the sampling: {' or '.join(SWEPT)}, e.g. "
        "--sweep=sampler.steps=10,50"
      )
    if name in rows or len(set(values)) < len(values):
      what = f"{name} is swept twice" if name in rows else "a value is repeated"
      raise UserError(f"--sweep={axis}: {what}; write each field once, with different values")
    rows[name] = [(name, value) for value in values]
  return [dict(point) for point in itertools.product(*rows.values())]
