"""Folders of diffusers: a pipeline, or the folder of one network."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from diffusion_jax.core.trees import named_leaves
from diffusion_jax.models import UNet
from diffusion_jax.porting import diffusers_unet
from diffusion_jax.porting.diffusers_scheduler import read_scheduler
from diffusion_jax.porting.imported import Weights
from diffusion_jax.porting.tensors import to_ours
from diffusion_jax.types import ImageSpec, UserError

NETWORKS = ("unet", "transformer")
"""Folders of a pipeline that may hold its network."""

FILES = (
  "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin",
  "model.safetensors",
)  # fmt: skip


def is_diffusers(folder: Path) -> bool:
  """Return whether a folder is a pipeline or a network of diffusers."""
  return (folder / "model_index.json").is_file() or (folder / "config.json").is_file()


def read_folder(folder: Path, read_tensors: Callable[[Path], Any]) -> Weights:
  """Return the network of a pipeline.

  Args:
    folder: the pipeline's folder.
    read_tensors: function from a file to its `WeightFile`.

  Raises:
    UserError: a file is missing or damaged, or the pipeline has parts that we do not have.
  """
  place = next((folder / name for name in NETWORKS if (folder / name).is_dir()), folder)
  stored = read_json(place / "config.json")
  kind = stored.get("_class_name")
  if kind != "UNet2DModel":
    raise UserError(f"{place / 'config.json'}: the network {kind} is not supported; UNet2DModel is")
  schedule = folder / "scheduler" / "scheduler_config.json"
  if not schedule.is_file():
    raise UserError(
      f"{folder} has no scheduler/scheduler_config.json, which says what the network predicts at "
      "which noise; give the folder of the whole pipeline"
    )
  sections = read_scheduler(read_json(schedule), str(schedule))
  file = next((place / name for name in FILES if (place / name).is_file()), None)
  if file is None:
    raise UserError(f"{place} has no weights; needed {' or '.join(FILES[:2])}")
  network, spec = diffusers_unet.unet_from_diffusers(stored, str(place / "config.json"))
  read = read_tensors(file)
  tensors = diffusers_unet.with_new_names(read.arrays)
  num_labels = spec.num_classes
  params = read_network(network, spec, num_labels, tensors, str(file))
  origin = {
    "format": "diffusers",
    "architecture": kind,
    "files": {str(file.relative_to(folder)): {"sha256": read.sha256, "bytes": file.stat().st_size}},
  }
  return Weights(_sections(network, sections, num_labels), spec, params, origin)


def _sections(network: UNet, found: Mapping[str, Any], num_labels: int) -> dict[str, Any]:
  """Return the sections of the config with those of the network and its classes."""
  conditional = {"conditional": bool(num_labels), "label_dropout": 0.0}
  model = {"name": "unet", **dataclasses.asdict(network), **found.get("model", {})}
  return {**found, "generative": {**found["generative"], **conditional}, "model": model}


def read_network(
  network: UNet, spec: ImageSpec, num_labels: int, tensors: Mapping[str, np.ndarray], where: str
) -> dict[str, np.ndarray]:
  """Return a U-Net's parameters by path."""
  rows = num_labels + 1 if num_labels else 0
  shapes = {
    n: x.shape
    for n, x in named_leaves(
      jax.eval_shape(network.create(spec, rows).init, jax.random.key(0))
    ).items()
  }
  if num_labels:  # no null class: a row that is never used
    tensors = dict(tensors)
    table = tensors.get("class_embedding.weight")
    if table is not None:
      tensors["class_embedding.weight"] = np.concatenate([table, np.zeros_like(table[:1])])
  return to_ours(diffusers_unet.pairs(network, shapes), tensors, shapes, where)


def read_json(path: Path) -> dict[str, Any]:
  """Return the content of a JSON file.

  Raises:
    UserError: it is missing, or no JSON object.
  """
  try:
    content = json.loads(path.read_text())
  except FileNotFoundError:
    raise UserError(f"{path} is missing: this is no folder of diffusers") from None
  except (OSError, ValueError) as error:
    raise UserError(f"{path} cannot be read ({error}); get a copy") from error
  if not isinstance(content, dict):
    raise UserError(f"{path} holds no JSON object; get a copy")
  return content
