"""Denoising losses: how far the network's output is from its target at random noise levels."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffusion_jax.core import rng
from diffusion_jax.losses.base import plain
from diffusion_jax.processes import Preconditioned, Process, expand
from diffusion_jax.types import Key, Keys, Params


@dataclasses.dataclass(frozen=True)
class Simple:
  """Unweighted mean squared error of the predicted quantity.

  L = E_{t, eps} |output(x_t, t) - target|^2 / num_dims, t uniform on the process's grid.
  Source: Ho et al. 2020 (arXiv 2006.11239), equation 14, for eps; Salimans and Ho 2022 for x0, v.
  """

  needs_derivative: ClassVar[bool] = False
  """Whether it differentiates the log-SNR in time: only continuous processes serve it then."""

  needs_variance: ClassVar[bool] = False
  """Whether it learns the variances of the steps, from a network that gives them."""

  objective = plain

  def __call__(
    self,
    network: Preconditioned,
    process: Process,
    params: Params,
    keys: Keys,
    x0: Float[Array, "B H W C"],
    labels: Int[Array, "B"] | None,
    dropout_key: Key | None = None,
  ) -> Float[Array, "B"]:
    """The loss of each example.

    Args:
      network: gives the output and its target.
      process: noises x0.
      params: of the network.
      keys: one an example; its time and noise derive from it.
      x0: images in [-1, 1].
      labels: class numbers, the null class included, or None.
      dropout_key: of the whole batch; None switches dropout off.
    """
    t, eps = draw_time_and_noise(process, keys, x0.shape[1:])
    alpha, sigma = process.alpha_sigma(t)
    xt = expand(alpha, x0) * x0 + expand(sigma, x0) * eps
    error = network.output(params, xt, t, labels, dropout_key) - network.target(x0, eps, t)
    return jnp.mean(jnp.square(error), axis=(1, 2, 3))


def draw_time_and_noise(
  process: Process, keys: Keys, shape: tuple[int, ...]
) -> tuple[Float[Array, "B"], Float[Array, "B ..."]]:
  """The time and the noise of each example, from its own key."""
  t = process.time_at(rng.uniform(rng.fold_in(keys, 0)))
  return t, rng.normal(rng.fold_in(keys, 1), shape)
