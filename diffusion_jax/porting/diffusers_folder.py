"""Folders of diffusers: a pipeline, or the folder of one network."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from diffusion_jax.porting.diffusers_dit import DIT_2D
from diffusion_jax.porting.diffusers_scheduler import read_scheduler
from diffusion_jax.porting.diffusers_unet import UNET_2D
from diffusion_jax.porting.kl_weights import AUTOENCODER_KL
from diffusion_jax.porting.layout import Described, DiffusersLayout, Sections, Source
from diffusion_jax.types import ImageSpec, UserError
from diffusion_jax.weight_files.weight_file import WeightFile, read_weights

NETWORKS = ("unet", "transformer")
"""Folders of a pipeline that may hold its network."""

SCHEDULER = "scheduler_config.json"

LAYOUTS: Mapping[str, DiffusersLayout] = {
  **{layout.layout.name: layout for layout in (UNET_2D, DIT_2D, AUTOENCODER_KL)},
  "Transformer2DModel": DIT_2D,  # the name of DiT's class before diffusers 0.28
}
"""Class of diffusers -> its layout."""


def is_diffusers(folder: Path) -> bool:
  """Return whether a folder is a pipeline or a network of diffusers."""
  return (folder / "model_index.json").is_file() or (folder / "config.json").is_file()


def read_folder(folder: Path, image_size: int | None = None, weights: Path | None = None) -> Source:
  """Return the network of a pipeline.

  Args:
    folder: folder of the pipeline or of the network.
    image_size: side of the images that the user gave, for networks that take any.
    weights: the file of weights to read; None: the folder's.

  Raises:
    UserError: a file is missing or damaged, or the pipeline has parts that we do not have.
  """
  place = next((folder / name for name in NETWORKS if (folder / name).is_dir()), folder)
  about = place / "config.json"
  stored = read_json(about)
  if (kind := str(stored.get("_class_name"))) not in LAYOUTS:
    known = ", ".join(LAYOUTS)
    raise UserError(f"{about}: the network {kind} is not supported; {known} are")
  chosen = LAYOUTS[kind]
  with _refusing_values(about):
    found, spec = chosen.read_config(stored, str(about))
  if image_size is not None:
    spec = _with_side(spec, image_size, chosen, str(about))
  is_vae = found.get("generative", {}).get("name") == "vae"
  sections = found if is_vae else _with_scheduler(folder, found, spec)
  read = read_weights(weights or place)
  origin = {"format": "diffusers", "architecture": kind, "files": _files(folder, read)}
  described = Described(sections, spec, chosen.assumed)
  return Source(chosen.layout, described, read.arrays, origin, str(read.path))


def _with_side(spec: ImageSpec, side: int, chosen: DiffusersLayout, where: str) -> ImageSpec:
  if not chosen.any_side and (spec.height, spec.width) != (side, side):
    raise UserError(
      f"--image_size={side}: {where} is of images of {spec.height}x{spec.width}; leave it out"
    )
  return spec._replace(height=side, width=side)


def _with_scheduler(folder: Path, found: Sections, spec: ImageSpec) -> Sections:
  """Return a network's section with those of its process and sampler, and with its classes."""
  places = (folder / "scheduler" / SCHEDULER, folder / SCHEDULER)  # the second: before 2023
  schedule = next((path for path in places if path.is_file()), None)
  if schedule is None:
    raise UserError(
      f"{folder} has no scheduler/scheduler_config.json, which says what the network predicts at "
      "which noise; give the folder of the whole pipeline"
    )
  with _refusing_values(schedule):
    sections = read_scheduler(read_json(schedule), str(schedule))
  labels = {"conditional": bool(spec.num_classes), "label_dropout": 0.0}
  generative = {**sections["generative"], **labels, **found.get("generative", {})}
  model = {**found["model"], **sections.get("model", {})}
  if model["learned_variance"]:  # whatever the scheduler makes of it
    sections["loss"] = {"name": "hybrid"}
  return {**sections, **found, "generative": generative, "model": model}


@contextlib.contextmanager
def _refusing_values(path: Path) -> Iterator[None]:
  """Turn the errors of values of a wrong type, such as a text for a number, into one line."""
  try:
    yield
  except (ArithmeticError, AttributeError, IndexError, TypeError, ValueError) as error:
    reason = " ".join(str(error).split())[:120]
    raise UserError(f"{path} has a value that cannot be used ({reason}); get a copy") from error


def _files(folder: Path, read: WeightFile) -> dict[str, Any]:
  name = str(read.path.relative_to(folder)) if read.path != folder else "."
  return {name: {"sha256": read.sha256}}


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
