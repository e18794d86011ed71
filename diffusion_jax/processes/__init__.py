"""The forward process q(x_t | x_0) = N(alpha_t x_0, sigma_t^2 I) and what a network may predict."""

from diffusion_jax.processes.discrete_vp import CosineVP, DiscreteVP, LinearVP
from diffusion_jax.processes.parameterization import (
  PREDICTIONS,
  Preconditioned,
  Prediction,
  expand,
  precondition,
)

PROCESSES = {"linear_vp": LinearVP, "cosine_vp": CosineVP}

__all__ = [
  "PREDICTIONS",
  "PROCESSES",
  "CosineVP",
  "DiscreteVP",
  "LinearVP",
  "Preconditioned",
  "Prediction",
  "expand",
  "precondition",
]
