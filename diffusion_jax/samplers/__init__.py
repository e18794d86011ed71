"""Samplers: from noise to images by a denoiser, each one `lax.scan`."""

from diffusion_jax.samplers.ancestral import Ancestral
from diffusion_jax.samplers.ddim import DDIM
from diffusion_jax.samplers.guidance import Guidance

SAMPLERS = {"ancestral": Ancestral, "ddim": DDIM}

__all__ = ["DDIM", "SAMPLERS", "Ancestral", "Guidance"]
