"""The transformer of diffusers, `DiTTransformer2DModel`: config and tensors, both ways.

Each of its blocks has copies of the layers that embed time and class; ours has them once.
"""

from collections.abc import Mapping
from typing import Any

from diffusion_jax.models import DiT
from diffusion_jax.porting.dit_weights import folded, unfolded
from diffusion_jax.porting.layout import DiffusersLayout, Layout, Sections
from diffusion_jax.porting.tensors import Pair, Shape, Tensors
from diffusion_jax.runs.experiment import Experiment
from diffusion_jax.types import ImageSpec, UserError

IN_BLOCK = {
  "modulation": "norm1.linear", "attention/query": "attn1.to_q", "attention/key": "attn1.to_k",
  "attention/value": "attn1.to_v", "attention/out": "attn1.to_out.0",
  "mlp_in": "ff.net.0.proj", "mlp_out": "ff.net.2",
}  # fmt: skip
IN_EVERY_BLOCK = {
  "time1": "timestep_embedder.linear_1", "time2": "timestep_embedder.linear_2",
  "label": "class_embedder.embedding_table",
}  # fmt: skip
TOP = {"patch_in": "pos_embed.proj", "modulation_out": "proj_out_1", "patch_out": "proj_out_2"}
PATCHES, POSITIONS = "pos_embed.proj.weight", "pos_embed.pos_embed"
LATENT_CHANNELS = 4


def _pairs(network: DiT, shapes: Mapping[str, Shape]) -> list[Pair]:
  return [Pair((path,), _names(path, network.depth)) for path in shapes]


def _names(path: str, depth: int) -> tuple[str, ...]:
  """Return the names of the tensors that hold a parameter."""
  layer, _, leaf = path.rpartition("/")
  leaf = "bias" if leaf == "bias" else "weight"
  if layer in TOP:
    return (f"{TOP[layer]}.{leaf}",)
  if layer in IN_EVERY_BLOCK:
    stem = f"norm1.emb.{IN_EVERY_BLOCK[layer]}.{leaf}"
    return tuple(f"transformer_blocks.{i}.{stem}" for i in range(depth))
  block, _, part = layer.partition("/")
  return (f"transformer_blocks.{block.removeprefix('block')}.{IN_BLOCK[part]}.{leaf}",)


def _prepared(tensors: Tensors, network: DiT, spec: ImageSpec) -> Tensors:
  return unfolded(tensors, PATCHES)


def _restored(tensors: Tensors, network: DiT, num_labels: int) -> Tensors:
  return folded(tensors, PATCHES, network.patch)


FIXED: Mapping[str, tuple[Any, ...]] = {
  "norm_type": ("ada_norm_zero",), "activation_fn": ("gelu-approximate",), "dropout": (0.0, 0),
  "attention_bias": (True,), "norm_elementwise_affine": (False,), "cross_attention_dim": (None,),
  "double_self_attention": (False,), "only_cross_attention": (False,), "num_vector_embeds": (None,),
}  # fmt: skip
"""Fields of a DiTTransformer2DModel or an older one -> values of ours, the default first."""

DEFAULTS: Mapping[str, Any] = {
  "num_attention_heads": 16, "attention_head_dim": 72, "in_channels": 4, "out_channels": None,
  "num_layers": 28, "sample_size": 32, "patch_size": 2, "num_embeds_ada_norm": 1000,
  "norm_eps": 1e-5,
}  # fmt: skip


def _read_config(stored: Mapping[str, Any], where: str) -> tuple[Sections, ImageSpec]:
  """Return the sections and the shape of the images for a stored config.

  Raises:
    UserError: a field has a value that our transformer does not have.
  """
  if "norm_type" not in stored and stored.get("_class_name") == "Transformer2DModel":
    raise UserError(f"{where}: norm_type='layer_norm' is not supported; needed 'ada_norm_zero'")
  for field, allowed in FIXED.items():
    if (value := stored.get(field, allowed[0])) not in allowed:
      raise UserError(f"{where}: {field}={value!r} is not supported; needed {allowed[0]!r}")
  get = lambda field: stored.get(field, DEFAULTS[field])  # noqa: E731
  for field in ("num_attention_heads", "num_layers", "patch_size", "sample_size",
                "num_embeds_ada_norm"):  # fmt: skip
    if not isinstance(value := get(field), int):
      raise UserError(f"{where}: {field}={value!r} must be a number")
  channels, side = get("in_channels"), get("sample_size")
  out = get("out_channels") or channels
  if out not in (channels, 2 * channels):
    raise UserError(f"{where}: out_channels={out} must be in_channels={channels} or twice that")
  heads = get("num_attention_heads")
  model = {
    "name": "dit", "depth": get("num_layers"), "hidden": heads * get("attention_head_dim"),
    "heads": heads, "patch": get("patch_size"), "mlp_ratio": 4, "frequency_shift": 1,
    "learned_variance": out == 2 * channels, "mlp_epsilon": get("norm_eps"),
  }  # fmt: skip
  levels = None if channels == LATENT_CHANNELS else 256
  spec = ImageSpec(side, side, channels, levels, get("num_embeds_ada_norm"))
  return {"model": model, "generative": {"label_dropout": 0.1}}, spec


def _write_config(experiment: Experiment, spec: ImageSpec, num_labels: int) -> dict[str, Any]:
  """Return the config of the DiTTransformer2DModel that computes the same.

  Raises:
    UserError: diffusers has no such transformer; the message names the field.
  """
  network, generative = experiment.sections["model"], experiment.sections["generative"]
  if generative.fields:
    raise UserError(
      f"`generative.fields={','.join(generative.fields)}`: diffusers' DiTTransformer2DModel takes "
      "no arrays"
    )
  if not generative.conditional:
    raise UserError(
      "`generative.conditional=False`: diffusers' DiTTransformer2DModel always takes a class"
    )
  only: dict[str, tuple[Any, ...]] = {
    "frequency_shift": (1,), "mlp_ratio": (4,), "from_noise": (False,), "spare_outputs": (False,),
  }  # fmt: skip
  for field, allowed in only.items():
    if (value := getattr(network, field)) not in allowed:
      raise UserError(
        f"`model.{field}={value}`: diffusers' DiTTransformer2DModel has only {allowed[0]}"
      )
  if spec.height != spec.width:
    raise UserError(
      f"images of {spec.height}x{spec.width}: diffusers' DiTTransformer2DModel has square ones only"
    )
  return {
    "_class_name": "DiTTransformer2DModel",
    "num_attention_heads": network.heads,
    "attention_head_dim": network.hidden // network.heads,
    "in_channels": spec.channels,
    "out_channels": spec.channels * (2 if network.learned_variance else 1),
    "num_layers": network.depth,
    "sample_size": spec.height,
    "patch_size": network.patch,
    "num_embeds_ada_norm": spec.num_classes,
    "norm_eps": network.mlp_epsilon,
    "norm_type": "ada_norm_zero",
    "norm_elementwise_affine": False,
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "dropout": 0.0,
  }


DIT_2D = DiffusersLayout(
  Layout("DiTTransformer2DModel", _pairs, _prepared, _restored, frozenset({POSITIONS})),
  _read_config,
  _write_config,
  assumed=("model.frequency_shift",),
)
"""frequency_shift is that of the code; published weights of DiT were trained with 0."""
