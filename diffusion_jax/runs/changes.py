"""Compare whole configs: may a run continue, and does a checkpoint belong to it."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from diffusion_jax.core.field_types import as_text
from diffusion_jax.runs.experiment import SettingFacts, build_experiment, of_today
from diffusion_jax.types import UserError


def differences(
  old: Mapping[str, Mapping[str, Any]], new: Mapping[str, Mapping[str, Any]]
) -> tuple[list[str], list[str]]:
  """Return the differing fields of two resolved configs, as "section.field: old -> new".

  Returns:
    The differences with which a run cannot continue, and those with which it can.
  """
  fatal, harmless, facts = [], [], SettingFacts(new, old)
  for section, field, before, after in _changes(old, new):
    text = f"{section}.{field}: {before} -> {after}"
    (harmless if facts.of_field("may_change", section, field) else fatal).append(text)
  return fatal, harmless


def flags_to_keep(
  old: Mapping[str, Mapping[str, Any]], new: Mapping[str, Mapping[str, Any]]
) -> list[str]:
  """Return the flags that restore the old values of the fields that a run may not change.

  Empty if there are no such flags, because a section is missing or has another name.
  """
  fatal = fatal_changes(old, new)
  if any(c.field == "name" or c.section not in old or c.section not in new for c in fatal):
    return []
  return [f"`{c.section}.{c.field}={as_text(c.before)}`" for c in fatal]


class Change(NamedTuple):
  """A field of two resolved configs that differs; None where one does not have it."""

  section: str
  field: str
  before: Any
  after: Any


def fatal_changes(
  old: Mapping[str, Mapping[str, Any]], new: Mapping[str, Mapping[str, Any]]
) -> list[Change]:
  """Return the differing fields of two resolved configs that a run may not change."""
  facts = SettingFacts(new, old)
  changes = _changes(old, new)
  return [c for c in changes if not facts.of_field("may_change", c.section, c.field)]


def _changes(
  old: Mapping[str, Mapping[str, Any]], new: Mapping[str, Mapping[str, Any]]
) -> Iterator[Change]:
  for section in sorted({*old, *new}):
    before, after = dict(old.get(section, {})), dict(new.get(section, {}))
    for field in sorted({*before, *after}):
      if _plain(before.get(field)) != _plain(after.get(field)):
        yield Change(section, field, before.get(field), after.get(field))


def of_another_run(config: Mapping[str, Any], meta: Mapping[str, Any]) -> str | None:
  """Return why a checkpoint does not belong to the run with this config, or None.

  Args:
    config: all sections, as in config.json.
    meta: metadata saved with the checkpoint.
  """
  try:
    ours, theirs = (build_experiment(of_today(c)).identity() for c in (config, meta["config"]))
  except (UserError, KeyError):  # a version with other fields: its leaves are compared
    return None
  fatal, _ = differences(ours, theirs)
  return f"it belongs to another run ({'; '.join(fatal)})" if fatal else None


def _plain(value: Any) -> Any:
  """Replace tuples by lists, as in JSON."""
  return list(value) if isinstance(value, tuple) else value
