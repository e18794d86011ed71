"""Classifier-free guidance of a denoiser."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Int

from diffusion_jax.processes import Preconditioned
from diffusion_jax.samplers.linear import Denoise
from diffusion_jax.types import Params


@dataclasses.dataclass(frozen=True)
class Guidance:
  """D = D_null + weight (D_label - D_null) on the x0 estimate, before clipping.

  Source: Ho and Salimans 2022 (arXiv 2207.12598); their w is weight - 1. It is the same
  combination for eps, x0 and v, since each is affine in the others at a fixed x_t.

  Attributes:
    weight: 1 is off: one network evaluation a step instead of two.
  """

  weight: float = 1.0

  @property
  def num_evaluations(self) -> int:
    """Network evaluations a call of the guided denoiser spends on one image."""
    return 1 if self.weight == 1.0 else 2

  def bind(
    self,
    network: Preconditioned,
    params: Params,
    labels: Int[Array, "N"] | None,
    null_label: int | None,
  ) -> Denoise:
    """The denoiser (xt, t) -> x0 for fixed parameters and labels.

    With guidance both halves go through the network as one batch of 2 N.
    """
    if self.weight == 1.0 or labels is None or null_label is None:
      return lambda xt, t: network.denoise(params, xt, t, labels)
    both = jnp.concatenate([labels, jnp.full_like(labels, null_label)])

    def denoise(xt, t):
      x0 = network.denoise(params, jnp.concatenate([xt, xt]), jnp.concatenate([t, t]), both)
      conditional, unconditional = jnp.split(x0, 2)
      return unconditional + self.weight * (conditional - unconditional)

    return denoise
