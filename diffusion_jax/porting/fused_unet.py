"""U-Nets with one tensor for attention's query, key and value, in several orders."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Int

from diffusion_jax.porting.layout import Content
from diffusion_jax.porting.tensors import Pair, Shape, Tensors
from diffusion_jax.types import UserError

FUSED = ("query", "key", "value")

RowOrder = Literal["parts", "heads", "channels"]
"""Order of a fused tensor's rows, from the slowest changing to the fastest.

parts: query, key, value; then heads, then a head's channels. heads: heads; then query, key, value,
then a head's channels. channels: heads, then a head's channels, then query, key, value.
"""

AXES = {"parts": (0, 1, 2), "heads": (1, 0, 2), "channels": (1, 2, 0)}


class Place(NamedTuple):
  """Place of a layer in our U-Net.

  Attributes:
    way: "down", "up", "middle" or "" for the layers outside.
    level: number of the level, 0 at full resolution.
    kind: "block", "half", "double", "input" or "attention" (of the middle).
    number: number of the block on its level.
    has_attention: whether the layer is part of a block's attention.
    part: the layer's path below, e.g. "conv1/conv", "qkv".
  """

  way: str
  level: int
  kind: str
  number: int
  has_attention: bool
  part: str


def unet_place(layer: str) -> Place:
  """Return the place of a layer by its path, e.g. "down1_block0_attention/qkv"."""
  place, _, part = layer.partition("/")
  stage, _, rest = place.partition("_")
  way = stage.rstrip("0123456789")
  if way not in ("down", "up", "middle") or not part:
    return Place("", 0, "", 0, False, layer)
  level = int(stage.removeprefix(way) or 0)
  attention = rest.endswith("attention")
  kind, number = rest.removesuffix("_attention"), 0
  if kind.startswith("block"):
    kind, number = "block", int(kind.removeprefix("block"))
  return Place(way, level, kind, number, attention, part)


def told_shape(content: Content, name: str, num_axes: int) -> Shape:
  """Return the shape of a tensor from which a setting of the network is read.

  Raises:
    UserError: there is no such tensor, or it has another number of axes, or no elements.
  """
  if name not in content.tensors:
    raise UserError(f"{content.where} has no tensor {name}, which this architecture needs")
  shape = content.tensors[name].shape
  if len(shape) != num_axes or 0 in shape:
    raise UserError(
      f"{content.where}: {name} has the shape {list(shape)}, this architecture needs {num_axes} "
      "axes"
    )
  return shape


def unet_pairs(
  shapes: Mapping[str, Shape], name_of: Callable[[str, str], str], attention_axes: int
) -> list[Pair]:
  """Return the table of a U-Net's parameters and the tensors that hold them.

  Args:
    shapes: shape of each parameter by path.
    name_of: (path of a layer, "weight" or "bias") -> name of its tensor; the fused layer is "qkv".
    attention_axes: axes of length 1 at the end of the weights of attention's layers.
  """
  found, pixel = [], (1,) * attention_axes
  for path, shape in shapes.items():
    layer, _, ours = path.rpartition("/")
    place, _, part = layer.rpartition("/")
    leaf, is_kernel = "bias" if ours == "bias" else "weight", ours == "kernel"
    turned = (*shape[::-1],)
    if part == FUSED[0]:
      paths = tuple(f"{place}/{name}/{ours}" for name in FUSED)
      fused = (3 * turned[0], *turned[1:], *(pixel if is_kernel else ()))
      found.append(Pair(paths, (name_of(f"{place}/qkv", leaf),), fused))
    elif part not in FUSED:
      axes = (1, 1) if part == "shortcut" else pixel if part == "out" else None
      stored = (*turned, *axes) if axes is not None and is_kernel else None
      found.append(Pair((path,), (name_of(layer, leaf),), stored))
  return found


def rows_by_part(width: int, num_heads: int, order: RowOrder) -> Int[np.ndarray, "R"]:
  """Return the rows of a fused tensor that put all queries first, then keys, then values.

  Args:
    width: number of channels of the attention layer.
    num_heads: number of heads, a divisor of the width.
    order: order of the fused tensor's rows.
  """
  sizes, axes = (3, num_heads, width // num_heads), AXES[order]
  rows = np.arange(3 * width).reshape([sizes[axis] for axis in axes])
  return rows.transpose(np.argsort(axes)).ravel()


def by_part(
  tensors: Tensors, num_heads: Callable[[int], int], order: RowOrder, back: bool = False
) -> dict[str, Any]:
  """Return the tensors with all layers' queries first, then keys, then values.

  Args:
    tensors: arrays by name; those of layers named "qkv" are reordered.
    num_heads: number of heads of a layer by its width.
    order: order of the fused tensors' rows.
    back: true to invert.
  """

  def reordered(array: Any) -> Any:
    width = len(array) // 3 if array.ndim else 0
    heads = num_heads(width)
    if len(array.shape) == 0 or len(array) != 3 * width or not heads or width % heads:
      return array  # of another shape than the network has, so it will be refused by its name
    rows = rows_by_part(width, heads, order)
    return array[np.argsort(rows) if back else rows]

  return {
    name: reordered(array) if "qkv" in name.split(".") else array for name, array in tensors.items()
  }
