"""Help on the fields of a config: type, default, allowed values and documentation."""

import contextlib
import dataclasses
import inspect
import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from diffusion_jax.core.config import Override
from diffusion_jax.core.field_types import as_text, describe_type, field_types
from diffusion_jax.core.registry import Registry, Section
from diffusion_jax.core.spelling import spelling_hint
from diffusion_jax.generative import GENERATIVES
from diffusion_jax.runs.experiment import COMMON, Experiment
from diffusion_jax.runs.stored import load_experiment, stored_experiment
from diffusion_jax.types import UserError

WIDTH = 96


class Entry(NamedTuple):
  """One class that a section may be built from.

  Attributes:
    name: in the section's registry; "" for a section of one class.
    cls: the dataclass whose fields the section then has.
    value: the instance that a config has built; None where it has chosen another entry.
  """

  name: str
  cls: type
  value: Any = None


class Part(NamedTuple):
  """A section of a config.

  Attributes:
    section: its name.
    models: values of generative.name that have it; empty if all have it.
    built_from: its registry or class.
    entries: those of the registry; the one that a config has chosen comes first.
  """

  section: str
  models: tuple[str, ...]
  built_from: Section
  entries: tuple[Entry, ...]


class Field(NamedTuple):
  """One field of an entry, as the help and the documentation describe it.

  Attributes:
    name: name in its section.
    value: value in a config, or the default.
    default: default value.
    kind: type and allowed values in words.
    about: documentation from the class.
  """

  name: str
  value: str
  default: str
  kind: str
  about: str


def config_help(experiment: Experiment | None = None, wanted: str = "") -> str:
  """Return the documentation of a config's fields.

  Args:
    experiment: a config, whose values are shown beside the defaults; None for the defaults alone.
    wanted: a section, or section.entry or section.field; "" for all sections. Of all sections of an
      experiment, only the entries that it has chosen are shown.

  Raises:
    UserError: there is no such section, entry or field.
  """
  parts = all_parts() if experiment is None else _parts_of(experiment)
  if wanted:
    return "\n\n".join(_narrowed(parts, wanted))
  most = None if experiment is None else 1
  return "\n\n".join(_text(part, part.entries[:most]) for part in parts)


def help_on(
  wanted: str, config: str | None, workdir: Path | None, overrides: Sequence[Override]
) -> str:
  """Return the documentation of a config's fields, as the flags of a program ask for it.

  Args:
    wanted: see `config_help`.
    config, workdir: a config or a run whose values are shown; None for the defaults.
    overrides: applied to these values.

  Raises:
    UserError: the config, the run or the part of it is not there.
  """
  if config is not None:
    return config_help(load_experiment(config, overrides), wanted)
  if workdir is not None:
    return config_help(stored_experiment(workdir, overrides), wanted)
  if overrides:
    raise UserError(
      f"{overrides[0].flag}: name the config that it changes, as --config=ddpm_digits"
    )
  return config_help(None, wanted)


def field_docs(cls: type) -> dict[str, str]:
  """Return field -> its text in the "Attributes:" sections of a class and its bases.

  A class repeats only what it changes. Names before one colon share the text after it.
  """
  docs: dict[str, str] = {}
  for base in reversed(cls.__mro__):
    text = inspect.cleandoc(base.__dict__.get("__doc__") or "")
    section = re.split(r"\n(?=\S)", text.partition("\nAttributes:\n")[2], maxsplit=1)[0]
    for item in re.split(r"\n(?=  \S)", f"\n{section}"):
      names, colon, about = item.strip().partition(": ")
      if colon:
        docs |= dict.fromkeys(re.split(r",\s+", names), " ".join(about.split()))
  return docs


def all_parts() -> list[Part]:
  """Return the sections of all kinds of models; once per set of entries if these differ."""
  models_of: dict[str, list[tuple[Section, list[str]]]] = {"generative": [(GENERATIVES, [])]}
  for model, cls in GENERATIVES.items():
    for name, section in cls.sections.items():
      same = next((m for s, m in models_of.setdefault(name, []) if s == section), None)
      if same is None:
        models_of[name].append((section, same := []))
      same.append(model)
  models_of |= {name: [(section, [])] for name, section in COMMON.items()}
  return [
    Part(name, () if len(models) == len(GENERATIVES) else tuple(models), section, _entries(section))
    for name, sections in models_of.items()
    for section, models in sections
  ]


def _entries(section: Section) -> tuple[Entry, ...]:
  """The classes of a section; one of an installed package that cannot be used is left out."""
  if isinstance(section, type):
    return (Entry("", section),)
  entries = []
  for name in section.names():
    with contextlib.suppress(UserError):
      entries.append(Entry(name, section.find(name, name)))
  return tuple(entries)


