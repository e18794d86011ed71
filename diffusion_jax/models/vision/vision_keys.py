"""Parameters of the vision transformers from the names in their published files.

DINOv2: names of facebookresearch/dinov2. CLIP: names of OpenAI's repository (`visual.*`, also those
of open_clip) or of Hugging Face's transformers (`vision_model.*`); its text tower is left out.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from diffusion_jax.models.vision.pillow_resize import cubic
from diffusion_jax.models.vision.transformer import HEAD_WIDTH, VisionRecipe
from diffusion_jax.types import Params, UserError

State = Mapping[str, np.ndarray]

COMMON = {
  "norm1": "norm1", "norm2": "norm2", "qkv": "attn.qkv", "out": "attn.proj", "inner": "mlp.fc1",
  "outer": "mlp.fc2",
}  # fmt: skip
"""Layer of a block -> its name in DINOv2's file, which is ours for both networks."""

FROM_OPENAI = {
  "visual.class_embedding": "cls_token",
  "visual.positional_embedding": "pos_embed",
  "visual.conv1.weight": "patch_embed.proj.weight",
  "visual.ln_pre.": "norm_before.",
  "visual.ln_post.": "norm.",
  "visual.proj": "projection",
  "visual.transformer.resblocks.": "blocks.",
  ".ln_1.": ".norm1.",
  ".ln_2.": ".norm2.",
  ".attn.in_proj_": ".attn.qkv.",
  ".attn.out_proj.": ".attn.proj.",
  ".mlp.c_fc.": ".mlp.fc1.",
  ".mlp.c_proj.": ".mlp.fc2.",
}
"""Part of a name in OpenAI's file -> the same in DINOv2's."""

FROM_HUGGING_FACE = {
  "vision_model.embeddings.class_embedding": "cls_token",
  "vision_model.embeddings.position_embedding.weight": "pos_embed",
  "vision_model.embeddings.patch_embedding.weight": "patch_embed.proj.weight",
  "vision_model.pre_layrnorm.": "norm_before.",  # spelt so there
  "vision_model.post_layernorm.": "norm.",
  "visual_projection.weight": "projection",
  "vision_model.encoder.layers.": "blocks.",
  ".layer_norm1.": ".norm1.",
  ".layer_norm2.": ".norm2.",
  ".self_attn.out_proj.": ".attn.proj.",
}
"""Part of a name in transformers' file -> the same in DINOv2's."""


def our_names(state: State, recipe: VisionRecipe) -> dict[str, np.ndarray]:
  """Return the arrays of a file under the names of DINOv2's; those without use are left out."""
  if recipe.name == "dinov2":
    return {n: np.asarray(a) for n, a in state.items() if n != "mask_token"}
  if any(name.startswith("vision_model.") for name in state):
    renamed = _renamed(state, FROM_HUGGING_FACE, ("vision_model.", "visual_projection."))
    renamed.pop("vision_model.embeddings.position_ids", None)
    renamed = _joined(renamed)
    if "projection" in renamed:
      renamed["projection"] = renamed["projection"].T
  else:
    renamed = _renamed(state, FROM_OPENAI, ("visual.",))
  return renamed


def _renamed(state: State, table: Mapping[str, str], of: tuple[str, ...]) -> dict[str, np.ndarray]:
  renamed = {}
  for name, array in state.items():
    if name.startswith(of):
      new = name
      for theirs, ours in table.items():
        new = new.replace(theirs, ours)
      renamed[new] = np.asarray(array)
  return renamed


