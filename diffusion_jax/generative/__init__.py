"""The wiring: sections of a config to one `Generative` of pure functions."""

from diffusion_jax.generative.diffusion import Diffusion
from diffusion_jax.generative.vae import VAE

GENERATIVES = {"diffusion": Diffusion, "vae": VAE}

__all__ = ["GENERATIVES", "VAE", "Diffusion"]
