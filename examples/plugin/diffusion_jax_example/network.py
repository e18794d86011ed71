"""A network in a plug-in: an MLP-mixer over patches."""

import dataclasses

import jax.numpy as jnp
from flax import linen as nn

from diffusion_jax.models.base import NetworkBase, as_network
from diffusion_jax.models.embeddings import sinusoidal_embedding


@dataclasses.dataclass(frozen=True)
class MLPMixer(NetworkBase):
  """Alternating dense layers over patches and over channels, conditioned on time and class.

  Source: Tolstikhin et al. 2021 (arXiv 2105.01601).

  Attributes:
    patch_size: pixels per side of a patch; must divide the image's sides.
    width: channels per patch, even and at least 4.
    depth: number of blocks.
  """

  patch_size: int = 2
  width: int = 64
  depth: int = 2

  def __post_init__(self):
    if self.patch_size < 1 or self.depth < 1:
      raise ValueError(f"patch_size={self.patch_size}, depth={self.depth} must be at least 1")
    if self.width < 4 or self.width % 2:
      raise ValueError(f"width={self.width} must be even and at least 4")

  def create(self, spec, num_labels):
    """Return the network for images whose sides are multiples of the patch size."""
    if spec.height % self.patch_size or spec.width % self.patch_size:
      raise ValueError(
        f"patch_size={self.patch_size} must divide the image's sides {spec.height} and "
        f"{spec.width}; try `model.patch_size=1`"
      )
    return as_network(MixerModule(self, spec.channels, num_labels), self, spec, num_labels)


class MixerModule(nn.Module):
  """The network; `MLPMixer` describes its fields."""

  config: MLPMixer
  channels: int
  num_labels: int

  @nn.compact
  def __call__(self, x, time, condition, train):
    """Return the output [B H W C] for noised images x [B H W C] and times [B]."""
    del train  # no dropout
    width, size = self.config.width, self.config.patch_size
    code = nn.Dense(width, name="time")(sinusoidal_embedding(time, width))
    if self.num_labels and condition.label is not None:
      code = code + nn.Embed(self.num_labels, width, name="label")(condition.label)
    h = nn.Conv(width, (size, size), (size, size), name="patches")(x)
    grid = h.shape[1:3]
    h = h.reshape(len(x), -1, width) + code[:, None]
    h = h + self.param("position", nn.initializers.normal(0.02), h.shape[1:])
    for i in range(self.config.depth):
      mixed = _mlp(nn.LayerNorm(name=f"norm{i}_patches")(h).swapaxes(1, 2), f"patches{i}")
      h = h + mixed.swapaxes(1, 2)
      h = h + _mlp(nn.LayerNorm(name=f"norm{i}_channels")(h), f"channels{i}")
    out = nn.Dense(size * size * self.channels, kernel_init=nn.initializers.zeros, name="out")
    pixels = out(nn.LayerNorm(name="norm_out")(h)).reshape(len(x), *grid, size, size, -1)
    return jnp.moveaxis(pixels, 3, 2).reshape(x.shape).astype(x.dtype)


def _mlp(x, name):
  """Apply two dense layers along the last axis; called inside a module."""
  hidden = nn.gelu(nn.Dense(2 * x.shape[-1], name=f"{name}_in")(x))
  return nn.Dense(x.shape[-1], name=f"{name}_out")(hidden)
