"""Write a run as a pipeline of diffusers."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.models import UNet
from diffusion_jax.porting.diffusers_scheduler import write_scheduler
from diffusion_jax.porting.diffusers_unet import UNET_2D
from diffusion_jax.porting.layout import DiffusersLayout, tensors_of_parameters
from diffusion_jax.runs.experiment import Experiment
from diffusion_jax.types import ImageSpec, UserError

VERSION = "0.42.1"
"""Version of diffusers that these files are for."""

WEIGHTS = "diffusion_pytorch_model.safetensors"


EXPORTED: Mapping[type, DiffusersLayout] = {UNet: UNET_2D}
"""Network of ours -> its layout in diffusers."""


class Pipeline(NamedTuple):
  """A run in the terms of diffusers.

  Attributes:
    kind: class of the network.
    network, scheduler: their configs.
    tensors: the network's weights by name.
  """

  kind: str
  network: Mapping[str, Any]
  scheduler: Mapping[str, Any]
  tensors: Mapping[str, np.ndarray]


def describe_pipeline(experiment: Experiment, spec: ImageSpec) -> tuple[dict, dict]:
  """Return the configs of network and scheduler for a run.

  Raises:
    UserError: diffusers cannot represent the run; the message names the field.
  """
  num_labels = _num_labels(experiment, spec)
  config = _layout_of(experiment).write_config(experiment, spec, num_labels)
  return config, write_scheduler(experiment.to_dict())


def _layout_of(experiment: Experiment) -> DiffusersLayout:
  model = experiment.sections.get("model")
  for kind, layout in EXPORTED.items():
    if isinstance(model, kind):
      return layout
  name = experiment.to_dict().get("model", {}).get("name")
  raise UserError(f"`model.name={name}`: diffusers has no such network; a unet can be exported")


def _num_labels(experiment: Experiment, spec: ImageSpec) -> int:
  """Return the rows of the class table; a null class that was never trained is left out."""
  generative = experiment.sections["generative"]
  if not generative.conditional:
    return 0
  return spec.num_classes + bool(generative.label_dropout)


def make_pipeline(experiment: Experiment, spec: ImageSpec, params: Any) -> Pipeline:
  """Return a run's averaged weights in the terms of diffusers."""
  config, scheduler = describe_pipeline(experiment, spec)
  layout = _layout_of(experiment).layout
  num_labels = _num_labels(experiment, spec)
  tensors = tensors_of_parameters(layout, params, experiment.sections["model"], num_labels)
  return Pipeline(layout.name, config, scheduler, tensors)


def write_pipeline(folder: Path, pipeline: Pipeline, write_tensors: Callable[..., None]) -> None:
  """Write a pipeline's files into a folder."""
  scheduler = pipeline.scheduler["_class_name"]
  index = {
    "_class_name": "DDPMPipeline" if scheduler == "DDPMScheduler" else "DDIMPipeline",
    "_diffusers_version": VERSION,
    "scheduler": ["diffusers", scheduler],
    "unet": ["diffusers", pipeline.kind],
  }
  for name in ("unet", "scheduler"):
    (folder / name).mkdir()
  version = {"_diffusers_version": VERSION}
  _write_json(folder / "model_index.json", index)
  _write_json(folder / "unet" / "config.json", {**pipeline.network, **version})
  _write_json(folder / "scheduler" / "scheduler_config.json", {**pipeline.scheduler, **version})
  write_tensors(folder / "unet" / WEIGHTS, pipeline.tensors, {"format": "pt"})


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
  path.write_text(json.dumps(content, indent=2) + "\n")
