"""Weights of facebookresearch/DiT and willisma/SiT: the same names, two recipes.

Sources: github.com/facebookresearch/DiT and github.com/willisma/SiT, models.py, sample_ddp.py and
train.py; Peebles and Xie 2023 (arXiv 2212.09748), Ma et al. 2024 (arXiv 2401.08740).
"""

import math
import re
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from diffusion_jax.models import DiT
from diffusion_jax.models.embeddings import position_embedding
from diffusion_jax.porting.layout import Content, Described, FileLayout, Layout
from diffusion_jax.porting.tensors import Pair, Shape, Tensors, with_null_row, with_rows
from diffusion_jax.types import ImageSpec, UserError

IN_BLOCK = {
  "modulation": "adaLN_modulation.1", "attention/out": "attn.proj", "mlp_in": "mlp.fc1",
  "mlp_out": "mlp.fc2",
}  # fmt: skip
TOP = {
  "patch_in": "x_embedder.proj", "time1": "t_embedder.mlp.0", "time2": "t_embedder.mlp.2",
  "label": "y_embedder.embedding_table", "modulation_out": "final_layer.adaLN_modulation.1",
  "patch_out": "final_layer.linear",
}  # fmt: skip
PATCHES, LABELS, POSITIONS = (
  "x_embedder.proj.weight",
  "y_embedder.embedding_table.weight",
  "pos_embed",
)

HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}
"""Width of the published sizes S, B, L and XL -> number of heads."""

SIZES = {"S": 6, "B": 12, "L": 16, "XL": 16}
"""Size in the name of a model, such as SiT-XL/2 -> number of heads."""

LATENT_CHANNELS = 4


def _pairs(network: DiT, shapes: Mapping[str, Shape]) -> list[Pair]:
  """Return the table of parameters by block and the tensors that hold them.

  The patch embedding is a dense layer, as `_prepared` has it.
  """
  table = []
  for path in shapes:
    layer, _, leaf = path.rpartition("/")
    block, _, part = layer.partition("/")
    leaf = "bias" if leaf == "bias" else "weight"
    if layer in TOP:
      table.append(Pair((path,), (f"{TOP[layer]}.{leaf}",)))
    elif part == "attention/query":
      fused = tuple(path.replace("query", name) for name in ("query", "key", "value"))
      table.append(Pair(fused, (f"{_block(block)}.attn.qkv.{leaf}",)))
    elif part in IN_BLOCK:
      table.append(Pair((path,), (f"{_block(block)}.{IN_BLOCK[part]}.{leaf}",)))
  return table


def _block(name: str) -> str:
  return f"blocks.{name.removeprefix('block')}"


def _prepared(tensors: Tensors, network: DiT, spec: ImageSpec) -> Tensors:
  """Return the tensors with a dense patch embedding and a row for the null class."""
  return with_null_row(unfolded(tensors, PATCHES), LABELS, spec.num_classes)


def _restored(tensors: Tensors, network: DiT, num_labels: int) -> Tensors:
  """Return the tensors with a convolution of patches and `num_labels` classes."""
  return with_rows(folded(tensors, PATCHES, network.patch), LABELS, num_labels)


def unfolded(tensors: Tensors, name: str) -> Tensors:
  """Return the tensors with a convolution O I H W of patches as a dense layer O (H W I)."""
  kernel = tensors.get(name)
  if kernel is None or kernel.ndim != 4:
    return tensors
  return {**tensors, name: kernel.transpose(0, 2, 3, 1).reshape(len(kernel), -1)}


def folded(tensors: Tensors, name: str, patch: int) -> Tensors:
  """Invert `unfolded`."""
  dense = tensors[name].reshape(len(tensors[name]), patch, patch, -1)
  return {**tensors, name: np.ascontiguousarray(dense.transpose(0, 3, 1, 2))}


def _recognises(names: Collection[str]) -> bool:
  """Return whether tensors have the names of DiT's."""
  return {PATCHES, POSITIONS, "blocks.0.attn.qkv.weight", "final_layer.linear.weight"} <= {*names}


def _describe(content: Content) -> Described:
  """Return the network, recipe and images of a checkpoint of DiT or SiT.

  Raises:
    UserError: it is of a variant of theirs with other parts.
  """
  return _described(content, _is_sit(content))


def _describe_sit(content: Content) -> Described:
  return _described(content, is_sit=True)


def _described(content: Content, is_sit: bool) -> Described:
  told = _told(content)
  network, spec, assumed = _network(content, told)
  has_pixels = spec.num_levels is not None
  dropout = 0.1 if len(content.tensors[LABELS]) > spec.num_classes else 0.0
  if is_sit:
    sections = _recipe_of_sit(content, told, network)
  else:
    sections = _recipe_of_dit(network, clip=has_pixels)
  sections["generative"] |= {"conditional": True, "label_dropout": dropout}
  if dropout:
    guided = None if has_pixels else 3  # of the four, "for exact reproducibility"
    sections["guidance"] = {"weight": 1.5, "channels": guided}
    assumed = (*assumed, "guidance.weight")
  if not told:
    assumed = ("architecture", *assumed)
  notes = () if has_pixels else (_LATENTS.format(spec=spec),)
  return Described(sections, spec, assumed, _SIT if is_sit else _DIT, notes)


_LATENTS = (
  "its images are latents of {spec.height}x{spec.width}x{spec.channels}; --autoencoder=PATH adds "
  "the autoencoder that decodes them, e.g. a copy of stabilityai/sd-vae-ft-ema"
)


def _told(content: Content) -> Mapping[str, Any]:
  """Return the arguments of the training script, {} if the file has none."""
  told = content.facts.get("args")
  return told if isinstance(told, Mapping) else {}


