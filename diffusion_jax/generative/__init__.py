"""The wiring: sections of a config to one `Generative` of pure functions."""

from diffusion_jax.core.registry import Registry
from diffusion_jax.generative.diffusion import Diffusion
from diffusion_jax.generative.latent_diffusion import LatentDiffusion
from diffusion_jax.generative.vae import VAE

GENERATIVES = Registry(
  "generative", object, {"diffusion": Diffusion, "latent_diffusion": LatentDiffusion, "vae": VAE}
)

__all__ = ["GENERATIVES", "VAE", "Diffusion", "LatentDiffusion"]
