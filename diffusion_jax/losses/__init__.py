"""Pure loss functions. Each returns one value an example; only step.py averages."""

from diffusion_jax.losses.denoising import Simple
from diffusion_jax.losses.elbo import ELBO, ElboTerms, elbo_terms
from diffusion_jax.losses.objective import Objective, plain
from diffusion_jax.losses.weighted import P2, EDMLoss, FlowMatching, MinSNR, SigmoidLoss

DENOISING_LOSSES = {
  "simple": Simple,
  "min_snr": MinSNR,
  "p2": P2,
  "edm": EDMLoss,
  "sigmoid": SigmoidLoss,
  "flow_matching": FlowMatching,
}
VAE_LOSSES = {"elbo": ELBO}

__all__ = [
  "DENOISING_LOSSES",
  "ELBO",
  "P2",
  "VAE_LOSSES",
  "EDMLoss",
  "ElboTerms",
  "FlowMatching",
  "MinSNR",
  "Objective",
  "SigmoidLoss",
  "Simple",
  "elbo_terms",
  "plain",
]
