"""Modules in the files of score_sde, from which the network's sizes follow."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from diffusion_jax.porting.flax_names import shape_of
from diffusion_jax.porting.tensors import Tensors
from diffusion_jax.types import UserError

MODULE = re.compile(r"(?:module\.)?all_modules\.(\d+)\.(.+)")
PYRAMIDS = "an output or input pyramid (progressive=output_skip, progressive_input=input_skip)"


class Modules(NamedTuple):
  """Sizes of a network.

  Attributes:
    channels: width of the first convolution.
    data_channels: channels of the images.
    widths: width of each level.
    num_blocks: blocks of a level on the way down.
    attention_widths: widths of the attention blocks, in their order.
    attended: levels with attention; None: the file does not tell them.
    has_blocks_between: True if residual blocks change the resolution, as in NCSN++ and DDPM++.
    input_residual: True if each level gets the image.
    is_fourier: True for the embedding by random frequencies.
  """

  channels: int
  data_channels: int
  widths: tuple[int, ...]
  num_blocks: int
  attention_widths: tuple[int, ...]
  attended: tuple[int, ...] | None
  has_blocks_between: bool
  input_residual: bool
  is_fourier: bool


class Block(NamedTuple):
  """A residual block: widths of its input and output, and whether its shortcut has weights."""

  inputs: int
  outputs: int
  has_shortcut: bool

  @property
  def resamples(self) -> bool:
    """Return whether it changes the resolution: only then is a shortcut of one width projected."""
    return self.has_shortcut and self.inputs == self.outputs


def is_torch(names: Collection[str]) -> bool:
  """Return whether the tensors' names are those of a PyTorch file."""
  return any(MODULE.fullmatch(name) for name in names)


def flax_modules(tensors: Tensors, where: str) -> Modules:
  """Return the sizes for a flax file.

  Raises:
    UserError: the network has parts that ours does not have.
  """
  if any(name.startswith(("Combine_", "GroupNorm_1/")) for name in tensors):
    raise UserError(f"{where}: {PYRAMIDS} is not supported")
  is_big = any(name.startswith("ResnetBlockBigGANpp_0/") for name in tensors)
  kind, attention = ("BigGANpp", "AttnBlockpp") if is_big else ("DDPM", "AttnBlock")
  *_, data_channels, channels = shape_of(tensors, "Conv_0/kernel", 4, where)
  shortcut, blocks = "Conv_2/kernel" if is_big else "NIN_0/W", []
  for stem in _numbered(f"ResnetBlock{kind}", tensors):
    *_, inputs, outputs = shape_of(tensors, f"{stem}/Conv_0/kernel", 4, where)
    blocks.append(Block(inputs, outputs, f"{stem}/{shortcut}" in tensors))
  halvings = 0 if is_big else sum(1 for _ in _numbered("Downsample", tensors))
  widths = [
    shape_of(tensors, f"{stem}/NIN_0/W", 2, where)[1] for stem in _numbered(attention, tensors)
  ]
  sizes = _sizes(blocks, is_big, halvings, where)
  has_input = is_big and any(name.startswith("Downsample_0/") for name in tensors)
  if has_input and "Downsample_0/Conv2d_0/weight" not in tensors:
    raise UserError(f"{where}: an input pyramid without a filter (fir=False) is not supported")
  fourier = "GaussianFourierProjection_0/W" in tensors
  return Modules(channels, data_channels, *sizes, tuple(widths), None, is_big, has_input, fourier)


def _numbered(kind: str, tensors: Tensors) -> Iterator[str]:
  """Yield kind_0, kind_1, ... as far as there are tensors of it."""
  present = {name.partition("/")[0] for name in tensors}
  number = 0
  while (stem := f"{kind}_{number}") in present:
    yield stem
    number += 1


def _sizes(
  blocks: list[Block], is_big: bool, halvings: int, where: str
) -> tuple[tuple[int, ...], int]:
  """Return the widths of the levels and the number of blocks in each on the way down."""
  if is_big:
    resampling = [i for i, block in enumerate(blocks) if block.resamples]
    halvings = len(resampling) // 2
    blocks = [block for block in blocks if not block.resamples]
  levels = halvings + 1
  per_level, rest = divmod(len(blocks) - 2 - levels, 2 * levels)
  if rest or per_level < 1:
    raise UserError(
      f"{where}: {len(blocks)} residual blocks do not fit {levels} levels of equal depth"
    )
  return tuple(block.outputs for block in blocks[: levels * per_level : per_level]), per_level


