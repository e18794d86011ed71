"""Embeddings of noise levels, pixels and positions, all float32."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float


def sinusoidal_embedding(time: Float[Array, "B"], dim: int) -> Float[Array, "B D"]:
  """[sin, cos] of the time at `dim / 2` frequencies from 1 down to 1/10000, float32.

  Source: Ho et al. 2020, after Vaswani et al. 2017, with denominator dim / 2 - 1.
  """
  half = dim // 2
  frequency = jnp.exp(-jnp.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / (half - 1))
  angle = time.astype(jnp.float32)[:, None] * frequency[None, :]
  return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def cosine_first_embedding(time: Float[Array, "B"], dim: int) -> Float[Array, "B D"]:
  """[cos, sin] of the time at `dim / 2` frequencies from 1 down to just above 1/10000, float32.

  Source: Nichol and Dhariwal 2021, and after them ADM and DiT, with denominator dim / 2.
  """
  half = dim // 2
  frequency = jnp.exp(-jnp.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / half)
  angle = time.astype(jnp.float32)[:, None] * frequency[None, :]
  return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


class FourierEmbedding(nn.Module):
  """[sin, cos] of 2 pi f t at random frequencies f ~ N(0, scale^2) that are never trained.

  They are kept among the parameters, where a checkpoint holds them. Source: Tancik et al. 2020
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
  """sin and cos of 2 pi 2^n x for each channel and each n of `exponents`: D = 2 C len(exponents).

  They show a network the last bits of a pixel. Source: Kingma et al. 2021 (arXiv 2107.00630),
  appendix C, with n of 6 and 7 here for their 7 and 8 of 2^n pi.
  """
  frequency = 2 * jnp.pi * 2.0 ** jnp.asarray(exponents, jnp.float32)
  angle = (x.astype(jnp.float32)[..., None] * frequency).reshape(*x.shape[:-1], -1)
  return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def position_embedding(rows: int, columns: int, dim: int) -> Float[np.ndarray, "N D"]:
  """Fixed embedding of a grid's positions, row by row: [sin, cos] of the column, then of the row.

  Each quarter has frequencies 10000^(-4 i / dim). Source: Peebles and Xie 2023 (arXiv 2212.09748),
  after He et al. 2022 (arXiv 2111.06377); that the column comes first is their code's order.

  Args:
    rows, columns: of the grid; N is their product.
    dim: D, divisible by 4.
  """
  frequency = 10000.0 ** (-np.arange(dim // 4) / (dim // 4))
  row, column = np.divmod(np.arange(rows * columns), columns)
  angles = [place[:, None] * frequency for place in (column, row)]
  parts = [wave(angle) for angle in angles for wave in (np.sin, np.cos)]
  return np.concatenate(parts, axis=1).astype(np.float32)
