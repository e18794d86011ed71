"""Facts about config fields, declared beside the field.

A field declares its own: `path: str = setting("", may_change=True)`. A class declares those of all
its fields as `setting_facts`, and a registry those of all its entries. The field comes first, then
its class, then the registry, then `DEFAULTS`, which are strict.
"""

import dataclasses
from typing import Any, NamedTuple


class Facts(NamedTuple):
  """Facts about a field or about all fields of a section; None: not declared.

  Attributes:
    may_change: a run may continue with another value.
    affects_figures: measured figures of given weights depend on it.
    affects_samples: samples of given weights depend on it; read for whole sections only.
    affects_encoding: the output of an autoencoder's given weights depends on it.
    is_path: it is the path of a file or folder, which may move.
  """

  may_change: bool | None = None
  affects_figures: bool | None = None
  affects_samples: bool | None = None
  affects_encoding: bool | None = None
  is_path: bool | None = None


DEFAULTS = Facts(
  may_change=False,
  affects_figures=True,
  affects_samples=True,
  affects_encoding=True,
  is_path=False,
)

HOW_IT_RUNS = Facts(may_change=True, affects_figures=False, affects_samples=False)
"""Facts of a section that sets how a program runs, and nothing of its results."""


def setting(default: Any, **facts: bool) -> Any:
  """Return a dataclass field with facts, e.g. `setting("", is_path=True, may_change=True)`.

  Args:
    default: default value of the field.
    facts: see `Facts`. They are the metadata of the field.

  Raises:
    TypeError: there is no such fact.
  """
  declared = Facts(**facts)._asdict()
  metadata = {name: value for name, value in declared.items() if value is not None}
  return dataclasses.field(default=default, metadata=metadata)


def section_fact(fact: str, section: Any, cls: type | None = None) -> bool:
  """Return a fact about all fields of a section.

  Args:
    fact: name of the fact, see `Facts`.
    section: registry or dataclass of the section.
    cls: chosen entry of the registry, if it is known.
  """
  # getattr: a declaration is optional, and a class of another package need not have a base class
  declared = [getattr(owner, "setting_facts", Facts()) for owner in (cls, section)]
  values = [getattr(facts, fact) for facts in (*declared, DEFAULTS)]
  return next(value for value in values if value is not None)


def field_fact(fact: str, section: Any, cls: type | None, field: str) -> bool:
  """Return a fact about a field of a section.

  Args:
    fact, section, cls: as in `section_fact`.
    field: name of the field, or "name" for the choice of the entry, which the section decides.
  """
  if field == "name":
    return section_fact(fact, section)
  for base in () if cls is None else cls.__mro__:  # a subclass with a new default keeps the facts
    declared = vars(base).get("__dataclass_fields__", {}).get(field)
    if declared is not None and fact in declared.metadata:
      return declared.metadata[fact]
  return section_fact(fact, section, cls)


def fields_with(fact: str, cls: type) -> list[str]:
  """Return the fields of a config class for which a fact holds, in their order."""
  names = [f.name for f in dataclasses.fields(cls) if f.init]
  return [name for name in names if field_fact(fact, cls, cls, name)]
