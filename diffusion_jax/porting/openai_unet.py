"""State dicts of openai's improved-diffusion and guided-diffusion (ADM).

Facts of both repositories: `unet.py` (names, the order of fused rows), `script_util.py` (sides,
defaults) and the flags in their READMEs. A file has no settings: what neither names nor shapes tell
is as in the published models, and `assumed` lists it.
"""

import functools
import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from diffusion_jax.models import UNet
from diffusion_jax.porting.fused_unet import RowOrder, by_part, told_shape, unet_pairs, unet_place
from diffusion_jax.porting.layout import Content, Described, FileLayout, Layout
from diffusion_jax.porting.tensors import Pair, Shape, Tensors, with_null_row, with_rows
from diffusion_jax.types import ImageSpec, UserError

FIRST, LAST, LABELS = "input_blocks.0.0.weight", "out.2.weight", "label_emb.weight"

TOP = {
  "time1": "time_embed.0", "time2": "time_embed.2", "label": "label_emb",
  "conv_in/conv": "input_blocks.0.0", "norm_out/group": "out.0", "conv_out/conv": "out.2",
}  # fmt: skip
IN_BLOCK = {
  "norm1/group": "in_layers.0", "conv1/conv": "in_layers.2", "embed": "emb_layers.1",
  "norm2/group": "out_layers.0", "conv2/conv": "out_layers.3", "shortcut": "skip_connection",
  "norm/group": "norm", "qkv": "qkv", "out": "proj_out", "conv": "op", "conv3/conv": "conv",
}  # fmt: skip
"""Layers of our blocks, of attention, and of halving and doubling -> theirs."""

SIDES = {
  (1, 2, 2, 2): 32, (1, 2, 3, 4): 64, (1, 1, 2, 3, 4): 128, (1, 1, 2, 2, 4, 4): 256,
  (1, 2, 2, 4, 4, 8, 8): 512,
}  # fmt: skip
"""Multipliers of the first width -> side of the images, by which the originals choose them."""

UPWARDS = re.compile(r"output_blocks\.(\d+)\.[1-9]\d*\.(conv|in_layers\.2)\.weight")
"""Weight of a layer that doubles the resolution."""


def _pairs(network: UNet, shapes: Mapping[str, Shape]) -> list[Pair]:
  """Return the table of a network's parameters and the tensors that hold them.

  Args:
    network: config of the network.
    shapes: shape of each parameter by path.
  """
  levels, per_level = len(network.multipliers), network.num_blocks + 1

  def name_of(layer: str, leaf: str) -> str:
    if layer in TOP:
      return f"{TOP[layer]}.{leaf}"
    at = unet_place(layer)
    if at.way == "middle":
      return f"middle_block.{1 if at.has_attention else 2 * at.number}.{IN_BLOCK[at.part]}.{leaf}"
    number = network.num_blocks if at.kind in ("half", "double") else at.number
    order = 0 if at.kind == "block" else 1
    if at.way == "down":
      index, order = 1 + at.level * per_level + number, int(at.has_attention)
      return f"input_blocks.{index}.{order}.{IN_BLOCK[at.part]}.{leaf}"
    attends = f"up{at.level}_block{number}_attention/out/kernel" in shapes
    order = int(at.has_attention) if at.kind == "block" else 1 + attends
    index = (levels - 1 - at.level) * per_level + number
    return f"output_blocks.{index}.{order}.{IN_BLOCK[at.part]}.{leaf}"

  return unet_pairs(shapes, name_of, attention_axes=1)


def _prepared(tensors: Tensors, network: UNet, spec: ImageSpec, order: RowOrder) -> Tensors:
  ordered = by_part(tensors, network.recipe.heads, order)
  return with_null_row(ordered, LABELS, spec.num_classes)


def _restored(tensors: Tensors, network: UNet, num_labels: int, order: RowOrder) -> Tensors:
  ordered = by_part(tensors, network.recipe.heads, order, back=True)
  return with_rows(ordered, LABELS, num_labels)


