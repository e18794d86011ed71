"""Build frozen dataclasses from a config file and overrides.

A config has sections. A section is either one dataclass or a `Registry`, from which the section's
`name` selects an entry: one of the package or "module:Class". Its other keys are the fields of that
dataclass. There is no central schema: a section may have the fields that its class declares.
"""

import dataclasses
import os
import runpy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from diffusion_jax.core import shipped
from diffusion_jax.core.field_types import (
  checked,
  concrete,
  describe_type,
  field_types,
  is_supported,
  parse_value,
  unsupported,
)
from diffusion_jax.core.files import user_path
from diffusion_jax.core.own_code import own_code
from diffusion_jax.core.registry import Registry, Section
from diffusion_jax.core.spelling import closest, spelling_hint
from diffusion_jax.core.synonyms import hint_for_field
from diffusion_jax.types import UserError


class Override(NamedTuple):
  """One `--config.section.field=text` argument of a command line."""

  section: str
  field: str
  text: str

  @property
  def flag(self) -> str:
    return f"--config.{self.section}.{self.field}={self.text}"


def split_argument(path: str) -> tuple[Path, str]:
  """Return the file and the argument of --config=FILE or --config=FILE:ARGUMENT.

  A colon in the name of an existing file does not split it.
  """
  if ":" not in path or user_path(path).is_file():
    return user_path(path), ""
  name, _, argument = path.rpartition(":")
  return user_path(name), argument


WHAT_IT_IS = (
  "a config is a Python file with get_config(), or the name of a shipped one, such as "
  "`config=ddpm_digits`; diffusion-jax configs lists them"
)

DATA_SUFFIXES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".npz")
"""Suffixes of data, which somebody may give in place of a config file."""


def find_file(text: str) -> tuple[Path, str]:
  """Return the file and the argument of --config=TEXT.

  A text that ends in .py or has a separator is a file. Any other is a file of the current folder,
  or the name of a shipped config.

  Raises:
    UserError: there is no such file or shipped config; the nearest is named.
  """
  if not text:
    raise UserError(f"`config=` is empty; {WHAT_IT_IS}")
  path, argument = split_argument(text)
  if path.is_file():
    if path.suffix.lower() in DATA_SUFFIXES:
      raise UserError(f"`config={text}` is no config file; to train on it write `data={text}`")
    _check_program(path, text)
    return path, argument
  name = text.removesuffix(f":{argument}")
  is_name = "/" not in name and os.sep not in name and path.suffix != ".py"
  configs = shipped.configs()
  if is_name and name in configs:
    return configs[name], argument
  if is_name and Path(f"{name}.py").is_file():
    raise UserError(f"`config={text}`: no such file. Did you mean '{name}.py'?")
  if path.is_dir():
    inside = ", ".join(sorted(map(str, path.glob("*.py"))))
    give = f"give one of its files: {inside}" if inside else "give a config file, FILE.py"
    own = "" if inside else f"; to train on its pictures write `data={text}`"
    if (path / "config.json").is_file():
      own = f"; to go on with that run write `workdir={text}`"
    raise UserError(f"`config={text}`: it is a folder; {give}{own}")
  folder = Path("configs")
  is_shipped = folder.resolve() == shipped.folder().resolve()
  there = [] if is_shipped else sorted(map(str, folder.glob("*.py")))
  listed = f" Configs here: {', '.join(there)}." if there else ""
  hint = spelling_hint(path.stem, configs).replace("Allowed:", "Shipped, found by name:")
  what = "no such file and no shipped config" if is_name else f"no such file: {path}"
  raise UserError(f"`config={text}`: {what}.{listed}{hint}")


def _check_program(path: Path, text: str) -> None:
  """Raise a UserError for a file that is no Python program with a get_config; do not run it."""
  try:
    content = path.read_bytes()
    source = content.decode()
  except UnicodeDecodeError:
    raise UserError(f"`config={text}` is no text; {WHAT_IT_IS}") from None
  except OSError as error:
    raise UserError(f"`config={text}` cannot be read ({error.strerror})") from error
  if b"\0" in content:
    raise UserError(f"`config={text}` is no text; {WHAT_IT_IS}")
  if path.name == "config.json" and '"generative"' in source:
    raise UserError(
      f"`config={text}` is the stored config of a run; go on with `workdir={path.parent}`; "
      f"{WHAT_IT_IS}"
    )
  if not source.strip():
    raise UserError(f"`config={text}` is empty; {WHAT_IT_IS}")
  if path.suffix != ".py" and "get_config" not in source:
    raise UserError(f"`config={text}` has no get_config(); {WHAT_IT_IS}")


def load_file(path: str) -> ConfigDict:
  """Run `get_config()` of a config file or a shipped one; `file.py:text` passes "text" to it.

  Raises:
    UserError: the file is missing, does not run, or has no get_config that returns a ConfigDict.
  """
  name, argument = find_file(path)
  try:
    get_config = runpy.run_path(str(name)).get("get_config")
    if not callable(get_config):
      raise UserError(f"`config={path}` has no get_config(); {WHAT_IT_IS}")
    config = get_config(argument) if argument else get_config()
    if isinstance(config, dict):
      config = ConfigDict(config)
    if isinstance(config, ConfigDict):
      config.to_dict()  # raises for an unfilled placeholder
  except UserError:
    raise
  except (Exception, SystemExit) as error:
    line = " ".join(f"{type(error).__name__}: {error}".split())
    raise UserError(f"`config={path}`: {line}") from error
  if not isinstance(config, ConfigDict):
    raise UserError(f"`config={path}`: its get_config() must return a ConfigDict")
  return config


