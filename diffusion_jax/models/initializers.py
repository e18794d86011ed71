"""How the arrays of a network start, by published recipe."""

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
  """Zeros whatever the layer."""
  del fan_in
  return nn.initializers.zeros


def uniform_bias(fan_in: int) -> Initializer:
  """Uniform within 1 / sqrt(fan-in), as PyTorch's layers start."""
  bound = fan_in**-0.5

  def init(key, shape, dtype=jnp.float32, out_sharding=None):
    del out_sharding  # biases are not split
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return init


class Init(NamedTuple):
  """Initial distributions of a network's arrays.

  Attributes:
    kernel: of convolutions and dense layers.
    zero: the same of the last layer of every branch, and of the network.
    qkv: of attention's queries, keys and values.
    embed: of the projection of the embedding in a residual block.
    bias: fan-in of the layer -> of its bias; biases beside `zero` start at zero.
    label: of the table of classes.
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
  # value is sqrt(0.2); as the original makes them in one layer, of three times the fan-out, the
  # variance is another half of what their own fans would give.
  "edm": Init(qkv=nn.initializers.variance_scaling(0.1, "fan_avg", "uniform")),
  "adm": Init(_torch, _zeros, _torch, _torch, uniform_bias, nn.initializers.normal(1.0)),
}
"""By recipe: Ho et al. 2020; Karras et al. 2022 (their DDPM++ and NCSN++); Nichol and Dhariwal 2021
and Dhariwal and Nichol 2021, who leave PyTorch's defaults and zero the last layers."""

VDM_INIT = Init(_lecun, _zeros, _lecun, _zeros)
"""Kingma et al. 2021: Flax's defaults, and zeros for second convolutions and projections."""
