"""Entry points of installed packages, which add entries to registries, and their mistakes.

A package declares an entry in its group `diffusion_jax` as `KIND.NAME = "module:Class"`, e.g.
`sampler.dpm_2 = "package:DPM2"`.
"""

import functools
import importlib.metadata
import sys
from collections.abc import Mapping
from importlib.metadata import EntryPoint

from diffusion_jax.core.spelling import closest
from diffusion_jax.types import UserError

GROUP = "diffusion_jax"
"""Group of the entry points that add entries."""

KINDS = {
  "autoencoder",
  "data",
  "decoder",
  "generative",
  "likelihood",
  "loss",
  "metric",
  "model",
  "optimizer",
  "process",
  "sampler",
  "vae_likelihood",
  "vae_loss",
}
"""Kinds of entries; a registry adds its own."""


@functools.cache
def entry_points_of(kind: str) -> Mapping[str, tuple[EntryPoint, ...]]:
  """Return name -> the entry points "KIND.NAME", more than one if packages disagree.

  An entry point of an unknown kind is reported once on stderr.
  """
  found: dict[str, tuple[EntryPoint, ...]] = {}
  for point in _all_of_the_group():
    first, _, name = point.name.partition(".")
    others = found.get(name, ())
    if first == kind and name and point.value not in [other.value for other in others]:
      found[name] = (*others, point)
  return found


@functools.cache
def _all_of_the_group() -> tuple[EntryPoint, ...]:
  points = tuple(importlib.metadata.entry_points(group=GROUP))
  for point in points:
    kind, _, name = point.name.partition(".")
    if kind not in KINDS or not name:
      near = closest(kind, KINDS, 0.6)
      meant = f"did you mean {near}.{name or 'NAME'}?" if near else "a name is KIND.NAME, with"
      kinds = "" if near else f" KIND one of {', '.join(sorted(KINDS))}"
      warn(f"{describe_point(point)} is ignored: {meant}{kinds}")
  return points


@functools.cache
def warn(line: str) -> None:
  """Print a warning on stderr the first time."""
  print(f"warning: {line}", file=sys.stderr)


def describe_point(point: EntryPoint) -> str:
  """Return "package x, entry point loss.mine"; without the package if it is unknown."""
  package = "" if point.dist is None else f"package {point.dist.name}, "
  return f"{package}entry point {point.name}"


def warn_if_hidden(kind: str, entries: Mapping[str, type]) -> None:
  """Warn once of each entry point whose name another class already has.

  Args:
    kind: kind of the registry.
    entries: entries of the registry itself, without those of installed packages.
  """
  points = entry_points_of(kind)
  for name in sorted(points.keys() & entries.keys()):
    own = f"{entries[name].__module__}:{entries[name].__qualname__}"
    for point in points[name] if own not in [p.value for p in points[name]] else ():
      warn(
        f"{describe_point(point)}={point.value} is ignored: {kind} {name} is there already; its "
        f"package must choose another name, e.g. {kind}.my_{name}"
      )


def path_of_point(points: tuple[EntryPoint, ...]) -> tuple[str, str]:
  """Return "module:Class" of the entry points of one name, and their description.

  Raises:
    UserError: packages disagree, or the value is no "module:Class".
  """
  point, *others = points
  if others:
    listed = " and ".join(f"{describe_point(p)}={p.value}" for p in points)
    raise UserError(f"{listed} have one name; write the module:Class that you mean")
  match = EntryPoint.pattern.match(point.value)
  if match is None or not match["attr"]:
    raise UserError(
      f"{describe_point(point)}={point.value}: it names no class; its package must declare "
      f'{point.name} = "module:Class"'
    )
  return f"{match['module']}:{match['attr']}", describe_point(point)
