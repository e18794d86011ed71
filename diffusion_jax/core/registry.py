"""Registries: the names that a config may use, and the contract of their entries.

An entry is a class: one of this package, one that a program added (`SAMPLERS["mine"] = Mine`), one
that an installed package declares as an entry point of the group `diffusion_jax`, or any other,
written "module:Class".
"""

import contextlib
import dataclasses
import importlib
import inspect
import os
import sys
from collections import ChainMap
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any, Protocol, cast

from diffusion_jax.core.entry_points import KINDS, entry_points_of, path_of_point, warn_if_hidden
from diffusion_jax.core.settings import Facts
from diffusion_jax.core.spelling import closest, spelling_hint
from diffusion_jax.types import UserError

MISSING = object()
MISSING_WORDS = "is missing"


class Registry(ChainMap[str, type]):
  """Entries by name, read by reference: an entry added later exists everywhere.

  Args:
    kind: noun for an entry in messages and entry points, e.g. "sampler".
    contract: Protocol whose public members every entry must have. The first line of a member's
      docstring describes the member.
    maps: name -> class. New entries go into the first mapping.
    setting_facts: facts about all fields of all entries, see `core.settings`.
    base: class with defaults of most members, from which an entry should derive.
  """

  def __init__(
    self,
    kind: str,
    contract: type,
    *maps: MutableMapping[str, Any],
    setting_facts: Facts = Facts(),
    base: type | None = None,
  ):
    super().__init__(*maps)
    self.kind, self.contract, self.setting_facts, self.base = kind, contract, setting_facts, base
    KINDS.add(kind)

  def names(self) -> list[str]:
    """Return all names, including entry points of installed packages, sorted."""
    warn_if_hidden(self.kind, self)
    return sorted({*self, *entry_points_of(self.kind)})

  def allowed(self) -> list[str]:
    """Return the names of the entries that can be used: not of broken entry points."""
    usable = set(self)
    for name in self.names():
      with contextlib.suppress(UserError):
        self.find(name, name)
        usable.add(name)
    return sorted(usable)

  def with_field(self, field: str) -> list[str]:
    """Return the names of the entries that have a field of this name."""
    return sorted(
      n for n, cls in self.items() if field in {f.name for f in dataclasses.fields(cls)}
    )

  def fault(self, cls: type) -> str | None:
    """Describe in one line how a class breaks this registry's contract, or return None."""
    return broken_contract(cls, self.contract, self.base)

  def find(self, name: str, where: str) -> type:
    """Return the class of a name or of "module:Class".

    Args:
      name: name in this registry or of an entry point, or "module:Class".
      where: config field that holds it, for messages.

    Raises:
      UserError: there is no such entry, or it does not keep the contract.
    """
    points, said = entry_points_of(self.kind), f"{where}={name}"
    if name in self:
      cls = self[name]
      if name in points:
        warn_if_hidden(self.kind, {name: cls})
    elif ":" in name:
      cls = import_class(name, where, self)
    elif name in points:
      cls, said = self._of_package(name, where)
    else:
      raise UserError(
        f"{where} is '{name}'.{spelling_hint(name, self.allowed())} A class of your own is written "
        "module:Class."
      )
    broken = self.fault(cls)
    if broken:
      raise UserError(f"{said}: {broken}")
    return cls

  def _of_package(self, name: str, where: str) -> tuple[type, str]:
    """Return the class of an entry point, and words for the place: what was typed, the package."""
    try:
      path, place = path_of_point(entry_points_of(self.kind)[name])
      return import_class(path, place, self), f"{where}={name} ({place}={path})"
    except UserError as error:
      raise UserError(f"{where}={name}: {error}") from error

  def name_of(self, cls: type) -> str:
    """Return the name under which `find` returns a class; "module:Class" if from outside.

    A stand-in has the name of the class that it replaces as `stored_name`.
    """
    inside = (name for name, entry in self.items() if entry is cls)
    outside = vars(cls).get("stored_name", f"{cls.__module__}:{cls.__qualname__}")
    return next(inside, outside)


def every_entry(entries: Mapping[str, type]) -> Iterator[tuple[str, type | UserError]]:
  """Yield the name and class of each entry, those of installed packages after the others.

  An error takes the place of a class that an installed package names and that cannot be imported.

  Args:
    entries: a registry, or a plain mapping. Contracts are not checked.
  """
  yield from entries.items()
  if isinstance(entries, Registry):
    for name, points in entry_points_of(entries.kind).items():
      if name not in entries:
        try:
          yield name, import_class(*path_of_point(points))
        except UserError as error:
          yield name, error


def import_class(path: str, where: str, registry: Registry | None = None) -> type:
  """Return the class at "module:Class", also from modules in the working directory.

  Args:
    path: "module:Class".
    where: config field or entry point that holds it, for messages.
    registry: registry that it is for; an error proposes only classes that keep its contract.

  Raises:
    UserError: there is no such module or class, or the module raises.
  """
  module_name, _, name = path.partition(":")
  if not module_name:
    raise UserError(f"{where}={path}: no module is named before the colon.")
  if "/" in module_name or module_name.endswith(".py"):
    stem = module_name.rpartition("/")[2].removesuffix(".py")
    raise UserError(f"{where}={path}: name the module, not its file, e.g. {stem}:{name or 'Mine'}.")
  if os.getcwd() not in sys.path and "" not in sys.path:
    sys.path.append(os.getcwd())
  try:
    module = importlib.import_module(module_name)
  except (Exception, SystemExit) as error:  # the module may call sys.exit
    names = module_name.split(".")
    parents = {".".join(names[: i + 1]) for i in range(len(names))}
    gone = isinstance(error, ModuleNotFoundError) and error.name in parents
    reason = (
      "no such module; install the package that has it, or run where it can be imported"
      if gone
      else f"importing {module_name} raised {type(error).__name__}: {' '.join(str(error).split())}"
    )
    raise UserError(f"{where}={path}: {reason}.") from error
  cls: Any = module
  for part in name.split("."):
    cls = vars(cls).get(part) if part else None
  if isinstance(cls, type):
    return cls
  own = {n: v for n, v in vars(module).items() if dataclasses.is_dataclass(v)}
  classes = [n for n, v in own.items() if getattr(v, "__module__", "") == module_name]
  fits = [n for n in classes if registry is None or not registry.fault(cast(type, own[n]))]
  near = closest(name, classes)
  hint = spelling_hint(name, fits) or (f" Did you mean '{near}'?" if near else "")
  raise UserError(f"{where}={path}: {module_name} has no class '{name}'.{hint}")


