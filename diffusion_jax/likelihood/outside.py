"""Likelihoods of other packages, which a config names in `eval.likelihoods`."""

import re
from collections.abc import Mapping
from typing import Any

from diffusion_jax.core.registry import Registry
from diffusion_jax.likelihood.continuous_bound import ContinuousBound
from diffusion_jax.likelihood.importance import ImportanceWeighted
from diffusion_jax.likelihood.probability_flow import ProbabilityFlow
from diffusion_jax.likelihood.variational_bound import VariationalBound

RESERVED: Mapping[str, type | None] = {
  "vlb": VariationalBound,
  "continuous_vlb": ContinuousBound,
  "probability_flow": ProbabilityFlow,
  r"iwae_\d+": ImportanceWeighted,
  "elbo": None,
}
"""Pattern of a figure's name -> the class that alone may have it; None: a model's own."""


def outside_entries(registry: Registry, evaluating: Mapping[str, Any]) -> dict[str, str]:
  """Return section -> entry of the likelihoods from outside that a config names.

  Args:
    registry: the likelihoods of the config's kind of model.
    evaluating: fields of the section `eval`. Its `likelihoods` and `training_likelihoods` may name
      "module:Class", whose section has the name of the class, or an entry point, whose section
      has the name of the entry point.
  """
  entries: list[str] = []
  for field in ("likelihoods", "training_likelihoods"):
    asked = evaluating.get(field) or ()
    entries += [] if isinstance(asked, str) else asked
  installed = {*registry.names()} - {*registry}
  return {section_of(e): e for e in entries if ":" in e or e in installed}


def section_of(entry: str) -> str:
  """Return the section of an entry: its own name, or the class of "module:Class"."""
  return entry.rpartition(":")[2].rpartition(".")[2] if ":" in entry else entry


def likelihoods_of(registry: Registry, parts: Mapping[str, Any]) -> dict[str, Any]:
  """Return the estimators of a config by the names of their figures.

  Args:
    registry: the likelihoods of the kind of model.
    parts: section name -> instance; without "eval" only the registry's own.

  Raises:
    ValueError: two figures have the same name, or one has an invalid name or that of a figure of
      this package.
  """
  evaluating = vars(parts["eval"]) if "eval" in parts else {}
  found: dict[str, Any] = {}
  for section in (*registry, *outside_entries(registry, evaluating)):
    name = parts[section].figure_name
    if fault := _name_fault(name, type(parts[section])):
      raise ValueError(f"eval.likelihoods: {type(parts[section]).__name__}: {fault}")
    if name in found:
      raise ValueError(
        f"eval.likelihoods: {type(parts[section]).__name__} has the name {name}, as "
        f"{type(found[name]).__name__} does"
      )
    found[name] = parts[section]
  return found


def _name_fault(name: Any, cls: type) -> str | None:
  """Return why a class may not call its figure so, or None."""
  if not isinstance(name, str) or not re.fullmatch("[a-z][a-z0-9_]*", name):
    return f"figure_name is {name!r}; it must be lower-case letters, digits and _, e.g. 'my_bound'"
  for pattern, owner in RESERVED.items():
    if re.fullmatch(pattern, name) and cls is not owner:
      return (
        f"figure_name is {name!r}, which is a likelihood of this package; give yours another name, "
        f"e.g. 'my_{name}'"
      )
  return None
