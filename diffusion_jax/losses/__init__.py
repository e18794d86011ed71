"""Pure loss functions. Each returns one value an example; only step.py averages."""

from diffusion_jax.losses.denoising import Simple
from diffusion_jax.losses.elbo import ELBO, ElboTerms, elbo_terms

DENOISING_LOSSES = {"simple": Simple}
VAE_LOSSES = {"elbo": ELBO}

__all__ = [
  "DENOISING_LOSSES",
  "ELBO",
  "VAE_LOSSES",
  "ElboTerms",
  "Simple",
  "elbo_terms",
]
