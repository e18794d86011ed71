"""Trees of arrays."""

from typing import Any

import jax


def named_leaves(tree: Any) -> dict[str, Any]:
  """Return the leaves by their path in the tree, e.g. "ema/conv_in/conv/kernel"."""
  paths = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(p, simple=True, separator="/"): leaf for p, leaf in paths}
