"""Trees of arrays."""

from collections.abc import Mapping
from typing import Any

import jax


def named_leaves(tree: Any) -> dict[str, Any]:
  """Return the leaves by their path in the tree, e.g. "ema/conv_in/conv/kernel"."""
  paths = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(p, simple=True, separator="/"): leaf for p, leaf in paths}


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
  """Return the tree of dicts for values by path; inverts `named_leaves` for such trees."""
  tree: dict[str, Any] = {}
  for path, value in flat.items():
    *folders, last = path.split("/")
    node = tree
    for folder in folders:
      node = node.setdefault(folder, {})
    node[last] = value
  return tree
