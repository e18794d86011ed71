"""Parameters of equal layers in one array with a leading axis over the layers.

In a tree of parameters, the key `stacked_NAME` holds what would else be `NAME0`, `NAME1`, ...: each
of its arrays has one more axis, the first, over these layers. `jax.lax.scan` and `flax.linen.scan`
take such arrays, and the compiler sees one layer in place of many.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from diffusion_jax.core.trees import named_leaves

PREFIX = "stacked_"


def is_stacked(path: str) -> bool:
  """Return True if the array of this path has a leading axis over layers."""
  return any(name.startswith(PREFIX) for name in path.split("/"))


def shape_of_layer(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
  """Return the shape that an array of this path has in one layer."""
  return shape[1:] if is_stacked(path) else shape


def stack_layers(tree: Any, names: Collection[str]) -> Any:
  """Join the layers `NAME0`, `NAME1`, ... of each of these names to `stacked_NAME`.

  Args:
    tree: parameters, or a tree that holds such trees, e.g. the state of an optimizer. Its leaves
      are arrays or ShapeDtypeStructs with shardings.
    names: names of the layers without their number.
  """

  def joined(params: Mapping[str, Any]) -> dict[str, Any]:
    groups = {name: _numbered(params, name) for name in names if f"{name}0" in params}
    layers = {key for keys in groups.values() for key in keys}
    whole = {
      PREFIX + name: jax.tree.map(_join, *(params[key] for key in keys))
      for name, keys in groups.items()
    }
    return {key: value for key, value in params.items() if key not in layers} | whole

  return _change(tree, joined, lambda key: any(key == f"{name}0" for name in names))


def unstack_layers(tree: Any) -> Any:
  """Invert `stack_layers` for all names."""

  def apart(params: Mapping[str, Any]) -> dict[str, Any]:
    layers = {key: value for key, value in params.items() if key.startswith(PREFIX)}
    split = {
      f"{key.removeprefix(PREFIX)}{i}": jax.tree.map(lambda leaf, i=i: _take(leaf, i), value)
      for key, value in layers.items()
      for i in range(jax.tree.leaves(value)[0].shape[0])
    }
    return {key: value for key, value in params.items() if key not in layers} | split

  return _change(tree, apart, lambda key: key.startswith(PREFIX))


def as_stored(target: Any, stored: Collection[str]) -> Any:
  """Return a tree of ShapeDtypeStructs with its layers stacked as in a checkpoint, or not.

  Args:
    target: the tree to restore, with shardings.
    stored: paths of the stored arrays.

  Returns:
    The target itself if it has these paths, or if neither form has them.
  """
  names = {name for path in stored for name in path.split("/") if name.startswith(PREFIX)}
  forms = (target, unstack_layers(target), stack_layers(target, _without_prefix(names)))
  return next((form for form in forms if named_leaves(form).keys() <= set(stored)), target)


def as_wanted(tree: Any, target: Any) -> Any:
  """Return restored arrays with their layers stacked as in `target`, and in its shardings."""
  if jax.tree.structure(tree) == jax.tree.structure(target):
    return tree
  put = lambda leaf, wanted: jax.device_put(leaf, wanted.sharding)  # noqa: E731
  return jax.tree.map(put, restacked(tree, target), target)


def restacked(tree: Any, target: Any) -> Any:
  """Return a tree with its layers stacked as in `target`, or not."""
  names = {name for path in named_leaves(target) for name in path.split("/")}
  stacked = [name for name in names if name.startswith(PREFIX)]
  return stack_layers(tree, _without_prefix(stacked)) if stacked else unstack_layers(tree)


def _without_prefix(names: Collection[str]) -> list[str]:
  return sorted(name.removeprefix(PREFIX) for name in names)


def _numbered(params: Mapping[str, Any], name: str) -> list[str]:
  """Return the keys name0, name1, ... in the order of their numbers."""
  keys = [f"{name}{i}" for i in range(len(params))]
  return [key for key in keys if key in params]


def _change(
  tree: Any, change: Callable[[Mapping[str, Any]], Any], is_meant: Callable[[str], bool]
) -> Any:
  """Apply `change` to each dict of a tree that has a key for which `is_meant` is true."""

  def has_one(node: Any) -> bool:
    return isinstance(node, Mapping) and any(map(is_meant, node))

  return jax.tree.map(lambda node: change(node) if has_one(node) else node, tree, is_leaf=has_one)


def _join(*leaves: Any) -> Any:
  """Stack arrays, or return the ShapeDtypeStruct of the stacked array."""
  first = leaves[0]
  if not isinstance(first, jax.ShapeDtypeStruct):
    return jnp.stack(leaves)
  layout = first.sharding
  if isinstance(layout, NamedSharding):
    layout = NamedSharding(layout.mesh, P(None, *layout.spec))
  return jax.ShapeDtypeStruct((len(leaves), *first.shape), first.dtype, sharding=layout)


def _take(leaf: Any, i: int) -> Any:
  """Return the array of one layer, or its ShapeDtypeStruct."""
  if not isinstance(leaf, jax.ShapeDtypeStruct):
    return leaf[i]
  layout = leaf.sharding
  if isinstance(layout, NamedSharding):
    layout = NamedSharding(layout.mesh, P(*layout.spec[1:]))
  return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype, sharding=layout)
