"""Parts that a run's config.json can hold, and that another process can find again."""

import json
import sys
from collections.abc import Mapping
from typing import Any

from diffusion_jax.core.config import build, to_dict
from diffusion_jax.core.registry import Registry, Section
from diffusion_jax.types import UserError

MODULE_FILE = "put it into a file, e.g. my_parts.py, and import it from there"


def warn_of_main(sections: Mapping[str, Any]) -> str | None:
  """Return a line about parts that only this session can load again, or None."""
  own = [n for n, part in sections.items() if type(part).__module__ == "__main__"]
  if not own:
    return None
  name = type(sections[own[0]]).__name__
  return (
    f"{own[0]}={name} is defined in this notebook or script, so only this session can load the "
    f"run; to load it elsewhere, {MODULE_FILE}"
  )


def check_storable(sections: Mapping[str, Any], layout: Mapping[str, Section]) -> None:
  """Raise an error for a part that could not be built again from config.json.

  Args:
    sections: name -> built part.
    layout: name -> registry or class from which it is built.

  Raises:
    UserError: the part or field, and what to do.
  """
  for name, section in layout.items():
    part = sections[name]
    if isinstance(section, Registry):
      _check_place(type(part), section, name)
    fields = to_dict(part, section)
    for field, value in fields.items():
      try:
        json.dumps(value, allow_nan=False)
      except (TypeError, ValueError) as error:
        raise UserError(
          f"{name}: {field} is {value!r}, which the run's config.json cannot hold; let the field "
          "be a number, a text or a list of them, and make the rest from it in the class"
        ) from error
    build(section, json.loads(json.dumps(fields)), name)


def _check_place(cls: type, registry: Registry, name: str) -> None:
  """Raise an error unless the name that is stored for a class leads to it again."""
  path = registry.name_of(cls)
  if "<locals>" in path:
    raise UserError(
      f"{name}={cls.__name__}: it is defined inside a function, where the stored run cannot find "
      f"it; {MODULE_FILE}"
    )
  if cls.__module__ not in sys.modules:
    raise UserError(f"{name}={cls.__name__}: there is no module {cls.__module__}; {MODULE_FILE}")
  if registry.find(path, f"config.{name}.name") is not cls:
    raise UserError(
      f"{name}={cls.__name__}: {path} is another class by now; build the part from that one"
    )
