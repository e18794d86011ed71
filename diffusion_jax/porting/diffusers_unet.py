"""The U-Net of diffusers, `UNet2DModel`: its config and its tensors, both ways."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from diffusion_jax.models import UNet
from diffusion_jax.porting.layout import DiffusersLayout, Layout, Sections
from diffusion_jax.porting.tensors import Pair, Shape, Tensors, with_null_row, with_rows
from diffusion_jax.runs.experiment import Experiment
from diffusion_jax.types import ImageSpec, UserError

IN_BLOCK = {
  "norm1/group": "norm1", "norm2/group": "norm2", "conv1/conv": "conv1", "conv2/conv": "conv2",
  "embed": "time_emb_proj", "shortcut": "conv_shortcut", "norm/group": "group_norm",
  "query": "to_q", "key": "to_k", "value": "to_v", "out": "to_out.0",
}  # fmt: skip
TOP = {
  "time1": "time_embedding.linear_1", "time2": "time_embedding.linear_2",
  "label": "class_embedding", "conv_in/conv": "conv_in", "norm_out/group": "conv_norm_out",
  "conv_out/conv": "conv_out",
}  # fmt: skip
LABELS, LABEL_COUNT = "class_embedding.weight", "num_class_embeds"
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names of attention's layers in files of before diffusers 0.15."""


def pairs(network: UNet, shapes: Mapping[str, Shape]) -> list[Pair]:
  """Return the table of a network's parameters and the tensors that hold them.

  Args:
    network: config of the network.
    shapes: shape of each parameter by path.
  """
  num_levels = len(network.multipliers)
  return [
    Pair((path,), (_name(path, num_levels),), _shape(path, shape)) for path, shape in shapes.items()
  ]


def _shape(path: str, shape: Shape) -> Shape | None:
  """Return the shape of a tensor that is no turned parameter: a shortcut is a convolution."""
  return (shape[1], shape[0], 1, 1) if path.endswith("/shortcut/kernel") else None


def _name(path: str, num_levels: int) -> str:
  layer, _, leaf = path.rpartition("/")
  leaf = "bias" if leaf == "bias" else "weight"
  if layer in TOP:
    return f"{TOP[layer]}.{leaf}"
  place, _, part = layer.partition("/")
  stage, _, rest = place.partition("_")
  if stage == "middle":
    stem = "mid_block"
  else:
    kind, level = stage.rstrip("0123456789"), int(stage.lstrip("downup"))
    stem = f"{kind}_blocks.{num_levels - 1 - level if kind == 'up' else level}"
  if rest == "half":
    return f"{stem}.downsamplers.0.conv.{leaf}"
  if rest == "double":
    return f"{stem}.upsamplers.0.conv.{leaf}"
  if rest.endswith("attention"):
    number = rest.removeprefix("block").removesuffix("_attention") if "_" in rest else 0
    return f"{stem}.attentions.{number}.{IN_BLOCK[part]}.{leaf}"
  return f"{stem}.resnets.{rest.removeprefix('block')}.{IN_BLOCK[part]}.{leaf}"


def prepared(tensors: Tensors, network: UNet, spec: ImageSpec) -> Tensors:
  """Return the tensors with today's names of attention's layers and a row for the null class."""
  return with_null_row(with_new_names(tensors), LABELS, spec.num_classes)


def with_new_names(tensors: Tensors) -> Tensors:
  """Return the tensors with today's names of attention's layers."""

  def renamed(name: str) -> str:
    *stem, layer, leaf = name.split(".")
    is_old = "attentions" in stem and layer in OLD_NAMES
    return ".".join([*stem, OLD_NAMES[layer], leaf]) if is_old else name

  return {renamed(name): value for name, value in tensors.items()}


FIXED: Mapping[str, tuple[Any, ...]] = {
  "center_input_sample": (False,), "time_embedding_type": ("positional",),
  "mid_block_scale_factor": (1, 1.0), "downsample_type": ("conv",), "upsample_type": ("conv",),
  "act_fn": ("silu", "swish"), "class_embed_type": (None,), "add_attention": (True,),
  "mid_block_type": ("UNetMidBlock2D",), "num_train_timesteps": (None,),
}  # fmt: skip
"""Fields of a UNet2DModel -> values that our U-Net has, the default first."""

