"""Write a run as a pipeline of diffusers."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.generative.latent_diffusion import LatentDiffusionModel
from diffusion_jax.models import AutoencoderKL, DiT, UNet
from diffusion_jax.porting.diffusers_dit import DIT_2D
from diffusion_jax.porting.diffusers_scheduler import write_scheduler
from diffusion_jax.porting.diffusers_unet import UNET_2D
from diffusion_jax.porting.kl_weights import AUTOENCODER_KL
from diffusion_jax.porting.latent_source import autoencoder_experiment, autoencoder_of
from diffusion_jax.porting.layout import DiffusersLayout, tensors_of_parameters
from diffusion_jax.runs.experiment import Experiment
from diffusion_jax.samplers import DDIM, Ancestral
from diffusion_jax.types import ImageSpec, UserError

VERSION = "0.42.1"
"""Version of diffusers that these files are for."""

WEIGHTS = "diffusion_pytorch_model.safetensors"


PARTS = {"UNet2DModel": "unet", "DiTTransformer2DModel": "transformer"}
"""Class of a network -> its folder in a pipeline."""


EXPORTED: Mapping[type, DiffusersLayout] = {
  UNet: UNET_2D, DiT: DIT_2D, AutoencoderKL: AUTOENCODER_KL,
}  # fmt: skip
"""Network of ours -> its layout in diffusers."""


class Pipeline(NamedTuple):
  """A run in the terms of diffusers.

  Attributes:
    kind: class of the network.
    network: its config.
    scheduler: config of the scheduler; None: the network is no pipeline, as an autoencoder.
    tensors: the network's weights by name.
    vae: the autoencoder that decodes the network's latents, or None.
  """

  kind: str
  network: Mapping[str, Any]
  scheduler: Mapping[str, Any] | None
  tensors: Mapping[str, np.ndarray]
  vae: Any = None  # a Pipeline without a scheduler

  @property
  def part(self) -> str:
    """Name of the network's folder."""
    return PARTS[self.kind]

  @property
  def name(self) -> str:
    """Class of the pipeline; of the network if it is none."""
    if self.scheduler is None:
      return self.kind
    if self.part == "transformer":
      return "DiTPipeline"
    return "DDIMPipeline" if self.scheduler["_class_name"] == "DDIMScheduler" else "DDPMPipeline"

  @property
  def lacks(self) -> str:
    """Sentence on what the pipeline needs and this model does not have; empty: nothing."""
    if self.name != "DiTPipeline" or self.vae is not None:
      return ""
    return (
      "`generative.name=diffusion`: diffusers' DiTPipeline decodes latents by an autoencoder; the "
      "folder has transformer and scheduler only"
    )


def with_ddpm_scheduler(experiment: Experiment) -> Experiment:
  """Return a U-Net's experiment with ancestral sampling in place of ddim; another unchanged.

  DDPMScheduler is right in every pipeline of U-Nets and at any number of steps. diffusers' DDIM
  keeps the noise of before the clipping, so that it fails at many steps where a cosine schedule
  clips most; ours computes the noise anew.
  """
  sampler = experiment.sections.get("sampler")
  if not isinstance(experiment.sections.get("model"), UNet) or not isinstance(sampler, DDIM):
    return experiment
  return experiment.replace(sampler=Ancestral(clip=sampler.clip, spacing="leading"))


def describe_pipeline(experiment: Experiment, spec: ImageSpec) -> tuple[dict, dict | None]:
  """Return the configs of network and scheduler for a run; a VAE has no scheduler.

  Raises:
    UserError: diffusers cannot represent the run; the message names the field.
  """
  if "autoencoder" in experiment.sections:
    spec = _check_latent(experiment, spec)
  num_labels = _num_labels(experiment, spec)
  config = _layout_of(experiment).write_config(experiment, spec, num_labels)
  has_scheduler = "process" in experiment.sections
  return config, write_scheduler(experiment.to_dict()) if has_scheduler else None


def _check_latent(experiment: Experiment, spec: ImageSpec) -> ImageSpec:
  """Return the shape of the latents; raise a UserError for a model that diffusers has not."""
  AUTOENCODER_KL.write_config(autoencoder_experiment(experiment), spec, 0)
  if not isinstance(experiment.sections["model"], DiT):
    name = experiment.to_dict()["model"]["name"]
    raise UserError(f"`model.name={name}`: diffusers' pipeline of these latents has a dit only")
  model = experiment.create(spec)
  assert isinstance(model, LatentDiffusionModel)
  return model.inner.spec


def _layout_of(experiment: Experiment) -> DiffusersLayout:
  model = experiment.sections.get("model")
  for kind, layout in EXPORTED.items():
    if isinstance(model, kind):
      return layout
  name = experiment.to_dict().get("model", {}).get("name")
  known = ", ".join(layout.layout.name for layout in EXPORTED.values())
  raise UserError(f"`model.name={name}`: diffusers has no such network; {known} have")


