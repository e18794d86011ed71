"""Pure loss functions. Each returns one value an example; only step.py averages."""

from diffusion_jax.core.registry import Registry
from diffusion_jax.losses.base import Objective, Place, plain
from diffusion_jax.losses.denoising import Simple
from diffusion_jax.losses.elbo import ELBO, ElboTerms, elbo_terms
from diffusion_jax.losses.learned_variance import FullBound, Hybrid
from diffusion_jax.losses.uncertainty import Uncertainty
from diffusion_jax.losses.vdm import VDM
from diffusion_jax.losses.weighted import P2, EDMLoss, FlowMatching, MinSNR, SigmoidLoss

DENOISING_LOSSES = Registry(
  "loss",
  object,
  {
    "simple": Simple,
    "min_snr": MinSNR,
    "p2": P2,
    "edm": EDMLoss,
    "sigmoid": SigmoidLoss,
    "flow_matching": FlowMatching,
    "vdm": VDM,
    "uncertainty": Uncertainty,
    "hybrid": Hybrid,
    "vlb": FullBound,
  },
)
VAE_LOSSES = Registry("vae_loss", object, {"elbo": ELBO})

__all__ = [
  "DENOISING_LOSSES",
  "ELBO",
  "P2",
  "VAE_LOSSES",
  "VDM",
  "EDMLoss",
  "ElboTerms",
  "FlowMatching",
  "FullBound",
  "Hybrid",
  "MinSNR",
  "Objective",
  "Place",
  "SigmoidLoss",
  "Simple",
  "Uncertainty",
  "elbo_terms",
  "plain",
]
