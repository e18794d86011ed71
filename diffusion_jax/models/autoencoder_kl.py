"""The autoencoder of latent diffusion and Stable Diffusion, KL-f8.

Source: Rombach et al. 2022 (arXiv 2112.10752), section 3.1, appendix G; CompVis/latent-diffusion,
ldm/modules/diffusionmodules/model.py; AutoencoderKL in diffusers. Stable Diffusion's has 83,653,863
parameters. It is fully convolutional: images of any sides that its factor divides have latents that
are smaller by that factor. The decoder gives the image's mean, so the observation model is a
Gaussian of fixed deviation, `decoder.name=gaussian` `decoder.std=0.1`.
"""

import dataclasses
from typing import Any, Literal

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from diffusion_jax.core.parts import Part
from diffusion_jax.core.settings import setting
from diffusion_jax.models.conv_vae import VAENetworks, as_vae_networks, halved_sides
from diffusion_jax.models.initializers import INITS
from diffusion_jax.models.layers import (
  FLOAT32,
  Attention,
  Conv3,
  Norm,
  Pointwise,
  Recipe,
  Remat,
  ResBlock,
  Upsample,
  check_norm_groups,
  rematerialized,
  settled_groups,
)
from diffusion_jax.types import ImageSpec

LOG_VARIANCES = (-30.0, 20.0)
"""Bounds of the posterior's log-variance."""


@dataclasses.dataclass(frozen=True)
class AutoencoderKL(Part):
  """Encoder and decoder of latent diffusion; the defaults are Stable Diffusion's.

  Attributes:
    latent_channels: c of the latents [h w c].
    channels: width at full resolution.
    multipliers: width of each level over `channels`; each level after the first halves the sides,
      so four are a factor of 8.
    num_blocks: residual blocks per level of the encoder; the decoder has one more.
    middle_attention: true for attention between the two blocks of the last level's middle.
    quant_conv: true for a linear layer per latent position after the encoder and before the
      decoder, as in latent and Stable Diffusion 1 and 2; Stable Diffusion 3 has none.
    latent_scale: factor of the latents under a diffusion model, 0.18215 for Stable Diffusion's,
      which encoding a data set stores with them; none: measured, so that their deviation is 1.
    dropout: dropout rate in the residual blocks.
    norm_groups: number of groups of the group normalisation, a divisor of `channels`; none: width /
      4, at most 32.
    dtype: compute type; parameters and statistics stay float32.
    remat: values that the backward pass recomputes to save memory: `none`; `block`, all of a block
      except its input; `dots_with_no_batch_dims_saveable`, all except the outputs of convolutions
      and of products with weights; `offload_dot_with_no_batch_dims`, the same with these on the
      host.
  """

  latent_channels: int = 4
  channels: int = 128
  multipliers: tuple[int, ...] = (1, 2, 4, 4)
  num_blocks: int = 2
  middle_attention: bool = True
  quant_conv: bool = True
  latent_scale: float | None = setting(
    None, may_change=True, affects_figures=False, affects_encoding=False
  )
  dropout: float = setting(0.0, affects_encoding=False)
  norm_groups: int | None = 32
  dtype: Literal["float32", "bfloat16"] = setting(
    "float32", may_change=True, affects_encoding=False
  )
  remat: Remat = setting("none", may_change=True, affects_figures=False, affects_encoding=False)

  has_spatial_latents = True

  def __post_init__(self):
    if not self.multipliers:
      raise ValueError("multipliers is empty; it needs one number per level")
    if min(self.latent_channels, self.channels, self.num_blocks, *self.multipliers) < 1:
      raise ValueError("latent_channels, channels, num_blocks and multipliers must be at least 1")
    if self.latent_scale is not None and not self.latent_scale > 0:
      raise ValueError(f"latent_scale={self.latent_scale} must be positive, or none to measure it")
    if not 0 <= self.dropout < 1:
      raise ValueError(f"dropout={self.dropout} must be at least 0 and below 1")
    check_norm_groups(self.norm_groups, self.channels)

  @property
  def recipe(self) -> Recipe:
    """Return the settings that its blocks share."""
    return Recipe(INITS["ldm"], norm_groups=self.norm_groups)

  def settled(self) -> "AutoencoderKL":
    """Return the same networks with an explicit number of groups, if all widths share one."""
    widths = [self.channels * multiplier for multiplier in (1, *self.multipliers)]
    return dataclasses.replace(self, norm_groups=settled_groups(self.norm_groups, widths))

  def create(self, spec: ImageSpec, num_outputs: int) -> VAENetworks:
    """Build the pure functions.

    Args:
      spec: shape of the images.
      num_outputs: P, parameters per pixel of the observation model.

    Raises:
      ValueError: the image's sides cannot be halved between all levels.
    """
    shape = (*halved_sides(spec, self.multipliers), self.latent_channels)
    return as_vae_networks(Encoder(self), Decoder(self, num_outputs), spec, shape)


