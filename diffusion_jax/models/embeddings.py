"""Embeddings of noise levels, pixels and positions, all float32."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float


def sinusoidal_embedding(time: Float[Array, "B"], dim: int) -> Float[Array, "B D"]:
  """Return [sin, cos] of the time at `dim / 2` frequencies from 1 down to 1/10000, float32.

  Source: Ho et al. 2020, after Vaswani et al. 2017, with denominator dim / 2 - 1.
  """
  half = dim // 2
  frequency = jnp.exp(-jnp.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / (half - 1))
  angle = time.astype(jnp.float32)[:, None] * frequency[None, :]
  return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def cosine_first_embedding(
  time: Float[Array, "B"], dim: int, shift: int = 0
) -> Float[Array, "B D"]:
  """Return [cos, sin] of the time at `dim / 2` frequencies, float32.

  They decrease from 1 to slightly more than 1/10000. Source: Nichol and Dhariwal 2021, and after
  them ADM and DiT, with denominator dim / 2; diffusers' DiT has dim / 2 - `shift`, shift = 1.
  """
  half = dim // 2
  steps = jnp.arange(half, dtype=jnp.float32)
  frequency = jnp.exp(-jnp.log(10000.0) * steps / (half - shift))
  angle = time.astype(jnp.float32)[:, None] * frequency[None, :]
  return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


class FourierEmbedding(nn.Module):
  """[sin, cos] of 2 pi f t at fixed random frequencies f ~ N(0, scale^2).

  The frequencies are stored among the parameters, but not trained. Source: Tancik et al. 2020
  (arXiv 2006.10739), as in NCSN++ (Song et al. 2021, arXiv 2011.13456).
  """

  dim: int
  scale: float = 16.0

  @nn.compact
  def __call__(self, time: Float[Array, "B"]) -> Float[Array, "B D"]:
    init = nn.initializers.normal(self.scale)
    frequency = jax.lax.stop_gradient(self.param("frequencies", init, (self.dim // 2,)))
    angle = 2 * jnp.pi * time.astype(jnp.float32)[:, None] * frequency[None, :]
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def pixel_fourier_features(
  x: Float[Array, "B H W C"], exponents: tuple[int, ...]
) -> Float[Array, "B H W D"]:
  """Return sin and cos of 2 pi 2^n x per channel and exponent n: D = 2 C len(exponents).

  They make the last bits of a pixel visible to a network. Source: Kingma et al. 2021 (arXiv
  2107.00630), appendix C, whose 7 and 8 in 2^n pi are n = 6 and 7 here.
  """
  frequency = 2 * jnp.pi * 2.0 ** jnp.asarray(exponents, jnp.float32)
  angle = (x.astype(jnp.float32)[..., None] * frequency).reshape(*x.shape[:-1], -1)
  return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def position_embedding(rows: int, columns: int, dim: int) -> Float[np.ndarray, "N D"]:
  """Return fixed embeddings of a grid's positions: [sin, cos] of column, then of row.

  Positions are ordered row by row. Each quarter has frequencies 10000^(-4 i / dim). Source: Peebles
  and Xie 2023 (arXiv 2212.09748), after He et al. 2022 (arXiv 2111.06377); their code puts the
  column first.

  Args:
    rows, columns: size of the grid; N is their product.
    dim: D, divisible by 4.
  """
  frequency = 10000.0 ** (-np.arange(dim // 4) / (dim // 4))
  row, column = np.divmod(np.arange(rows * columns), columns)
  angles = [position[:, None] * frequency for position in (column, row)]
  waves = [wave(angle) for angle in angles for wave in (np.sin, np.cos)]
  return np.concatenate(waves, axis=1).astype(np.float32)