def _joined(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Join the projections of query, key and value of each block into one."""
  joined = {n: a for n, a in state.items() if ".self_attn." not in n}
  for name in [n for n in state if ".self_attn.q_proj." in n]:
    three = [name.replace("q_proj", f"{letter}_proj") for letter in "qkv"]
    if all(n in state for n in three):
      new = name.replace(".self_attn.q_proj.", ".attn.qkv.")
      joined[new] = np.concatenate([state[n] for n in three])
  return joined


def shapes_of(state: State, recipe: VisionRecipe, where: str) -> dict[str, tuple[int, ...]]:
  """Return the shape of each array of a network with the width and depth of `state`.

  Raises:
    UserError: it has no patch embedding, or another width than a multiple of HEAD_WIDTH.
  """
  kernel, positions = state.get("patch_embed.proj.weight"), state.get("pos_embed")
  if kernel is None or kernel.ndim != 4 or positions is None or len(kernel) % HEAD_WIDTH:
    raise UserError(f"{where} holds no {recipe.name} vision transformer; give its weights")
  width, patch = len(kernel), kernel.shape[-1]
  depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
  inner = len(state.get("blocks.0.mlp.fc1.bias", np.zeros(4 * width)))
  shapes: dict[str, tuple[int, ...]] = {
    "patch_embed.proj.weight": (width, 3, patch, patch), "norm.weight": (width,),
    "norm.bias": (width,),
  }  # fmt: skip
  for i in range(depth):
    for layer, (rows, columns) in {
      "attn.qkv": (3 * width, width), "attn.proj": (width, width), "mlp.fc1": (inner, width),
      "mlp.fc2": (width, inner),
    }.items():  # fmt: skip
      shapes |= {f"blocks.{i}.{layer}.weight": (rows, columns), f"blocks.{i}.{layer}.bias": (rows,)}
    vectors = ["norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"]
    vectors += ["ls1.gamma", "ls2.gamma"] if recipe.name == "dinov2" else []
    shapes |= {f"blocks.{i}.{name}": (width,) for name in vectors}
  if recipe.name == "dinov2":
    shapes |= {"patch_embed.proj.bias": (width,), "cls_token": (1, 1, width)}
    shapes["pos_embed"] = (1, math.isqrt(positions.size // width - 1) ** 2 + 1, width)
  else:
    tokens = (recipe.side // patch) ** 2 + 1
    shapes |= {"cls_token": (width,), "pos_embed": (tokens, width)}
    shapes |= {"norm_before.weight": (width,), "norm_before.bias": (width,)}
    projection = state.get("projection")
    out = projection.shape[-1] if projection is not None and projection.ndim == 2 else width
    shapes["projection"] = (width, out)
  return shapes


def from_state(state: State, recipe: VisionRecipe, where: str) -> Params:
  """Return parameters for `vision_features` from arrays under `our_names`.

  Args:
    state: arrays of all blocks, the class token, the positions, ...
    recipe: the network.
    where: name of the file, for messages.

  Returns:
    A tree of float32 arrays; the blocks are stacked on the leading axis.

  Raises:
    UserError: a name is missing or unknown, an array has another shape, or a value is not finite.
  """
  shapes = shapes_of(state, recipe, where)
  if state.keys() != shapes.keys():
    missing, unknown = sorted(shapes.keys() - state.keys()), sorted(state.keys() - shapes.keys())
    raise UserError(
      f"{where} is no {recipe.name} vision transformer: of its {len(shapes)} arrays "
      f"{len(missing)} are missing{_first(missing)}, and {len(unknown)} are unknown"
      f"{_first(unknown)}; give the published file"
    )
  for name, shape in shapes.items():
    if state[name].shape != shape or not np.isfinite(state[name]).all():
      raise UserError(
        f"{where}: {name} has shape {state[name].shape}, expected {shape} and finite values; give "
        "the published file"
      )
  depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
  width = len(state["norm.weight"])
  names = ["norm1", "norm2"]
  blocks: dict[str, Any] = {n: _stack_norm(state, n, depth) for n in names}
  for name in ("qkv", "out", "inner", "outer"):
    layer = COMMON[name]
    blocks[name] = {
      "kernel": _stack(state, f"{layer}.weight", depth).transpose(0, 2, 1),
      "bias": _stack(state, f"{layer}.bias", depth),
    }
  for i in (1, 2):
    has_scale = recipe.name == "dinov2"
    blocks[f"scale{i}"] = (
      _stack(state, f"ls{i}.gamma", depth) if has_scale else np.ones((depth, width), np.float32)
    )
  kernel = _float32(state["patch_embed.proj.weight"])
  bias = state.get("patch_embed.proj.bias", np.zeros(width))
  positions = _float32(state["pos_embed"]).reshape(-1, width)
  params: dict[str, Any] = {
    "patch": {"kernel": kernel.transpose(2, 3, 1, 0), "bias": _float32(bias)},
    "class": _float32(state["cls_token"]).reshape(width),
    "positions": resized_positions(positions, recipe.side // kernel.shape[-1]),
    "blocks": blocks,
    "norm_after": _norm(state, "norm"),
  }
  if recipe.name == "clip":
    params |= {
      "norm_before": _norm(state, "norm_before"),
      "projection": _float32(state["projection"]),
    }
  return params


def resized_positions(positions: Float[np.ndarray, "N D"], side: int) -> Float[np.ndarray, "M D"]:
  """Interpolate position embeddings to side x side patches like DINOv2's own code.

  It uses PyTorch's bicubic (a = -0.75, no smoothing) by a factor of (side + 0.1) / old side.
  """
  old = math.isqrt(len(positions) - 1)
  if old == side:
    return positions
  center = (np.arange(side) + 0.5) * old / (side + 0.1) - 0.5
  weights = np.zeros((side, old))
  for tap in range(-1, 3):
    place = np.floor(center).astype(int) + tap
    rows = np.arange(side), np.clip(place, 0, old - 1)
    np.add.at(weights, rows, cubic(center - place, -0.75))
  grid = positions[1:].reshape(old, old, -1).astype(np.float64)
  resized = np.einsum("ri,cj,ijd->rcd", weights, weights, grid).reshape(side * side, -1)
  return np.concatenate([positions[:1], resized.astype(np.float32)])


def _stack_norm(state: State, name: str, depth: int) -> dict[str, np.ndarray]:
  parts = {"scale": "weight", "bias": "bias"}
  return {ours: _stack(state, f"{name}.{theirs}", depth) for ours, theirs in parts.items()}


def _norm(state: State, name: str) -> dict[str, np.ndarray]:
  return {"scale": _float32(state[f"{name}.weight"]), "bias": _float32(state[f"{name}.bias"])}


def _stack(state: State, name: str, depth: int) -> np.ndarray:
  return np.stack([_float32(state[f"blocks.{i}.{name}"]) for i in range(depth)])


def _float32(x: np.ndarray) -> np.ndarray:
  return np.ascontiguousarray(x, np.float32)


def _first(names: list[str]) -> str:
  return f" ({names[0]}{', ...' if len(names) > 1 else ''})" if names else ""
