"""Pure loss functions with one value per example; only the training step averages."""

from diffusion_jax.core.registry import Registry
from diffusion_jax.core.settings import Facts
from diffusion_jax.losses.base import (
  BatchPosition,
  DenoisingLoss,
  Loss,
  LossBase,
  LossState,
  WeightedLoss,
)
from diffusion_jax.losses.denoising import Simple
from diffusion_jax.losses.elbo import ELBO, ElboTerms, VAELoss, elbo_terms
from diffusion_jax.losses.learned_variance import FullBound, Hybrid
from diffusion_jax.losses.uncertainty import Uncertainty
from diffusion_jax.losses.vdm import VDM
from diffusion_jax.losses.weighted import P2, EDMLoss, FlowMatching, MinSNR, SigmoidLoss

DENOISING_LOSSES = Registry(
  "loss",
  Loss,
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
  setting_facts=Facts(affects_samples=False),
  base=LossBase,
)
"""Losses of diffusion models by name: the values of `loss.name`."""
VAE_LOSSES = Registry(
  "vae_loss", VAELoss, {"elbo": ELBO}, setting_facts=Facts(affects_samples=False)
)
"""Losses of VAEs by name: the values of `loss.name`."""

__all__ = [
  "DENOISING_LOSSES",
  "ELBO",
  "P2",
  "VAE_LOSSES",
  "VDM",
  "BatchPosition",
  "DenoisingLoss",
  "EDMLoss",
  "ElboTerms",
  "FlowMatching",
  "FullBound",
  "Hybrid",
  "Loss",
  "LossBase",
  "LossState",
  "MinSNR",
  "SigmoidLoss",
  "Simple",
  "Uncertainty",
  "VAELoss",
  "WeightedLoss",
  "elbo_terms",
]


def __dir__() -> list[str]:
  """Return the public names, for completion."""
  return sorted(__all__)
