"""Labels beside the pictures: EDM's dataset.json, and WebDataset's .cls and .json files."""

import json
import os
from collections.abc import Callable, Iterable, Sequence

from diffusion_jax.types import UserError

INDEX = "dataset.json"
"""File of EDM's and StyleGAN's data sets: pairs of a picture's name and a class number."""

KEYS = ("cls", "label", "class", "label_name", "class_name")
"""Names of the class in a picture's own .json."""

Labels = dict[str, int | str]


def labels_of_index(content: bytes) -> Labels | None:
  """Return name -> class number by a dataset.json; {} if unlabelled, None for another file.

  Raises:
    UserError: its labels are not class numbers.
  """
  try:
    pairs = json.loads(content)["labels"]
    if pairs is None:
      return {}
    labels = dict(pairs)
  except (ValueError, TypeError, KeyError):
    return None
  if not all(type(label) is int for label in labels.values()):
    raise UserError(f"{INDEX}: its labels are not class numbers; make it without labels")
  return {os.path.normpath(name): label for name, label in labels.items()}


def labels_beside(
  pictures: Sequence[str], others: Iterable[str], read: Callable[[str], bytes]
) -> Labels | None:
  """Return picture -> label by the .cls or .json of the same name; None if they have none.

  Args:
    pictures: names of the pictures.
    others: names of all other files.
    read: name -> content.

  Raises:
    UserError: only some pictures have a label, or a label is no class.
  """
  there = set(others)
  for suffix, parse in ((".cls", _parse_cls), (".json", _parse_json)):
    beside = {name: f"{_key(name)}{suffix}" for name in pictures}
    found = {n: parse(read(own)) for n, own in beside.items() if own in there}
    labels = {name: label for name, label in found.items() if label is not None}
    if not labels:
      continue
    if lacking := next((name for name in pictures if name not in labels), None):
      raise UserError(f"{lacking} has no label in {beside[lacking]}, but other pictures have one")
    if len({type(label) for label in labels.values()}) > 1:
      raise UserError(f"labels in {suffix} files are numbers and names; write one of the two")
    return labels
  return None


def _key(name: str) -> str:
  """Return the name up to the first dot of its last part, which a WebDataset's files share."""
  folder, slash, last = name.rpartition("/")
  return f"{folder}{slash}{last.partition('.')[0]}"


def _parse_cls(content: bytes) -> int | str:
  text = content.decode(errors="replace").strip()
  return int(text) if text.isdecimal() else text


def _parse_json(content: bytes) -> int | str | None:
  try:
    found = json.loads(content)
  except ValueError:
    return None
  if not isinstance(found, dict):
    return None
  return next((found[k] for k in KEYS if type(found.get(k)) in (int, str)), None)
