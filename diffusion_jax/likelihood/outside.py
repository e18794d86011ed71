"""Likelihoods of other packages, which a config names in `eval.likelihoods`."""

from collections.abc import Mapping
from typing import Any

from diffusion_jax.core.registry import Registry


def outside_entries(registry: Registry, evaluating: Mapping[str, Any]) -> dict[str, str]:
  """Return section -> entry of the likelihoods from outside that a config names.

  Args:
    registry: the likelihoods of the config's kind of model.
    evaluating: fields of the section `eval`, of which `likelihoods` and `training_likelihoods` name
      entries: "module:Class", whose section has the name of the class, or an entry point, whose
      section has the same name.
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
    ValueError: two of them have one name.
  """
  evaluating = vars(parts["eval"]) if "eval" in parts else {}
  found: dict[str, Any] = {}
  for section in (*registry, *outside_entries(registry, evaluating)):
    name = parts[section].figure_name
    if name in found:
      raise ValueError(
        f"eval.likelihoods: {type(parts[section]).__name__} has the name {name}, as "
        f"{type(found[name]).__name__} does"
      )
    found[name] = parts[section]
  return found