def torch_modules(tensors: Tensors, where: str) -> Modules:
  """Return the sizes for a PyTorch file.

  Raises:
    UserError: the network has parts that ours does not have.
  """
  kinds = _torch_kinds(tensors)
  order = list(kinds.values())
  if "combine" in order or order.count("norm") > 1:
    raise UserError(f"{where}: {PYRAMIDS} is not supported")
  if order.count("conv") < 2 or "block" not in order:
    raise UserError(f"{where}: its modules are no network of score_sde")
  first = _of_kind("conv", kinds)[0]
  channels, data_channels, *_ = shape_of(tensors, f"{first}.weight", 4, where)
  blocks, is_big = [], False
  for stem in _of_kind("block", kinds):
    outputs, inputs, *_ = shape_of(tensors, f"{stem}.Conv_0.weight", 4, where)
    is_big = is_big or f"{stem}.Conv_2.weight" in tensors
    has_shortcut = f"{stem}.Conv_2.weight" in tensors or f"{stem}.NIN_0.W" in tensors
    blocks.append(Block(inputs, outputs, has_shortcut))
  widths, num_blocks = _sizes(blocks, is_big, order.count("resize") // 2, where)
  attention = [
    shape_of(tensors, f"{stem}.NIN_0.W", 2, where)[1] for stem in _of_kind("attention", kinds)
  ]
  down = len(widths) * num_blocks + (len(widths) - 1 if is_big else 0)
  attended = _attended_levels(order, down, num_blocks + is_big)
  return Modules(
    channels, data_channels, widths, num_blocks, tuple(attention), attended, is_big,
    "input" in order, order[0] == "fourier",
  )  # fmt: skip


def _torch_kinds(tensors: Tensors) -> dict[str, str]:
  """Return the kind of each module by the start of its tensors' names, in their order."""
  inside: dict[tuple[int, str], dict[str, tuple[int, ...]]] = {}
  for name, tensor in tensors.items():
    if match := MODULE.fullmatch(name):
      place = int(match[1]), name[: match.start(2) - 1]
      inside.setdefault(place, {})[match[2]] = tensor.shape
  return {stem: _torch_kind(shapes) for (_, stem), shapes in sorted(inside.items())}


def _torch_kind(shapes: Mapping[str, tuple[int, ...]]) -> str:
  """Return the kind of a module, as in `score_sde.KINDS`; "resize" is a half or a double."""
  if "GroupNorm_0.weight" in shapes:
    return "block" if "GroupNorm_1.weight" in shapes else "attention"
  if "Conv_0.weight" in shapes:
    return "combine" if shapes["Conv_0.weight"][2:] == (1, 1) else "resize"
  if "Conv2d_0.weight" in shapes:
    return "input"
  if "W" in shapes:
    return "fourier"
  return {1: "norm", 2: "dense", 4: "conv"}.get(len(shapes.get("weight", ())), "other")


def _of_kind(kind: str, kinds: Mapping[str, str]) -> list[str]:
  return [stem for stem, found in kinds.items() if found == kind]


def _attended_levels(order: Sequence[str], num_down: int, per_level: int) -> tuple[int, ...]:
  """Return the levels with attention.

  Args:
    order: kinds of all modules.
    num_down: number of residual blocks on the way down.
    per_level: number of them in a level, with the one that halves.
  """
  levels, number = set(), 0
  for kind in order:
    number += kind == "block"
    if number > num_down:
      break
    if kind == "attention":
      levels.add((number - 1) // per_level)
  return tuple(sorted(levels))


def with_named_average(groups: Mapping[str, Tensors], where: str) -> Mapping[str, Tensors]:
  """Return a PyTorch file's groups with the average by the names of the parameters.

  score_sde keeps it as `ema/shadow_params`, in the order of the trained parameters of `model`.
  Buffers and random frequencies, which are not trained, come from `model`.

  Raises:
    UserError: the list does not fit the parameters.
  """
  model, average = groups.get("model", {}), groups.get("ema", {})
  if not model or not any(name.startswith("shadow_params/") for name in average):
    return groups
  trained = [name for name in model if not name.endswith(("sigmas", "all_modules.0.W"))]
  order = [f"shadow_params/{i}" for i in range(len(trained))]
  if set(order) != average.keys() or any(
    average[place].shape != model[name].shape for place, name in zip(order, trained, strict=True)
  ):
    raise UserError(
      f"{where}: the averages ema/shadow_params do not fit the parameters of model; --group=model "
      "reads those"
    )
  named = {name: average[place] for place, name in zip(order, trained, strict=True)}
  return {**groups, "ema": {**model, **named}}