def broken_contract(cls: type, contract: type, base: type | None = None) -> str | None:
  """Describe in one line how a class breaks a contract, or return None.

  Args:
    cls: class of an entry.
    contract: Protocol; see `Registry`. Abstract methods of the class's bases belong to it too.
    base: class with defaults of most members, which is proposed first to a class without them.
  """
  described = f"see {contract.__module__}.{contract.__qualname__}"
  parameters = getattr(cls, "__dataclass_params__", None)
  if parameters is None or not parameters.frozen:
    return f"it must be a frozen dataclass, whose fields are its section's; {described}."
  if base is not None and not issubclass(cls, base) and (line := _derive(cls, contract, base)):
    return f"{line}; {described}."
  faults = []
  for name, wanted in {**members(contract), **_abstract_members(cls)}.items():
    about = (inspect.getdoc(wanted) or "").partition("\n")[0].rstrip(".")
    if fault := _member_fault(cls, name, wanted):
      faults.append(f"{name} {fault}" + (f" ({about})" if about else ""))
  return f"{'; '.join(faults)}; {described}." if faults else None


def _derive(cls: type, contract: type, base: type) -> str | None:
  """Return the advice to derive a class from a base that has members which it lacks, or None."""
  wanted = {**members(contract), **_abstract_members(base)}.items()
  lacking = [name for name, value in wanted if _member_fault(cls, name, value) == MISSING_WORDS]
  left = [name for name, value in wanted if name in lacking and _member_fault(base, name, value)]
  if left == lacking:
    return None
  and_define = f", and define {', '.join(left)}" if left else ""
  return f"derive it from {base.__qualname__} ({base.__module__}){and_define}"


def _member_fault(cls: type, name: str, wanted: Any) -> str | None:
  """Return how a class's member differs from the contract's, or None."""
  is_method = inspect.isfunction(wanted)
  fields = dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ()
  if any(field.name == name for field in fields):
    return "must be a method, not a field" if is_method else None
  # not getattr_static, which would find the `__call__` that makes instances of any class; the
  # members of a Protocol that the class derives from describe what is wanted
  bases = [base for base in cls.__mro__ if not getattr(base, "_is_protocol", False)]
  given = next((vars(base)[name] for base in bases if name in vars(base)), MISSING)
  if given is MISSING or getattr(given, "__isabstractmethod__", False):
    return MISSING_WORDS
  if not is_method:
    return "must be a value or a property, not a method" if inspect.isfunction(given) else None
  if isinstance(given, property):
    return "must be a method, not a property"
  return _call_fault(getattr(cls, name), wanted, isinstance(given, staticmethod | classmethod))


def _abstract_members(cls: type) -> dict[str, Any]:
  """Return the abstract methods of all bases of a class by name, whether defined or not."""
  return {
    name: value
    for base in reversed(cls.__mro__)
    for name, value in vars(base).items()
    if inspect.isfunction(value) and getattr(value, "__isabstractmethod__", False)
  }


def members(contract: type) -> dict[str, Any]:
  """Return the public members of a Protocol, and `__call__`, by name."""
  public: dict[str, Any] = {}
  for base in reversed(contract.__mro__):
    if base in (object, Protocol) or not getattr(base, "_is_protocol", False):
      continue
    public |= {n: None for n in vars(base).get("__annotations__", {}) if not n.startswith("_")}
    public |= {n: v for n, v in vars(base).items() if not n.startswith("_") or n == "__call__"}
  return public


def _call_fault(given: Any, wanted: Any, is_static: bool) -> str | None:
  """Return why a method cannot be called as the contract's method, or None.

  Optional parameters of the contract are given by position and by name, or left out.
  """
  if not callable(given):
    return "is not a method"
  try:
    signature = inspect.signature(given)
  except (TypeError, ValueError):  # a built-in callable has no signature
    return None
  parameters = list(inspect.signature(wanted).parameters.values())[is_static:]
  named = {p.name: None for p in parameters if p.kind is p.KEYWORD_ONLY}
  by_place = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
  needed = [None for p in by_place if p.default is p.empty]
  optional = {p.name: None for p in by_place if p.default is not p.empty}
  try:
    signature.bind(*needed, **named)
    signature.bind(*needed, **optional, **named)
    signature.bind(*needed, *optional.values(), **named)
  except TypeError:
    return f"must take {inspect.signature(wanted)}"
  return None


def documented(contract: type) -> Iterator[tuple[str, str]]:
  """Yield each member of a contract with the first line of its docstring."""
  for name, member in members(contract).items():
    yield name, (inspect.getdoc(member) or "").partition("\n")[0]


Section = Registry | type
"""Type of a section: the dataclass or registry from which it is built."""

Sections = Mapping[str, Section]
