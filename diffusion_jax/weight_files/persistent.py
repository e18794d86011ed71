"""Modules in NVlabs' pickles (EDM, StyleGAN): tensors and arguments, but no source.

A persistent object is pickled as a call of `_reconstruct_persistent_obj` with a dict: "type",
"version", "module_src" (the source text of its class, which NVlabs' reader executes), "class_name"
and "state", the object's attributes. Here the source is dropped unread, and the object is a
`Module` placeholder. Modules of torch.nn inside it are pickled by the names of their classes.
Format: `torch_utils/persistence.py` of NVlabs/edm.
"""

from collections.abc import Iterator
from typing import Any

from diffusion_jax.weight_files.inert import Damaged, Module, Refused
from diffusion_jax.weight_files.pickles import Name

META = {"type", "version", "module_src", "class_name", "state"}
VERSION = 6


def _reconstruct(meta: Any) -> Module:
  if type(meta) is not dict or set(meta) != META:
    raise Damaged("a persistent object is not described as NVlabs' are")
  if meta["type"] != "class" or meta["version"] != VERSION:
    raise Refused(f"a persistent object is of version {meta['version']!r:.20}, not {VERSION}")
  if type(meta["class_name"]) is not str or type(meta["module_src"]) is not str:
    raise Damaged("a persistent object has no class name")
  module = Module(meta["class_name"])
  module.set_state({} if meta["state"] is None else meta["state"])
  return module


def _easy_dict(*args: Any) -> dict[Any, Any]:
  if args:
    raise Refused("it makes a dict in an unknown way")
  return {}


PERSISTENT_NAMES = {
  ("torch_utils.persistence", "_reconstruct_persistent_obj"): Name("persistent", _reconstruct),
  ("dnnlib.util", "EasyDict"): Name("EasyDict", _easy_dict),
}
"""Names of NVlabs' own in their pickles."""


def tensors_of(module: Module) -> Iterator[tuple[str, Any]]:
  """Return the module's own parameters and buffers by name; those that are None are left out."""
  for kind in ("_parameters", "_buffers"):
    for name, value in _entries(module, kind):
      if value is not None:
        yield name, value


def children_of(module: Module) -> Iterator[tuple[str, Module]]:
  """Return the modules directly below by name.

  Raises:
    Refused: there is something else among them.
  """
  for name, value in _entries(module, "_modules"):
    if value is None:
      continue
    if type(value) is not Module:
      raise Refused(f"its module {name!r:.60} is none")
    yield name, value


def description(module: Module) -> dict[str, Any]:
  """Return a module's arguments and its public attributes, as they are in the file."""
  hidden = {"training", "_init_args", "_init_kwargs"}
  attributes = {
    key: value
    for key, value in module.state.items()
    if key not in hidden and not str(key).startswith("_")
  }
  return {
    "init_args": list(module.state.get("_init_args") or ()),
    "init_kwargs": module.state.get("_init_kwargs") or {},
    "attributes": attributes,
  }


def _entries(module: Module, kind: str) -> Iterator[tuple[str, Any]]:
  entries = module.state.get(kind, {})
  if type(entries) is not dict or any(type(name) is not str for name in entries):
    raise Damaged(f"{kind} of a {module.class_name:.60} is no dict of names")
  yield from entries.items()