def _num_labels(experiment: Experiment, spec: ImageSpec) -> int:
  """Return the rows of the class table; a null class that was never trained is left out."""
  generative = experiment.sections["generative"]
  if not getattr(generative, "conditional", False):
    return 0
  return spec.num_classes + bool(generative.label_dropout)


def make_pipeline(experiment: Experiment, spec: ImageSpec, params: Any) -> Pipeline:
  """Return a run's averaged weights in the terms of diffusers."""
  config, scheduler = describe_pipeline(experiment, spec)
  layout = _layout_of(experiment).layout
  num_labels = _num_labels(experiment, spec)
  vae = None
  if "autoencoder" in experiment.sections:
    vae, params = _make_vae(experiment, spec, params), params["diffusion"]
  tensors = tensors_of_parameters(layout, params, experiment.sections["model"], num_labels)
  return Pipeline(layout.name, config, scheduler, tensors, vae)


def _make_vae(experiment: Experiment, spec: ImageSpec, params: Any) -> Pipeline:
  model, own = experiment.create(spec), autoencoder_experiment(experiment)
  assert isinstance(model, LatentDiffusionModel)
  scale = {"scaling_factor": float(params["latent_scale"])}
  config = {**AUTOENCODER_KL.write_config(own, spec, 0), **scale}
  weights = autoencoder_of(model, params)
  tensors = tensors_of_parameters(AUTOENCODER_KL.layout, weights, own.sections["model"], 0)
  return Pipeline(AUTOENCODER_KL.layout.name, config, None, tensors)


def write_pipeline(folder: Path, pipeline: Pipeline, write_tensors: Callable[..., None]) -> None:
  """Write a pipeline's files into a folder."""
  version = {"_diffusers_version": VERSION}
  if pipeline.scheduler is None:
    _write_network(folder, pipeline, write_tensors)
    return
  part, scheduler = pipeline.part, pipeline.scheduler["_class_name"]
  index = {
    "_class_name": pipeline.name,
    **version,
    "scheduler": ["diffusers", scheduler],
    part: ["diffusers", pipeline.kind],
    **({} if pipeline.vae is None else {"vae": ["diffusers", pipeline.vae.kind]}),
  }
  for name in (part, "scheduler"):
    (folder / name).mkdir()
  _write_json(folder / "model_index.json", index)
  _write_json(folder / "scheduler" / "scheduler_config.json", {**pipeline.scheduler, **version})
  _write_network(folder / part, pipeline, write_tensors)
  if pipeline.vae is not None:
    (folder / "vae").mkdir()
    _write_network(folder / "vae", pipeline.vae, write_tensors)


def _write_network(folder: Path, pipeline: Pipeline, write_tensors: Callable[..., None]) -> None:
  config = {**pipeline.network, "_diffusers_version": VERSION}
  _write_json(folder / "config.json", config)
  write_tensors(folder / WEIGHTS, pipeline.tensors, {"format": "pt"})


def usage_of(pipeline: Pipeline, num_classes: int) -> str:
  """Return Python code that uses an exported folder, for its model card."""
  if pipeline.lacks:
    scheduler = {} if pipeline.scheduler is None else pipeline.scheduler
    parts = {
      "network": (pipeline.kind, pipeline.part),
      "scheduler": (scheduler.get("_class_name"), "scheduler"),
    }
    kinds = ", ".join(kind for kind, _ in parts.values())
    lines = [
      f'{name} = {kind}.from_pretrained("FOLDER", subfolder="{folder}")'
      for name, (kind, folder) in parts.items()
    ]
    return "\n".join([f"from diffusers import {kinds}", "", *lines])
  kind, loaded = pipeline.name, f'model = {pipeline.name}.from_pretrained("FOLDER")'
  sampled = "images = model(batch_size=16).images"
  if pipeline.scheduler is None:
    sampled = "images = model.decode(model.encode(images).latent_dist.mean).sample"
  if pipeline.vae is not None:  # its null class is 1000, whatever the model's is
    scale = "" if num_classes == 1000 else ", guidance_scale=1.0"
    sampled = f"images = model(class_labels=[0, 1]{scale}).images"
  if not num_classes or pipeline.vae is not None:
    return f"from diffusers import {kind}\n\n{loaded}\n{sampled}"
  return WITH_LABELS.format(kind=kind, loaded=loaded, num=num_classes, sampled=sampled)


WITH_LABELS = """import functools

import torch
from diffusers import {kind}

{loaded}
labels = torch.arange(16) % {num}  # the pipeline itself passes none on
model.unet.forward = functools.partial(model.unet.forward, class_labels=labels)
{sampled}"""


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
  path.write_text(json.dumps(content, indent=2) + "\n")