class Encoder(nn.Module):
  """Map images to the mean and log-variance of q(z | x), both float32."""

  config: AutoencoderKL

  @nn.compact
  def __call__(
    self, x: Float[Array, "B H W C"], train: bool
  ) -> tuple[Float[Array, "B h w c"], Float[Array, "B h w c"]]:
    config = self.config
    h = _conv(config, config.channels, "conv_in")(x)
    for level, multiplier in enumerate(config.multipliers):
      for i in range(config.num_blocks):
        h = _block(config, config.channels * multiplier, f"level{level}_block{i}")(h, None, train)
      if level < len(config.multipliers) - 1:
        h = _conv(config, h.shape[-1], f"level{level}_half", stride=2, padding=(0, 1))(h)
    h = _middle(config, h, train)
    num_outputs = 2 * config.latent_channels
    h = _conv(config, num_outputs, "conv_out", dtype=FLOAT32)(_normalized(config, h))
    if config.quant_conv:
      h = _dense(config, num_outputs, "quant")(h)
    mean, log_var = jnp.split(h, 2, axis=-1)
    return mean, jnp.clip(log_var, *LOG_VARIANCES)


class Decoder(nn.Module):
  """Map latents to the raw parameters of p(x | z), float32."""

  config: AutoencoderKL
  num_outputs: int

  @nn.compact
  def __call__(self, z: Float[Array, "B h w c"], train: bool) -> Float[Array, "B H W P"]:
    config = self.config
    if config.quant_conv:
      z = _dense(config, config.latent_channels, "post_quant")(z)
    h = _conv(config, config.channels * config.multipliers[-1], "conv_in")(z)
    h = _middle(config, h, train)
    for level, multiplier in reversed(list(enumerate(config.multipliers))):
      for i in range(config.num_blocks + 1):
        h = _block(config, config.channels * multiplier, f"level{level}_block{i}")(h, None, train)
      if level:
        h = Upsample(jnp.dtype(config.dtype), config.recipe, name=f"level{level}_double")(h)
    return _conv(config, self.num_outputs, "conv_out", dtype=FLOAT32)(_normalized(config, h))


def _conv(config: AutoencoderKL, width: int, name: str, **options: Any) -> Conv3:
  init = config.recipe.init
  options = {"dtype": jnp.dtype(config.dtype), **options}
  return Conv3(width, kernel=init.kernel, bias=init.bias, name=name, **options)


def _dense(config: AutoencoderKL, width: int, name: str) -> nn.Dense:
  """Return a float32 layer of the latents."""
  init = config.recipe.init
  return Pointwise(width, kernel_init=init.kernel, bias_init=init.bias(width), name=name)


def _block(config: AutoencoderKL, width: int, name: str) -> Any:
  kind = rematerialized(ResBlock, config.remat, (3,))
  return kind(width, config.dropout, jnp.dtype(config.dtype), config.recipe, name=name)


def _middle(config: AutoencoderKL, h: Array, train: bool) -> Array:
  width = h.shape[-1]
  h = _block(config, width, "middle_block0")(h, None, train)
  if config.middle_attention:
    kind = rematerialized(Attention, config.remat)
    h = kind(jnp.dtype(config.dtype), config.recipe, name="middle_attention")(h)
  return _block(config, width, "middle_block1")(h, None, train)


def _normalized(config: AutoencoderKL, h: Array) -> Array:
  norm = Norm(jnp.dtype(config.dtype), swish=True, groups=config.norm_groups, name="norm_out")
  return norm(h).astype(jnp.float32)
