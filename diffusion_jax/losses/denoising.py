"""The unweighted denoising loss: the squared error of the network's output."""

import dataclasses

import jax.numpy as jnp

from diffusion_jax.core.broadcasting import mean_dims
from diffusion_jax.losses.base import DenoisingLoss, Values
from diffusion_jax.processes import Denoiser, Noised, Predicted


@dataclasses.dataclass(frozen=True)
class Simple(DenoisingLoss):
  """Unweighted mean squared error of the predicted quantity.

  L = E_{t, eps} |output(x_t, t) - target|^2 / num_dims, t uniform on the process's grid.
  Source: Ho et al. 2020 (arXiv 2006.11239), equation 14, for eps; Salimans and Ho 2022 for x0, v.
  """

  def error(self, model: Denoiser, noised: Noised, predicted: Predicted) -> Values:
    """Return the mean square over the dimensions of each example."""
    return mean_dims(jnp.square(predicted.output - model.target(noised)))