def _parts_of(experiment: Experiment) -> list[Part]:
  """The sections that a config has, the chosen entries first."""
  parts, names = [], experiment.to_dict()
  for section, value in experiment.sections.items():
    entries = [e for e in _entries(experiment.layout[section]) if e.cls is not type(value)]
    chosen = Entry(names[section].get("name", ""), type(value), value)
    parts.append(Part(section, (), experiment.layout[section], (chosen, *entries)))
  return parts


def _narrowed(parts: list[Part], wanted: str) -> Iterator[str]:
  """Texts of a section, or of one of its entries, or of one field of all of them or of one."""
  name, _, rest = wanted.removeprefix("config.").partition(".")
  parts, every = [part for part in parts if part.section == name], parts
  if not parts:
    sections = {part.section for part in every}
    raise UserError(f"{wanted}: no section '{name}'.{spelling_hint(name, sections)}")
  if ":" in rest:
    part, entries = _from_outside(parts, rest)
    yield _text(part, [entries])
    return
  names = {entry.name for part in parts for entry in part.entries} - {""}
  entry, _, field = rest.partition(".")
  if entry not in names:
    entry, field = "", rest if entry in _fields_of(parts, "") else entry
  allowed = _fields_of(parts, entry)
  if field and field not in allowed:
    allowed |= set() if entry else names
    raise UserError(f"{wanted}: config.{name} has no '{field}'.{spelling_hint(field, allowed)}")
  for part in parts:
    entries = [e for e in part.entries if entry in ("", e.name)]
    if narrowed := [e for e in entries if not field or field in field_types(e.cls)]:
      yield _text(part, narrowed, field)


def _fields_of(parts: list[Part], name: str) -> set[str]:
  """All fields of the entries of this name, of all entries if it is empty."""
  entries = [e for part in parts for e in part.entries if name in ("", e.name)]
  return {field for entry in entries for field in field_types(entry.cls)}


def _from_outside(parts: list[Part], path: str) -> tuple[Part, Entry]:
  """The class "module:Class" as an entry of the first of these sections that takes it."""
  refused: UserError | None = None
  for part in parts:
    try:
      if isinstance(part.built_from, Registry):
        cls = part.built_from.find(path, f"config.{part.section}.name")
        return part, Entry(path, cls)
    except UserError as error:
      refused = refused or error
  raise refused or UserError(f"{parts[0].section}.{path}: that section is built from one class")


def _text(part: Part, entries: Sequence[Entry], field: str = "") -> str:
  """One section: a line on what it is, then its entries with their fields."""
  names = [entry.name for entry in part.entries if entry.name]
  models = f", for generative.name={'|'.join(part.models)}" if part.models else ""
  lines = [f"[{part.section}]{models}"]
  if names:
    lines += _wrapped(f"--config.{part.section}.name: one of {', '.join(sorted(names))}", "  ")
  for entry in entries:
    about = inspect.cleandoc(entry.cls.__doc__ or "").partition("\n")[0]
    title = f"{part.section}.name={entry.name}: {about}" if entry.name else about
    lines += ["", *_wrapped(title, "  ")] if entry.name else _wrapped(title, "  ")
    lines += _fields(part.section, entry, field)
  return "\n".join(lines)


def _fields(section: str, entry: Entry, only: str) -> Iterator[str]:
  for field in fields_of(entry):
    if only in ("", field.name):
      same = field.value == field.default
      words = field.kind if same else f"{field.kind}; default: {field.default}"
      line = f"--config.{section}.{field.name}={field.value}  ({words})"
      yield from _wrapped(line, "    ", "        ")
      yield from _wrapped(field.about, "        ")


def fields_of(entry: Entry) -> Iterator[Field]:
  """Yield the fields of an entry that a config can set, in the order of the class."""
  docs, hints = field_docs(entry.cls), field_types(entry.cls)
  for field in dataclasses.fields(entry.cls):
    if field.name in hints:
      default = _default(field)
      value = default if entry.value is None else shown(getattr(entry.value, field.name))
      kind = describe_type(hints[field.name])
      yield Field(field.name, value, default, kind, docs.get(field.name, ""))


def _default(field: dataclasses.Field) -> str:
  if field.default is not dataclasses.MISSING:
    return shown(field.default)
  factory = field.default_factory
  return "..." if factory is dataclasses.MISSING else shown(factory())


def shown(value: Any) -> str:
  """Return a value as a command line has it; an empty list is none, an empty text ''."""
  return as_text(value) or ("none" if isinstance(value, tuple | list) else "''")


def _wrapped(text: str, first: str, rest: str | None = None) -> list[str]:
  indent = first if rest is None else rest
  return textwrap.wrap(
    text, WIDTH, initial_indent=first, subsequent_indent=indent,
    break_long_words=False, break_on_hyphens=False,
  )  # fmt: skip
