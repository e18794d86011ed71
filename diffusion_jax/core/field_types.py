"""Types of config fields: their values are checked, read from text and described.

A field may be a number, a text, true or false, none, one of several values (Literal), a union of
these, or a tuple or list of them. A class of another package may have fields of other types, which
a config can neither set nor check.
"""

import contextlib
import dataclasses
import functools
import math
import sys
import types
import typing
from collections.abc import Iterable
from typing import Any, Literal, NoReturn

import jax
import numpy as np
from jax.core import Tracer

from diffusion_jax.core.own_code import place_of
from diffusion_jax.core.spelling import closest
from diffusion_jax.types import UserError

WORDS = {
  int: "an integer",
  float: "a number",
  bool: "true or false",
  str: "a text",
  type(None): "none",
  list: "a list",
  tuple: "a list",
  dict: "a mapping",
}
SUPPORTED = "int, float, bool, str, None, Literal[...], or a tuple[...] or list[...] of these"


@functools.lru_cache(maxsize=1024)
def field_types(cls: type) -> dict[str, Any]:
  """Return field -> type of a config class, in the order of the fields.

  Raises:
    UserError: an annotation names something that its module does not define.
  """
  try:
    hints = typing.get_type_hints(cls)
  except Exception as error:
    raise UserError(f"{place_of(cls)}: the type of a field cannot be read: {error}") from error
  return {f.name: hints[f.name] for f in dataclasses.fields(cls) if f.init}


def is_supported(hint: Any) -> bool:
  """Return True if a config can hold values of a type."""
  origin, members = typing.get_origin(hint), typing.get_args(hint)
  if origin is Literal:
    return True
  if origin in (typing.Union, types.UnionType) or origin in (tuple, list):
    return all(member is Ellipsis or is_supported(member) for member in members)
  return hint in WORDS if isinstance(hint, type) else False


def plain(value: Any) -> Any:
  """Return a NumPy number, or an array without axes, as the number of Python that it is."""
  scalar = isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0)
  return value.item() if scalar else value


def checked(value: Any, hint: Any) -> Any:
  """Return a value as a field of a type stores it.

  Raises:
    ValueError: the value is not of this type, or not finite.
  """
  value, origin, members = plain(value), typing.get_origin(hint), typing.get_args(hint)
  if not is_supported(hint) and origin not in (typing.Union, types.UnionType):
    if isinstance(hint, type) and type(value) is hint:
      return value
  elif hint is float:
    if type(value) in (int, float):
      if abs(value) <= sys.float_info.max:
        return float(value)
      raise ValueError(f"{value!r}; it must be a finite number")
  elif origin in (tuple, list):
    if isinstance(value, list | tuple | np.ndarray):
      return origin(checked(v, m) for v, m in _items(value, members))
  elif origin in (typing.Union, types.UnionType):
    for option in options(hint):
      with contextlib.suppress(ValueError):
        return checked(value, option)
    if type(value) is float and float in members and not math.isfinite(value):
      raise ValueError(f"{value!r}; it must be finite, and {describe_type(hint)}")
  elif origin is Literal:
    if any(type(value) is type(member) and value == member for member in members):
      return value
  elif hint in (tuple, list):
    if isinstance(value, list | tuple):
      return hint(value)
  elif type(value) is hint:
    return value
  raise ValueError(f"{value!r}; it must be {describe_type(hint)}")


def _items(values: Iterable[Any], members: tuple[Any, ...]) -> list[tuple[Any, Any]]:
  """Return each item of a list with its type; ValueError for a wrong number of items."""
  values = list(values)
  if len(members) == 1 or Ellipsis in members:
    return [(value, members[0]) for value in values]
  if len(values) != len(members):
    raise ValueError(f"{tuple(values)!r}; it must have {len(members)} items")
  return list(zip(values, members, strict=True))


def check_values(instance: Any) -> None:
  """Check the values of a built part, and store NumPy's numbers as Python's.

  Not checked are defaults, which the class's author has chosen, fields of a type that a config
  cannot hold, and JAX arrays in the place of numbers, which may be traced.

  Raises:
    ValueError: the field, its value and what is allowed.
  """
  for name, value in checked_values(instance).items():
    if value is not getattr(instance, name):
      object.__setattr__(instance, name, value)


def checked_values(instance: Any) -> dict[str, Any]:
  """Return field -> value as it is stored; see `check_values`.

  Raises:
    ValueError: see `check_values`.
  """
  cls = type(instance)
  try:
    hints = field_types(cls)
  except UserError:  # a config that sets one of its fields says so
    hints = {}
  values = {}
  for field in dataclasses.fields(cls):
    if field.name not in hints:
      continue
    value, hint = getattr(instance, field.name), hints[field.name]
    if value is not field.default and is_supported(hint):
      try:
        value = _checked_or_traced(value, hint)
      except ValueError as error:
        raise ValueError(f"{cls.__name__}: {field.name} is {error}") from error
    values[field.name] = value
  return values


