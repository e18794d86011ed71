"""Networks of diffusers (PyTorch) with the weights of networks from here."""

import sys
from pathlib import Path

import numpy as np
import torch
from make_inception_fixture import import_torch_fidelity

import_torch_fidelity()  # makes torchvision importable, which diffusers' transformers import
import diffusers  # noqa: E402
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel  # noqa: E402

sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "models")]

from diffusion_jax.core.trees import named_leaves  # noqa: E402
from diffusion_jax.models import UNet  # noqa: E402

IN_UNET_BLOCK = {
  "norm1/group": "norm1", "norm2/group": "norm2", "conv1/conv": "conv1", "conv2/conv": "conv2",
  "embed": "time_emb_proj", "shortcut": "conv_shortcut", "norm/group": "group_norm",
  "query": "to_q", "key": "to_k", "value": "to_v", "out": "to_out.0",
}  # fmt: skip
UNET_TOP = {
  "time1": "time_embedding.linear_1", "time2": "time_embedding.linear_2",
  "conv_in/conv": "conv_in", "norm_out/group": "conv_norm_out", "conv_out/conv": "conv_out",
}  # fmt: skip
IN_DIT_BLOCK = {
  "modulation": "norm1.linear", "attention/query": "attn1.to_q", "attention/key": "attn1.to_k",
  "attention/value": "attn1.to_v", "attention/out": "attn1.to_out.0",
  "mlp_in": "ff.net.0.proj", "mlp_out": "ff.net.2",
}  # fmt: skip
EVERY_DIT_BLOCK = {  # of every block there, of the network here
  "time1": "timestep_embedder.linear_1", "time2": "timestep_embedder.linear_2",
  "label": "class_embedder.embedding_table",
}  # fmt: skip
DIT_TOP = {"patch_in": "pos_embed.proj", "modulation_out": "proj_out_1", "patch_out": "proj_out_2"}


def counterpart(case):
  """diffusers' network for a case of `network_cases`, with its weights, in evaluation mode."""
  build = _unet if isinstance(case.config, UNet) else _dit
  return build(case.config, case.spec, case.params())


def outputs(case, network):
  """What that network makes of the case's images and the original's times, B H W D."""
  images = torch.from_numpy(case.images().transpose(0, 3, 1, 2))
  named = {} if case.labels is None else {"class_labels": torch.from_numpy(case.labels)}
  with torch.no_grad():
    made = network(images, timestep=torch.from_numpy(case.original_time), **named).sample
  return made.numpy().transpose(0, 2, 3, 1)


def _unet(config, spec, params):
  sides = [spec.height // 2**level for level in range(len(config.multipliers))]
  attention = [side in config.attention_resolutions for side in sides]
  widths = [config.channels * multiplier for multiplier in config.multipliers]
  attended = {width for width, there in zip(widths, attention, strict=True) if there}
  head = {width // config.num_heads for width in attended | {widths[-1]}}
  network = diffusers.UNet2DModel(
    sample_size=spec.height, in_channels=spec.channels,
    out_channels=spec.channels * (2 if config.learned_variance else 1),
    block_out_channels=widths, layers_per_block=config.num_blocks,
    down_block_types=["AttnDownBlock2D" if there else "DownBlock2D" for there in attention],
    up_block_types=["AttnUpBlock2D" if there else "UpBlock2D" for there in attention[::-1]],
    attention_head_dim=head.pop() if config.num_heads > 1 else None,
    downsample_padding={(0, 1): 0, (1, 1): 1}[config.downsample_padding],
    resnet_time_scale_shift="scale_shift" if config.adaptive_scale else "default",
    flip_sin_to_cos=config.embedding == "positional_adm",
    freq_shift=0 if config.embedding == "positional_adm" else 1,
    norm_eps=config.norm_epsilon, norm_num_groups=config.norm_groups,
    attn_norm_num_groups=config.norm_groups,
  ).eval()  # fmt: skip
  shapes = {name: value.shape for name, value in network.state_dict().items()}
  state = {
    (name := unet_name(ours, len(widths))): _in_torch(value).reshape(shapes[name])
    for ours, value in named_leaves(params).items()
  }
  network.load_state_dict(state, strict=True)  # every parameter has its partner
  return network


def unet_name(name, num_levels):
  """diffusers' name of a U-Net's parameter."""
  path, _, leaf = name.rpartition("/")
  leaf = "bias" if leaf == "bias" else "weight"
  if path in UNET_TOP:
    return f"{UNET_TOP[path]}.{leaf}"
  place, _, part = path.partition("/")
  kind, _, rest = place.partition("_")
  kind, level = kind.rstrip("0123456789"), int(kind.strip("adeilmnopuw") or 0)
  if kind == "up":
    level = num_levels - 1 - level
  stem = "mid_block" if kind == "middle" else f"{kind}_blocks.{level}"
  if rest == "half":
    return f"{stem}.downsamplers.0.conv.{leaf}"
  if rest == "double":
    return f"{stem}.upsamplers.0.conv.{leaf}"
  if rest.endswith("attention"):
    number = rest.removeprefix("block").removesuffix("_attention") if "_" in rest else 0
    return f"{stem}.attentions.{number}.{IN_UNET_BLOCK[part]}.{leaf}"
  return f"{stem}.resnets.{rest.removeprefix('block')}.{IN_UNET_BLOCK[part]}.{leaf}"


def _dit(config, spec, params):
  network = DiTTransformer2DModel(
    num_attention_heads=config.heads, attention_head_dim=config.hidden // config.heads,
    in_channels=spec.channels, out_channels=spec.channels * (2 if config.learned_variance else 1),
    num_layers=config.depth, sample_size=spec.height, patch_size=config.patch,
    num_embeds_ada_norm=spec.num_classes, norm_eps=1e-6,
  ).eval()  # fmt: skip
  for block in network.transformer_blocks:  # the paper's code has dim / 2 there, diffusers less 1
    block.norm1.emb.time_proj.downscale_freq_shift = 0
  state = {}
  for ours, value in named_leaves(params).items():
    if ours == "patch_in/kernel":  # there a convolution, O I H W
      value = value.reshape(config.patch, config.patch, spec.channels, config.hidden)
    turned = torch.from_numpy(value) if ours.startswith("label/") else _in_torch(value)
    state |= dict.fromkeys(dit_names(ours, config.depth), turned)
  assert set(state) == set(dict(network.named_parameters()))
  positions = {"pos_embed.pos_embed": network.pos_embed.pos_embed}
  network.load_state_dict(state | positions, strict="pos_embed.pos_embed" in network.state_dict())
  return network


def dit_names(name, depth):
  """diffusers' names of a transformer's parameter; its blocks embed time and class themselves."""
  path, _, leaf = name.rpartition("/")
  leaf = "bias" if leaf == "bias" else "weight"
  if path in DIT_TOP:
    return [f"{DIT_TOP[path]}.{leaf}"]
  if path in EVERY_DIT_BLOCK:
    stem = EVERY_DIT_BLOCK[path]
    return [f"transformer_blocks.{i}.norm1.emb.{stem}.{leaf}" for i in range(depth)]
  block, _, rest = path.partition("/")
  return [f"transformer_blocks.{block.removeprefix('block')}.{IN_DIT_BLOCK[rest]}.{leaf}"]


def _in_torch(value):
  """Kernels H W I O as O I H W, dense ones I O as O I."""
  order = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[value.ndim]
  return torch.from_numpy(np.ascontiguousarray(value.transpose(order)))
