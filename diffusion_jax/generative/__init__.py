"""Generative models: the sections of a config combined, each a `GenerativeModel`."""

from diffusion_jax.core.registry import Registry
from diffusion_jax.generative.base import (
  CAPABILITIES,
  GenerativeConfig,
  GenerativeConfigBase,
  ModelBase,
  require,
)
from diffusion_jax.generative.diffusion import Diffusion
from diffusion_jax.generative.diffusion_model import DiffusionModel
from diffusion_jax.generative.latent_diffusion import LatentDiffusion, LatentDiffusionModel
from diffusion_jax.generative.vae import VAE, VAEModel

GENERATIVES = Registry(
  "generative",
  GenerativeConfig,
  {"diffusion": Diffusion, "latent_diffusion": LatentDiffusion, "vae": VAE},
  base=GenerativeConfigBase,
)

__all__ = [
  "CAPABILITIES",
  "GENERATIVES",
  "VAE",
  "Diffusion",
  "DiffusionModel",
  "GenerativeConfig",
  "LatentDiffusion",
  "LatentDiffusionModel",
  "ModelBase",
  "VAEModel",
  "require",
]