def stored_form(instance: Any) -> Any:
  """Return a built part with its numbers as Python's, also those of JAX that are not traced.

  Raises:
    ValueError: see `check_values`.
  """
  values = {name: concrete(value) for name, value in checked_values(instance).items()}
  changed = {n: v for n, v in values.items() if v is not getattr(instance, n)}
  return dataclasses.replace(instance, **changed) if changed else instance


def concrete(value: Any) -> Any:
  """Return a scalar array of JAX as the number that it is, unless it is traced."""
  if isinstance(value, jax.Array) and not isinstance(value, Tracer) and value.ndim == 0:
    return value.item()
  return value


def _checked_or_traced(value: Any, hint: Any) -> Any:
  """Return a value as it is stored; an array of JAX in the place of a number stays one."""
  if not isinstance(value, jax.Array) or {int, float, bool}.isdisjoint(options(hint)):
    return checked(value, hint)
  if (number := concrete(value)) is not value:
    checked(number, hint)
  return value


def parse_value(text: str, hint: Any, flag: str) -> Any:
  """Parse a command line's text as a field's type.

  Raises:
    UserError: the text is not of that type; the message names the allowed values.
  """
  for option in options(hint):
    try:
      return _parse_one(text, option)
    except ValueError:
      continue
  if not is_supported(hint):
    raise UserError(f"{flag}: {unsupported(hint)}")
  raise UserError(f"{flag}: '{text}' is not {describe_type(hint)}.{_nearest(text, hint)}")


def _nearest(text: str, hint: Any) -> str:
  """Return " Did you mean 'x'?" for the most similar of a field's words, if one is."""
  words = [
    word
    for option in options(hint)
    if typing.get_origin(option) is Literal
    for word in typing.get_args(option)
  ]
  near = closest(text, [word for word in words if isinstance(word, str)])
  return f" Did you mean '{near}'?" if near else ""


def unsupported(hint: Any) -> str:
  """Return the sentence that a config cannot hold fields of a type."""
  name = hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)
  return f"a config cannot set a field of type {name}; declare it as {SUPPORTED}."


def as_text(value: Any) -> str:
  """Format a field's value for a command line; `parse_value` reads it again."""
  if isinstance(value, list | tuple):
    return ",".join(as_text(item) for item in value)
  return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def options(hint: Any) -> tuple:
  """Return the members of a union, None first: 'none' is also a text."""
  if typing.get_origin(hint) not in (typing.Union, types.UnionType):
    return (hint,)
  return tuple(sorted(typing.get_args(hint), key=lambda option: option is not type(None)))


def _parse_one(text: str, hint: Any) -> Any:
  origin, members = typing.get_origin(hint), typing.get_args(hint)
  if hint is type(None) and text.lower() in ("none", "null"):
    return None
  if hint is bool and text.lower() in ("true", "false"):
    return text.lower() == "true"
  if hint is str:
    return text
  if hint is int:
    return int(text)
  if hint is float:
    return float(text) if math.isfinite(float(text)) else _refuse(text)
  if origin is Literal:
    return {str(v): v for v in members}.get(text) or _refuse(text)
  if origin in (tuple, list) or hint in (tuple, list):
    kind: Any = origin or hint
    if text.lower() in ("none", "null"):  # not an item of this name
      return kind()
    items = [t.strip() for t in text.strip("()[] ").split(",") if t.strip()]
    return kind(_parse_item(t, member) for t, member in _items(items, members or (Any, ...)))
  return _refuse(text)


def _parse_item(text: str, hint: Any) -> Any:
  """Parse an item of a list; of a list of any values, the first plain type that it reads as."""
  for option in (int, float, bool, str) if hint is Any else options(hint):
    try:
      return _parse_one(text, option)
    except ValueError:
      continue
  return _refuse(text)


def _refuse(text: str) -> NoReturn:
  raise ValueError(text)


def describe_type(hint: Any) -> str:
  """Return a type in words: "an integer", "one of a, b", "a list, each an integer"."""
  origin, members = typing.get_origin(hint), typing.get_args(hint)
  if isinstance(hint, type) and hint in WORDS:
    return WORDS[hint]
  if origin is Literal:
    return f"one of {', '.join(str(v) for v in members)}"
  if origin in (tuple, list):
    if len(members) == 1 or Ellipsis in members:
      return f"a list, each {describe_type(members[0])}"
    return f"a list of {', '.join(describe_type(member) for member in members)}"
  if origin in (typing.Union, types.UnionType):
    return " or ".join(describe_type(option) for option in options(hint))
  return hint.__name__ if isinstance(hint, type) else str(hint)