def _network(
  content: Content, told: Mapping[str, Any]
) -> tuple[dict[str, Any], ImageSpec, tuple[str, ...]]:
  """Return the network's fields, the shape of its images, and the fields that are assumed."""
  tensors, where = content.tensors, content.where
  shape_of = lambda name, ndim: _shape(tensors, name, ndim, where)  # noqa: E731
  hidden, channels, patch, _ = shape_of(PATCHES, 4)
  _, num_tokens, _ = shape_of(POSITIONS, 3)
  rows, _ = shape_of(LABELS, 2)
  mlp, _ = shape_of("blocks.0.mlp.fc1.weight", 2)
  out, _ = shape_of("final_layer.linear.weight", 2)
  grid = math.isqrt(num_tokens)
  if grid**2 != num_tokens or mlp % hidden or out not in (size := patch**2 * channels, 2 * size):
    raise UserError(
      f"{where}: a variant of DiT that is not supported ({num_tokens} positions, an MLP of {mlp} "
      f"for width {hidden}, {out} outputs for patches of {patch}x{patch}x{channels})"
    )
  _check_positions(tensors[POSITIONS], grid, where)
  heads, assumed = _heads(str(told.get("model", "")), hidden)
  network = {
    "name": "dit", "depth": 1 + max(_block_numbers(tensors)), "hidden": hidden, "heads": heads,
    "patch": patch, "mlp_ratio": mlp // hidden, "doubled": out == 2 * size,
  }  # fmt: skip
  classes = told.get("num_classes", rows - 1)
  if classes not in (rows, rows - 1):
    raise UserError(f"{where}: num_classes={classes}, and its table of classes has {rows} rows")
  levels = None if channels == LATENT_CHANNELS else 256
  side = grid * patch
  return network, ImageSpec(side, side, channels, levels, classes), assumed


def _shape(tensors: Tensors, name: str, ndim: int, where: str) -> Shape:
  found = tensors.get(name)
  if found is None:
    raise UserError(f"{where} has no tensor {name}, which this architecture needs")
  if found.ndim != ndim:
    raise UserError(f"{where}: {name} has the shape {list(found.shape)}, not {ndim} axes")
  return found.shape


def _block_numbers(names: Collection[str]) -> set[int]:
  return {int(found[1]) for name in names if (found := re.match(r"blocks\.(\d+)\.", name))}


def _heads(model: str, hidden: int) -> tuple[int, tuple[str, ...]]:
  """Return the number of heads, and "model.heads" if no name of a model tells it."""
  size = re.fullmatch(r"[DS]iT-(S|B|L|XL)/\d+", model)
  if size and hidden % SIZES[size[1]] == 0:
    return SIZES[size[1]], ()
  heads = HEADS.get(hidden, next(n for n in range(16, 0, -1) if hidden % n == 0))
  return heads, ("model.heads",)


def _check_positions(found: np.ndarray, grid: int, where: str) -> None:
  """Raise a UserError unless a file's positions are the fixed ones."""
  expected = position_embedding(grid, grid, found.shape[-1])
  far = float(np.abs(found[0].astype(np.float32) - expected).max())
  if not far < 1e-3:
    raise UserError(
      f"{where}: {POSITIONS} differs from the fixed positions by {far:.2g}; learned positions are "
      "not supported"
    )


def _is_sit(content: Content) -> bool:
  """Return whether a file is of SiT: its arguments tell it, or else its name."""
  if told := _told(content):
    return "path_type" in told or str(told.get("model", "")).startswith("SiT")
  return "sit" in re.split(r"[^a-z]+", content.where.rpartition("/")[2].lower())


def _recipe_of_dit(network: dict[str, Any], clip: bool) -> dict[str, dict[str, Any]]:
  """Return the sections of DiT: diffusion as in ADM, with 250 of 1000 steps for samples."""
  learned = network.pop("doubled")
  return {
    "generative": {"name": "diffusion", "prediction": "eps"},
    "process": {"name": "linear_vp", "num_timesteps": 1000},
    "model": {**network, "learned_variance": learned},
    "loss": {"name": "hybrid" if learned else "simple"},
    "sampler": {"name": "ancestral", "steps": 250, "spacing": "linspace", "clip": clip},
    "vlb": {"clip": clip},
  }


def _recipe_of_sit(
  content: Content, told: Mapping[str, Any], network: dict[str, Any]
) -> dict[str, dict[str, Any]]:
  """Return the sections of SiT: velocities of straight paths, whose times run from the noise."""
  for field, needed in (("path_type", "Linear"), ("prediction", "velocity")):
    if (value := told.get(field, needed)) != needed:
      raise UserError(f"{content.where}: {field}={value} is not supported; needed {needed}")
  spare = network.pop("doubled")
  times = {"from_noise": True, "time_scale": 1 / 999}
  return {
    "generative": {"name": "diffusion", "prediction": "velocity"},
    "process": {"name": "flow"},
    "model": {**network, **times, "spare_outputs": spare},
    "loss": {"name": "flow_matching", "times": "uniform"},
    "sampler": {"name": "probability_flow", "rtol": 1e-3, "atol": 1e-6},
  }


_UNUSED = frozenset({POSITIONS})
_DIT = Layout("DiT", _pairs, _prepared, _restored, _UNUSED)
_SIT = Layout("SiT", _pairs, _prepared, _restored, _UNUSED)
DIT = FileLayout(_DIT, _recognises, _describe)
"""Files of DiT, and of SiT where their arguments or their name say so."""

SIT = FileLayout(_SIT, _recognises, _describe_sit)
"""Files that the user says to be of SiT."""
