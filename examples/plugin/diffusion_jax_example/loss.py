"""A loss in a plug-in: the pseudo-Huber distance between output and target."""

import dataclasses

import jax.numpy as jnp

from diffusion_jax.core.broadcasting import mean_dims
from diffusion_jax.losses.base import DenoisingLoss


@dataclasses.dataclass(frozen=True)
class PseudoHuber(DenoisingLoss):
  """Pseudo-Huber loss: quadratic for small errors, linear for large ones.

  sqrt(|output - target|^2 / num_dims + c^2) - c. Source: Song and Dhariwal 2023 (arXiv
  2310.14189), section 3.2.

  Attributes:
    c: error at which the loss changes from quadratic to linear, above 0.
  """

  c: float = 0.03

  minimised_by_mean = False

  def __post_init__(self):
    if self.c <= 0:
      raise ValueError(f"c={self.c} must be positive; try `loss.c=0.03`")

  def error(self, model, noised, predicted):
    """Return the distance per example [B]."""
    square = mean_dims(jnp.square(predicted.output - model.target(noised)))
    return jnp.sqrt(square + self.c**2) - self.c