class _Structure(NamedTuple):
  """Structure that names and shapes tell."""

  multipliers: tuple[int, ...]
  num_blocks: int
  attended: tuple[int, ...]
  resampling: str


def _structure(content: Content) -> _Structure:
  names = content.tensors.keys()
  doubling = sorted((int(m[1]), m[2]) for name in names if (m := UPWARDS.fullmatch(name)))
  counts = [
    len({name.split(".")[1] for name in names if name.startswith(f"{way}.")})
    for way in ("input_blocks", "output_blocks")
  ]
  per_level = doubling[0][0] + 1 if doubling else counts[1]
  levels = len(doubling) + 1
  if per_level < 2 or counts != [levels * per_level, levels * per_level]:
    raise UserError(
      f"{content.where} has {counts[0]} input and {counts[1]} output blocks with {len(doubling)} "
      "doublings, which no supported U-Net of openai has"
    )
  width = told_shape(content, FIRST, 4)[0]
  firsts = [f"output_blocks.{(levels - 1 - level) * per_level}" for level in range(levels)]
  widths = [told_shape(content, f"{first}.0.out_layers.3.weight", 4)[0] for first in firsts]
  if any(w % width for w in widths):
    raise UserError(f"{content.where}: widths {widths} must be multiples of the first, {width}")
  attended = [level for level, first in enumerate(firsts) if f"{first}.1.qkv.weight" in names]
  kind = "convolution" if doubling and doubling[0][1] == "conv" else "block"
  return _Structure(tuple(w // width for w in widths), per_level - 1, tuple(attended), kind)


def _describe(content: Content, is_guided: bool) -> Described:
  """Return what the tensors tell, and else the settings of the published models."""
  found = _structure(content)
  (width, in_channels, *_), (out_channels, *_) = (
    told_shape(content, name, 4) for name in (FIRST, LAST)
  )
  _check_channels(content, in_channels, out_channels)
  side = content.image_size or SIDES.get(found.multipliers)
  if side is None:
    raise UserError(
      f"{content.where} does not tell the side of the images; add e.g. --image_size=64"
    )
  learned = out_channels == 2 * in_channels
  labels = told_shape(content, LABELS, 2)[0] if LABELS in content.tensors else 0
  affine = told_shape(content, "middle_block.0.emb_layers.1.weight", 2)
  embedded = told_shape(content, "time_embed.0.weight", 2)
  if embedded[1] % width or embedded[0] % width:
    raise UserError(f"{content.where}: an embedding of {embedded[1]} channels, {width} in others")
  heads = _heads(found, is_guided, affine[0] > found.multipliers[-1] * width)
  model = {
    "name": "unet", "channels": width, "multipliers": found.multipliers,
    "num_blocks": found.num_blocks,
    "attention_resolutions": tuple(side // 2**level for level in found.attended),
    "dropout": _dropout(found, is_guided), **heads,
    "adaptive_scale": affine[0] > found.multipliers[-1] * width, "resampling": found.resampling,
    "embedding": "positional_adm", "noise_multiplier": embedded[1] // width,
    "embedding_multiplier": embedded[0] // width, "init": "adm", "norm_epsilon": 1e-5,
    "norm_groups": 32, "downsample_padding": (1, 1), "learned_variance": learned,
  }  # fmt: skip
  process = _process(found, is_guided, learned, bool(labels))
  sections = {
    "generative": {
      "name": "diffusion", "prediction": "eps", "conditional": bool(labels), "label_dropout": 0.0,
    },
    "process": process,
    "model": model,
    **_variance_sections(process["num_timesteps"], is_guided, learned, bool(labels)),
  }  # fmt: skip
  assumed = [f"model.{name}" for name in heads] + ["model.dropout"]
  assumed += [f"process.{name}" for name in process] + ["sampler.steps"]
  assumed += [] if content.image_size else ["image_size"]
  assumed += ["architecture"] if is_guided else []
  return Described(sections, ImageSpec(side, side, in_channels, 256, labels), tuple(assumed))


def _check_channels(content: Content, in_channels: int, out_channels: int) -> None:
  if out_channels not in (in_channels, 2 * in_channels) or (in_channels, out_channels) == (6, 6):
    raise UserError(
      f"{content.where} takes {in_channels} channels and gives {out_channels}: it is no generator "
      "of images but, e.g., one of openai's upsamplers, which are not supported"
    )


def _heads(found: _Structure, is_guided: bool, adaptive: bool) -> dict[str, Any]:
  """Return the heads of the published models: LSUN's of 2021 has one, ADM-128 four."""
  if is_guided and len(found.multipliers) != 5:
    return {"channels_per_head": 64}
  return {"num_heads": 4 if adaptive else 1}


def _dropout(found: _Structure, is_guided: bool) -> float:
  """Return the dropout of the published models."""
  if is_guided:
    return 0.1 if SIDES.get(found.multipliers) == 64 else 0.0
  return 0.3 if SIDES.get(found.multipliers) == 32 else 0.0


def _process(found: _Structure, is_guided: bool, learned: bool, has_labels: bool) -> dict[str, Any]:
  """Return the noise of the published models; of both repositories' defaults for others."""
  if is_guided and SIDES.get(found.multipliers) == 64:
    return {"name": "cosine_vp", "num_timesteps": 1000}
  if is_guided or not learned or SIDES.get(found.multipliers) == 256:
    return {"name": "linear_vp", "num_timesteps": 1000}
  return {
    "name": "cosine_vp", "num_timesteps": 4000, "network_steps": None if has_labels else 1000,
  }  # fmt: skip


def _variance_sections(
  num_timesteps: int, is_guided: bool, learned: bool, has_labels: bool
) -> dict[str, Any]:
  """Return loss, sampler and bound; ADM's figures for ImageNet are of 250 steps."""
  steps = 250 if is_guided else num_timesteps
  sampler = {"name": "ancestral", "steps": steps, "spacing": "linspace", "clip": True}
  if not learned:
    return {"loss": {"name": "simple"}, "sampler": {**sampler, "variance": "fixed_large"}}
  is_rescaled = not is_guided and not has_labels
  return {
    "loss": {"name": "hybrid", "weight": 0.001 if is_rescaled else 1 / num_timesteps},
    "sampler": {**sampler, "variance": "learned"},
    "vlb": {"variance": "learned", "clip": True},
  }


def _is_openai(names: Collection[str]) -> bool:
  return FIRST in names and "time_embed.0.weight" in names and LAST in names


def _is_guided(names: Collection[str]) -> bool:
  doubling = [m[2] for name in names if (m := UPWARDS.fullmatch(name))]
  return _is_openai(names) and "in_layers.2" in doubling


def _is_adm_64(names: Collection[str]) -> bool:
  """Return whether the names are those of ADM-64, alone published with the new order of rows."""
  doublings = {int(m[1]) for name in names if (m := UPWARDS.fullmatch(name))}
  return _is_guided(names) and LABELS in names and doublings == {3, 7, 11}


def _layout(name: str, order: RowOrder, recognises: Any, is_guided: bool) -> FileLayout:
  prepared = functools.partial(_prepared, order=order)
  restored = functools.partial(_restored, order=order)
  describe = functools.partial(_describe, is_guided=is_guided)
  return FileLayout(Layout(name, _pairs, prepared, restored), recognises, describe)


OPENAI_UNETS = (
  _layout("guided-diffusion-new-order", "parts", _is_adm_64, True),
  _layout("guided-diffusion", "heads", _is_guided, True),
  _layout("improved-diffusion", "heads", _is_openai, False),
)
"""Layouts of openai's U-Nets, the special ones first.

They differ in what is assumed and in the order of the rows of attention's fused tensors, which
nothing in a file tells: flag use_new_attention_order of guided-diffusion.
"""
