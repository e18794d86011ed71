"""Folders in the layout of diffusers, with weights drawn here; made without diffusers."""

import json

import jax
from numpy_draws import normal

from diffusion_jax.core.trees import named_leaves
from diffusion_jax.models import UNet
from diffusion_jax.porting import diffusers_unet
from diffusion_jax.porting.tensors import to_theirs
from diffusion_jax.types import ImageSpec
from diffusion_jax.weight_files.safetensors_file import write_safetensors

SPEC = ImageSpec(8, 8, 1, 256, 0)
NETWORK = UNet(
  channels=8, multipliers=(1, 2), num_blocks=1, attention_resolutions=(4,), norm_groups=4
)
OLD_SCHEDULER = {
  "_class_name": "GaussianDDPMScheduler", "beta_end": 0.02, "beta_schedule": "linear",
  "beta_start": 0.0001, "timesteps": 20, "variance_type": "fixed_large",
}  # fmt: skip


def params(network=NETWORK, spec=SPEC):
  """Parameters by path."""
  rows = spec.num_classes and spec.num_classes + 1
  shapes = jax.eval_shape(network.create(spec, rows).init, jax.random.key(0))
  return {n: 0.1 * normal(i, *x.shape) for i, (n, x) in enumerate(named_leaves(shapes).items())}


def write_in_root(folder):
  """Write a pipeline as google/ddpm-cifar10-32 has it: all files in one folder."""
  leaves = params()
  shapes = {name: leaf.shape for name, leaf in leaves.items()}
  tensors = to_theirs(diffusers_unet.pairs(NETWORK, shapes), leaves)
  folder.mkdir()
  kind = {"unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "DDPMScheduler"]}
  files = {
    "model_index.json": {"_class_name": "DDPMPipeline", **kind},
    "config.json": diffusers_unet.unet_for_diffusers(NETWORK, SPEC, 0),
    "scheduler_config.json": OLD_SCHEDULER,
  }
  for name, content in files.items():
    (folder / name).write_text(json.dumps(content))
  write_safetensors(folder / "diffusion_pytorch_model.safetensors", tensors, {"format": "pt"})
  return folder
