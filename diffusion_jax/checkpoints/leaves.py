"""The description saved with a state: shape, type and checksum of each leaf."""

import json
import zlib
from collections.abc import Mapping
from typing import Any

from diffusion_jax.checkpoints.checksums import checksums
from diffusion_jax.checkpoints.step_folders import Place
from diffusion_jax.core.trees import named_leaves
from diffusion_jax.types import UserError

MIXED = "a checkpoint of another model; use the config that the run was started with"


def describe_leaves(state: Any) -> dict[str, dict[str, Any]]:
  """Return shape, type and checksum of each leaf by its path."""
  sums = checksums(state)
  return {
    name: {"shape": list(leaf.shape), "dtype": str(leaf.dtype), "checksum": list(sums[name])}
    for name, leaf in named_leaves(state).items()
  }


def check_leaves(folder: Place, saved: Mapping[str, Any], target: Any) -> None:
  """Raise an error if a target's leaves differ from the saved ones.

  Args:
    folder: folder of the step, for the message.
    saved: saved description, from `describe_leaves`.
    target: tree of ShapeDtypeStructs, the whole saved tree or parts of it.

  Raises:
    UserError: a leaf differs; the message names the first one.
  """
  wanted = named_leaves(target)
  for name, leaf in wanted.items():
    if name not in saved:
      raise UserError(f"{folder} has no {name}: it is {MIXED}")
    there, here = saved[name], (str(leaf.dtype), list(leaf.shape))
    if (there["dtype"], there["shape"]) != here:
      raise UserError(
        f"{folder}: {name} is {there['dtype']}{there['shape']}, this model needs "
        f"{here[0]}{here[1]}: it is {MIXED}"
      )
  sections = {_part(name) for name in wanted}
  extra = [n for n in saved if n not in wanted and _part(n) in sections]
  if extra:
    raise UserError(f"{folder} also has {extra[0]}: it is {MIXED}")


def _part(name: str) -> str:
  """Return the smallest restorable part: a field of the state, or one of its offsets."""
  first, *rest = name.split("/")
  return f"{first}/{rest[0]}" if first in ("averages", "offsets") and rest else first


def compare_checksums(state: Any, saved: Mapping[str, Any]) -> str | None:
  """Describe the first leaf with a wrong checksum, or return None; a collective."""
  for name, sums in checksums(state).items():
    if list(sums) != saved[name]["checksum"]:
      return f"the checksum of {name} is wrong"
  return None


def seal(meta: Mapping[str, Any]) -> dict[str, Any]:
  """Return JSON values together with their checksum, "crc32"."""
  return {**meta, "crc32": zlib.crc32(json.dumps(meta, sort_keys=True).encode())}


def unseal(sealed: Mapping[str, Any]) -> dict[str, Any]:
  """Return the values that `seal` received.

  Raises:
    ValueError: the checksum is wrong.
  """
  meta = {name: value for name, value in sealed.items() if name != "crc32"}
  if seal(meta) != sealed:
    raise ValueError("the checksum of meta is wrong")
  return meta