def parse_override(argument: str) -> Override:
  """Parse one `--config.section.field=value` argument.

  Raises:
    UserError: the argument has another format.
  """
  path, equals, text = argument.removeprefix("--config.").partition("=")
  words = path.split(".")
  if not equals or not all(words) or len(words) != 2:
    hint = hint_for_field("", words[-1], text, ())
    raise UserError(
      f"{argument}: write --config.section.field=value, e.g. --config.training.seed=1"
      f"{f'; {hint}' if hint else '.'}"
    )
  section, field = words
  return Override(section, field, text)


def resolve(
  raw: Mapping[str, Any], overrides: Sequence[Override], sections: Mapping[str, Section]
) -> dict[str, Any]:
  """Build every section of a config.

  Args:
    raw: section name -> mapping of fields, as in a config file or config.json. A missing section
      gets its defaults, which only a plain dataclass has.
    overrides: overrides of `raw`; a new `name` resets the section to the defaults of that entry.
    sections: section name -> dataclass or registry, for all allowed sections.

  Returns:
    Section name -> dataclass instance.

  Raises:
    UserError: an unknown section, field or name, or a value of the wrong type or out of range.
  """
  for key in (*raw, *(o.section for o in overrides)):
    if key not in sections:
      meant = next((o for o in overrides if o.section == key), None)
      near = closest(key, sections, 0.6) or ""
      others = [meant.field] if meant and near else []  # then only the near section counts
      hint = meant and hint_for_field(near, meant.field, meant.text, others)
      hint = f" {hint[0].upper()}{hint[1:]}" if hint else spelling_hint(key, sections)
      raise UserError(f"config has no section '{key}'.{hint}")
  built = {}
  for key, section in sections.items():
    of_section = [o for o in overrides if o.section == key]
    value = raw.get(key, {})
    if not isinstance(value, Mapping | ConfigDict):
      raise UserError(f"config.{key} is {value!r}; it must be a section with fields.")
    built[key] = _build_section(section, dict(value), of_section, key)
  return built


def build(registry: Section, fields: Mapping[str, Any], where: str = "config") -> Any:
  """Build one dataclass from its section's fields; check names, types and ranges."""
  return _build_section(registry, dict(fields), [], where)


def to_dict(instance: Any, section: Section) -> dict[str, Any]:
  """Return the section that builds `instance` again, with all its fields, ready for JSON."""
  fields = {f.name: getattr(instance, f.name) for f in dataclasses.fields(instance) if f.init}
  if isinstance(section, type):
    return fields
  return {"name": section.name_of(type(instance)), **fields}


def _build_section(section: Section, value: dict, overrides: list[Override], where: str) -> Any:
  if isinstance(section, type):
    cls = section
  else:
    cls, value, overrides = _select(section, value, overrides, where)
  hints, defaults = field_types(cls), {f.name: f.default for f in dataclasses.fields(cls)}
  for name in (*value, *(o.field for o in overrides)):
    if name not in hints:
      allowed = hints if isinstance(section, type) else ["name", *hints]
      text = next((o.text for o in overrides if o.field == name), "")
      if owners := [] if isinstance(section, type) else section.with_field(name):
        raise UserError(
          f"config.{where} has no field '{name}' with `{where}.name={section.name_of(cls)}`; "
          f"{', '.join(owners)} {'has' if len(owners) == 1 else 'have'} it."
          f" Allowed: {', '.join(sorted(allowed))}."
        )
      hint = hint_for_field(where, name, text, allowed)
      hint = f" {hint[0].upper()}{hint[1:]}" if hint else spelling_hint(name, allowed)
      raise UserError(f"config.{where} has no field '{name}'.{hint}")
  fields = {n: _check(v, hints[n], f"config.{where}.{n}", defaults[n]) for n, v in value.items()}
  fields |= {o.field: parse_value(o.text, hints[o.field], o.flag) for o in overrides}
  needed = [f.name for f in dataclasses.fields(cls) if f.name in hints and _is_required(f)]
  if lacking := [name for name in needed if name not in fields]:
    listed = ", ".join(f"`{where}.{n}=...` ({describe_type(hints[n])})" for n in lacking)
    raise UserError(f"config.{where}: {cls.__name__} has no default for this: give {listed}")
  refusals = TypeError, ValueError
  try:
    with own_code({where: cls}, refusals):
      return cls(**fields)
  except refusals as error:
    text = " ".join(str(error).split())
    raise UserError(f"config.{where}: {text}") from error


def _is_required(field: dataclasses.Field) -> bool:
  return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _select(registry: Registry, value: dict, overrides: list[Override], where: str):
  """Select the registry entry, and remove `name` from the fields and the overrides."""
  name = value.pop("name", None)
  chosen = next((o.text for o in reversed(overrides) if o.field == "name"), name)
  if chosen is None:
    raise UserError(f"config.{where} needs a name. Allowed: {', '.join(registry.allowed())}.")
  cls = registry.find(str(chosen), f"config.{where}.name")
  fields = value if chosen == name else {}
  return cls, fields, [o for o in overrides if o.field != "name"]


def _check(value: Any, hint: Any, where: str, default: Any) -> Any:
  """Return `value` as a field of type `hint` stores it, or raise an error.

  The default is allowed whatever its type: a stored config has it.
  """
  same = tuple(value) if isinstance(default, tuple) and isinstance(value, list) else value
  if type(same) is type(default) and same == default:
    return default
  try:
    return checked(concrete(value), hint)
  except ValueError as error:
    if not is_supported(hint):
      raise UserError(f"{where}: {unsupported(hint)}") from error
    raise UserError(f"{where} is {error}.") from error