DEFAULTS: Mapping[str, Any] = {
  "freq_shift": 0, "flip_sin_to_cos": True, "layers_per_block": 2, "downsample_padding": 1,
  "dropout": 0.0, "attention_head_dim": 8, "norm_num_groups": 32, "attn_norm_num_groups": None,
  "norm_eps": 1e-5, "resnet_time_scale_shift": "default", "num_class_embeds": None,
}  # fmt: skip


def unet_from_diffusers(stored: Mapping[str, Any], where: str) -> tuple[UNet, ImageSpec]:
  """Return our network and the shape of its images for a stored config of a UNet2DModel.

  Raises:
    UserError: a field has a value that our U-Net does not have, or one is missing.
  """
  for field, allowed in FIXED.items():
    if (value := stored.get(field, allowed[0])) not in allowed:
      raise UserError(f"{where}: {field}={value!r} is not supported; needed {allowed[0]!r}")
  get = lambda field: stored.get(field, DEFAULTS[field])  # noqa: E731
  try:
    side, channels = stored["sample_size"], stored["in_channels"]
    widths, out = tuple(stored["block_out_channels"]), stored["out_channels"]
    down, up = list(stored["down_block_types"]), list(stored["up_block_types"])
  except KeyError as error:
    raise UserError(f"{where} has no field {error.args[0]}") from error
  height, width = (side, side) if isinstance(side, int) else tuple(side)
  if out not in (channels, 2 * channels):
    raise UserError(f"{where}: out_channels={out} must be in_channels={channels} or twice that")
  if any(w % widths[0] for w in widths):
    raise UserError(f"{where}: block_out_channels={list(widths)} must be multiples of the first")
  attended = _attended(down, up, height, where)
  groups = get("norm_num_groups")
  if (attention_groups := get("attn_norm_num_groups")) not in (None, groups):
    raise UserError(f"{where}: attn_norm_num_groups={attention_groups} must be {groups} or null")
  embeddings: dict[Any, Any] = {(1, False): "positional", (0, True): "positional_adm"}
  if (kind := (get("freq_shift"), get("flip_sin_to_cos"))) not in embeddings:
    raise UserError(
      f"{where}: freq_shift={kind[0]} with flip_sin_to_cos={kind[1]} is not supported; needed 1 "
      "with false, or 0 with true"
    )
  paddings = {0: (0, 1), 1: (1, 1)}
  if (padding := get("downsample_padding")) not in paddings:
    raise UserError(f"{where}: downsample_padding={padding} must be 0 or 1")
  scales = {"default": False, "scale_shift": True}
  if (scale := get("resnet_time_scale_shift")) not in scales:
    raise UserError(f"{where}: resnet_time_scale_shift={scale!r} must be default or scale_shift")
  if scales[scale] and attention_groups is None:  # then there is no norm before that attention
    raise UserError(
      f"{where}: attn_norm_num_groups=null with resnet_time_scale_shift=scale_shift is not "
      f"supported; needed {groups}"
    )
  head = get("attention_head_dim")
  try:
    network = UNet(
      channels=widths[0], multipliers=tuple(w // widths[0] for w in widths),
      num_blocks=get("layers_per_block"), attention_resolutions=attended, dropout=get("dropout"),
      num_heads=1, channels_per_head=head, adaptive_scale=scales[scale],
      embedding=embeddings[kind], norm_epsilon=get("norm_eps"), norm_groups=groups,
      downsample_padding=paddings[padding], learned_variance=out == 2 * channels,
    )  # fmt: skip
  except ValueError as error:
    raise UserError(f"{where}: {error}") from error
  labels = get("num_class_embeds") or 0
  numbers = {"sample_size": height, "in_channels": channels, LABEL_COUNT: labels}
  if wrong := [n for n, v in numbers.items() if type(v) is not int or v < (n != LABEL_COUNT)]:
    raise UserError(f"{where}: {wrong[0]}={numbers[wrong[0]]!r} must be a positive number")
  return network, ImageSpec(height, width, channels, 256, labels)


def _attended(down: list[str], up: list[str], height: int, where: str) -> tuple[int, ...]:
  """Return the sides of the levels with attention, equal on the way down and up."""
  known = {"DownBlock2D": False, "AttnDownBlock2D": True, "UpBlock2D": False, "AttnUpBlock2D": True}
  for name in [*down, *up]:
    if name not in known:
      raise UserError(
        f"{where}: a block {name} is not supported; DownBlock2D, AttnDownBlock2D, UpBlock2D and "
        "AttnUpBlock2D are"
      )
  there = [known[name] for name in down]
  if there != [known[name] for name in reversed(up)]:
    raise UserError(f"{where}: attention must be at the same levels on the way down and up")
  return tuple(height // 2**level for level, has in enumerate(there) if has)


def unet_for_diffusers(network: UNet, spec: ImageSpec, num_labels: int) -> dict[str, Any]:
  """Return the config of the UNet2DModel that computes the same.

  Raises:
    UserError: diffusers has no such U-Net; the message names the field.
  """
  only: dict[str, tuple[Any, ...]] = {
    "decoder_attention": ("every",), "skip_scale": (1.0,), "resampling": ("convolution",),
    "input_residual": (False,), "embedding": ("positional", "positional_adm"),
    "noise_multiplier": (1,), "embedding_multiplier": (4,), "label_embedding": ("table",),
    "time_offset": (0.0,), "augmentation_labels": (0,),
  }  # fmt: skip
  for field, allowed in only.items():
    if (value := getattr(network, field)) not in allowed:
      raise UserError(
        f"`model.{field}={value}`: diffusers' UNet2DModel has only {' or '.join(map(str, allowed))}"
      )
  sides = [spec.height // 2**level for level in range(len(network.multipliers))]
  attention = [side in network.attention_resolutions for side in sides]
  widths = [network.channels * multiplier for multiplier in network.multipliers]
  attended = {w for w, there in zip(widths, attention, strict=True) if there} | {widths[-1]}
  return {
    "_class_name": "UNet2DModel",
    "sample_size": spec.height if spec.height == spec.width else [spec.height, spec.width],
    "in_channels": spec.channels,
    "out_channels": spec.channels * (2 if network.learned_variance else 1),
    "block_out_channels": widths,
    "layers_per_block": network.num_blocks,
    "down_block_types": ["AttnDownBlock2D" if there else "DownBlock2D" for there in attention],
    "up_block_types": ["AttnUpBlock2D" if there else "UpBlock2D" for there in attention[::-1]],
    "attention_head_dim": _head_width(network, attended),
    "dropout": network.dropout,
    "downsample_padding": 0 if network.downsample_padding == (0, 1) else 1,
    "resnet_time_scale_shift": "scale_shift" if network.adaptive_scale else "default",
    "flip_sin_to_cos": network.embedding == "positional_adm",
    "freq_shift": 0 if network.embedding == "positional_adm" else 1,
    "norm_eps": network.norm_epsilon,
    "norm_num_groups": _groups(network, widths),
    "attn_norm_num_groups": _groups(network, widths),
    "num_class_embeds": num_labels or None,
  }


def _head_width(network: UNet, attended: set[int]) -> int | None:
  if network.channels_per_head is not None:
    return network.channels_per_head
  if network.num_heads == 1:
    return None
  if len(attended) > 1:
    raise UserError(
      f"`model.num_heads={network.num_heads}`: diffusers' UNet2DModel has heads of one width, and "
      f"attention is at {len(attended)} widths"
    )
  return attended.pop() // network.num_heads


def _groups(network: UNet, widths: list[int]) -> int:
  """Return the number of groups of all norms, which diffusers has equal."""
  from diffusion_jax.models.layers import num_groups

  found = {num_groups(width, network.norm_groups) for width in widths}
  joined = {a + b for a in widths for b in widths}
  found |= {num_groups(width, network.norm_groups) for width in joined}
  if len(found) > 1:
    raise UserError(
      "`model.norm_groups=None`: diffusers' UNet2DModel has one number of groups at all widths; "
      "train with e.g. `model.norm_groups=32`"
    )
  return found.pop()


def _read_config(stored: Mapping[str, Any], where: str) -> tuple[Sections, ImageSpec]:
  network, spec = unet_from_diffusers(stored, where)
  return {"model": {"name": "unet", **dataclasses.asdict(network)}}, spec


def _write_config(experiment: Experiment, spec: ImageSpec, num_labels: int) -> dict[str, Any]:
  if fields := experiment.sections["generative"].fields:
    raise UserError(
      f"`generative.fields={','.join(fields)}`: diffusers' UNet2DModel takes no arrays"
    )
  return unet_for_diffusers(experiment.sections["model"], spec, num_labels)


def _restored(tensors: Tensors, network: UNet, num_labels: int) -> Tensors:
  return with_rows(tensors, LABELS, num_labels)


UNET_2D = DiffusersLayout(
  Layout("UNet2DModel", pairs, prepared, _restored), _read_config, _write_config
)
