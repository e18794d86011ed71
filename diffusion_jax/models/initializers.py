"""Initial distributions of a network's arrays, by published recipe."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.nn.initializers import Initializer

# Variance scaling with the mean of fan-in and fan-out, uniform: DDPM's initialisation.
kernel_init = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
# Nearly zero, so that a residual block starts as the identity (the recipe's scale is 1e-10, not 0).
zero_init = nn.initializers.variance_scaling(1e-10, "fan_avg", "uniform")


def zero_bias(fan_in: int) -> Initializer:
  """Initialise a bias to zero, for any layer."""
  del fan_in
  return nn.initializers.zeros


def uniform_bias(fan_in: int) -> Initializer:
  """Initialise a bias uniformly within 1 / sqrt(fan-in), as PyTorch does."""
  bound = fan_in**-0.5

  def init(key, shape, dtype=jnp.float32, out_sharding=None):
    del out_sharding  # biases are not split
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return init


class Init(NamedTuple):
  """Initial distributions of a network's arrays.

  Attributes:
    kernel: distribution of convolutions and dense layers.
    zero: distribution of the last layer of every branch and of the network.
    qkv: distribution of attention's queries, keys and values.
    embed: distribution of the embedding's projection in a residual block.
    bias: function from a layer's fan-in to its bias's distribution; biases of `zero` layers start
      at zero.
    label: distribution of the table of classes.
  """

  kernel: Initializer = kernel_init
  zero: Initializer = zero_init
  qkv: Initializer = kernel_init
  embed: Initializer = kernel_init
  bias: Callable[[int], Initializer] = zero_bias
  label: Initializer = nn.linear.default_embed_init


_torch = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
_lecun = nn.initializers.lecun_normal()
_zeros = nn.initializers.zeros

INITS = {
  "ddpm": Init(),
  # Xavier's uniform with a gain of 1e-5 is DDPM's 1e-10 of the variance. The gain of query, key and
  # value is sqrt(0.2). The original has them in one layer with three times the fan-out, which
  # halves the variance again.
  "edm": Init(qkv=nn.initializers.variance_scaling(0.1, "fan_avg", "uniform")),
  "adm": Init(_torch, _zeros, _torch, _torch, uniform_bias, nn.initializers.normal(1.0)),
  "ldm": Init(_torch, _torch, _torch, _torch, uniform_bias),
}
"""Initial distributions by recipe.

"ddpm": Ho et al. 2020. "edm": Karras et al. 2022 (their DDPM++ and NCSN++). "adm": Nichol and
Dhariwal 2021 and Dhariwal and Nichol 2021, with PyTorch's defaults and zeros in the last layers.
"ldm": the autoencoder of Rombach et al. 2022, with PyTorch's defaults everywhere.
"""

VDM_INIT = Init(_lecun, _zeros, _lecun, _zeros)
"""Kingma et al. 2021: Flax's defaults, and zeros for second convolutions and projections."""
