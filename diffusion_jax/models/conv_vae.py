"""A convolutional variational autoencoder: residual encoder and decoder around its latents.

The posterior is q(z | x) = N(mean(x), diag exp(log_var(x))); Kingma and Welling 2014
(arXiv 1312.6114), section 3. The latents are a vector, or a small image on which a diffusion model
can be trained (Rombach et al. 2022, arXiv 2112.10752, section 3.1).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from diffusion_jax.core.parts import Part
from diffusion_jax.core.settings import setting
from diffusion_jax.models.layers import (
  Conv3,
  Norm,
  Recipe,
  Remat,
  ResBlock,
  Upsample,
  check_norm_groups,
  rematerialized,
  settled_groups,
)
from diffusion_jax.types import ImageSpec, Key, Params


class VAENetworks(NamedTuple):
  """A VAE's networks as pure functions.

  Attributes:
    init: function from a key to params {"encoder", "decoder"}.
    encode: function (params, x [B H W C], dropout_key or None) -> (mean [B ...], log_var [B ...]).
    decode: function (params, z [B ...], dropout_key or None) -> [B H W P], the raw parameters of
      the observation model.
    latent_shape: shape of one example's z: (D,), or (h, w, c) for spatial latents.
  """

  init: Callable[[Key], Params]
  encode: Callable[..., tuple[Float[Array, "B ..."], Float[Array, "B ..."]]]
  decode: Callable[..., Float[Array, "B H W P"]]
  latent_shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class ConvVAE(Part):
  """A convolutional encoder and decoder.

  Attributes:
    latent_dim: D, size of z if it is a vector.
    latent_channels: c of spatial latents [h w c], which are as large as the last level; latent_dim
      is then unused. None: z is a vector.
    channels: width at full resolution.
    multipliers: width of each level over `channels`; each level after the first halves the sides.
    num_blocks: residual blocks per level.
    dropout: dropout rate in the residual blocks.
    norm_groups: number of groups of the group normalisation, a divisor of `channels`; none: width /
      4, at most 32.
    dtype: compute type; parameters and statistics stay float32.
    remat: values that the backward pass recomputes to save memory: `none`; `block`, all of a block
      except its input; `dots_with_no_batch_dims_saveable`, all except the outputs of convolutions
      and of products with weights; `offload_dot_with_no_batch_dims`, the same with these on the
      host.
  """

  latent_dim: int = 16
  latent_channels: int | None = None
  channels: int = 64
  multipliers: tuple[int, ...] = (1, 2)
  num_blocks: int = 1
  dropout: float = setting(0.0, affects_encoding=False)
  norm_groups: int | None = None
  dtype: Literal["float32", "bfloat16"] = setting(
    "float32", may_change=True, affects_encoding=False
  )
  remat: Remat = setting("none", may_change=True, affects_figures=False, affects_encoding=False)

  def __post_init__(self):
    if min(self.latent_dim, self.channels, self.num_blocks, *self.multipliers, 1) < 1:
      raise ValueError("latent_dim, channels, num_blocks and multipliers must be at least 1")
    if self.latent_channels is not None and self.latent_channels < 1:
      raise ValueError(f"latent_channels={self.latent_channels} must be at least 1, or none")
    if not self.multipliers:
      raise ValueError("multipliers is empty; it needs one number per level")
    if not 0 <= self.dropout < 1:
      raise ValueError(f"dropout={self.dropout} must be at least 0 and below 1")
    check_norm_groups(self.norm_groups, self.channels)

  @property
  def has_spatial_latents(self) -> bool:
    return self.latent_channels is not None

  @property
  def recipe(self) -> Recipe:
    """Return the settings that its blocks share."""
    return Recipe(norm_groups=self.norm_groups)

  def settled(self) -> "ConvVAE":
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
    start = halved_sides(spec, self.multipliers)
    channels = self.latent_channels
    shape = (self.latent_dim,) if channels is None else (*start, channels)
    return as_vae_networks(Encoder(self), Decoder(self, start, num_outputs), spec, shape)


def halved_sides(spec: ImageSpec, multipliers: tuple[int, ...]) -> tuple[int, int]:
  """Return height and width of the last level, halved once for each level after the first.

  Raises:
    ValueError: the image's sides cannot be halved between all levels.
  """
  factor = 2 ** (len(multipliers) - 1)
  if spec.height % factor or spec.width % factor:
    raise ValueError(
      f"images of {spec.height}x{spec.width} cannot be halved {len(multipliers) - 1} times: "
      f"multipliers={multipliers} has {len(multipliers)} levels; use sides divisible "
      f"by {factor} or fewer multipliers"
    )
  return spec.height // factor, spec.width // factor


def as_vae_networks(
  encoder: nn.Module, decoder: nn.Module, spec: ImageSpec, latent_shape: tuple[int, ...]
) -> VAENetworks:
  """Wrap modules called as (images or latents, train) as pure functions.

  Args:
    encoder: module that returns the mean and log-variance of q(z | x).
    decoder: module that returns the raw parameters of p(x | z).
    spec: shape of the images.
    latent_shape: shape of one example's z.
  """
  return VAENetworks(
    lambda key: _init(encoder, decoder, spec, latent_shape, key),
    lambda params, x, key=None: _apply(encoder, params["encoder"], x, key),
    lambda params, z, key=None: _apply(decoder, params["decoder"], z, key),
    latent_shape,
  )


def _init(
  encoder: nn.Module, decoder: nn.Module, spec: ImageSpec, latent_shape: tuple[int, ...], key: Key
) -> Params:
  key1, key2 = jax.random.split(key)
  images, latents = jnp.zeros((1, *spec.shape)), jnp.zeros((1, *latent_shape))
  return {
    "encoder": encoder.init(key1, images, False)["params"],
    "decoder": decoder.init(key2, latents, False)["params"],
  }


def _apply(module: nn.Module, params: Params, x: Array, dropout_key: Key | None) -> Any:
  rngs = {} if dropout_key is None else {"dropout": dropout_key}
  return module.apply({"params": params}, x, dropout_key is not None, rngs=rngs)


def _block(config: ConvVAE, width: int, name: str):
  kind = rematerialized(ResBlock, config.remat, (3,))
  return kind(width, config.dropout, jnp.dtype(config.dtype), config.recipe, name=name)


def _norm_out(config: ConvVAE) -> Norm:
  dtype, groups = jnp.dtype(config.dtype), config.norm_groups
  return Norm(dtype, swish=True, groups=groups, name="norm_out")


class Encoder(nn.Module):
  """Map images to the mean and log-variance of q(z | x), both float32."""

  config: ConvVAE

  @nn.compact
  def __call__(
    self, x: Float[Array, "B H W C"], train: bool
  ) -> tuple[Float[Array, "B ..."], Float[Array, "B ..."]]:
    config, dtype = self.config, jnp.dtype(self.config.dtype)
    h = Conv3(config.channels, dtype=dtype, name="conv_in")(x)
    for level, multiplier in enumerate(config.multipliers):
      if level:
        h = Conv3(h.shape[-1], stride=2, dtype=dtype, name=f"level{level}_half")(h)
      for i in range(config.num_blocks):
        block = _block(config, config.channels * multiplier, f"level{level}_block{i}")
        h = block(h, None, train)
    h = _norm_out(config)(h).astype(jnp.float32)
    if config.latent_channels is not None:
      h = Conv3(2 * config.latent_channels, name="posterior")(h)
    else:
      h = nn.Dense(2 * config.latent_dim, name="posterior")(h.reshape(h.shape[0], -1))
    mean, log_var = jnp.split(h, 2, axis=-1)
    return mean, log_var


class Decoder(nn.Module):
  """Map latents to the raw parameters of p(x | z), float32."""

  config: ConvVAE
  start: tuple[int, int]
  num_outputs: int

  @nn.compact
  def __call__(self, z: Float[Array, "B ..."], train: bool) -> Float[Array, "B H W P"]:
    config, dtype = self.config, jnp.dtype(self.config.dtype)
    width = config.channels * config.multipliers[-1]
    if config.latent_channels is not None:
      h = Conv3(width, dtype=dtype, name="conv_in")(z)
    else:
      h = nn.Dense(self.start[0] * self.start[1] * width, dtype=dtype, name="dense_in")(z)
      h = h.reshape(-1, *self.start, width)
    for level, multiplier in reversed(list(enumerate(config.multipliers))):
      for i in range(config.num_blocks):
        block = _block(config, config.channels * multiplier, f"level{level}_block{i}")
        h = block(h, None, train)
      if level:
        h = Upsample(dtype, name=f"level{level}_double")(h)
    h = _norm_out(config)(h).astype(jnp.float32)
    return Conv3(self.num_outputs, name="conv_out")(h)
