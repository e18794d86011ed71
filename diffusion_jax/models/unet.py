"""The U-Net of DDPM; other fields make those of Improved DDPM, ADM, DDPM++ and NCSN++.

Sources: Ho et al. 2020 (arXiv 2006.11239), appendix B; Nichol and Dhariwal 2021 (arXiv 2102.09672);
Dhariwal and Nichol 2021 (arXiv 2105.05233); Song et al. 2021 (arXiv 2011.13456) with the changes of
Karras et al. 2022 (arXiv 2206.00364), table 7. With its defaults and three channels at 32x32 it has
35,746,307 parameters, as published for DDPM.
"""

import dataclasses
from typing import Literal

from diffusion_jax.core.settings import setting
from diffusion_jax.kernels.attention import Implementation
from diffusion_jax.models.base import Network, NetworkBase, as_network
from diffusion_jax.models.initializers import INITS
from diffusion_jax.models.layers import Recipe, Remat, check_norm_groups, settled_groups
from diffusion_jax.models.resample import FILTERS
from diffusion_jax.models.unet_module import UNetModule, is_image
from diffusion_jax.types import ImageSpec

PADDINGS = ((0, 1), (1, 1))
"""Paddings with which a convolution of stride 2 halves an even side."""


@dataclasses.dataclass(frozen=True)
class UNet(NetworkBase):
  """A U-Net; the defaults are DDPM's, `norm_groups` for 128 or more channels.

  With fewer channels it has groups of 4 channels; `norm_groups=32` is DDPM's.

  | field | DDPM | iDDPM | ADM | EDM's DDPM++ | EDM's NCSN++ |
  |---|---|---|---|---|---|
  | `num_heads`, `channels_per_head` | 1 | 4 | 64 per head | 1 | 1 |
  | `decoder_attention` | every | every | every | last | last |
  | `adaptive_scale` | no | yes | yes | no | no |
  | `skip_scale` | 1 | 1 | 1 | 0.5^0.5 | 0.5^0.5 |
  | `resampling` | convolution | convolution | block | block | block |
  | `resample_filter` | | | 1, 1 | 1, 1 | 1, 3, 3, 1 |
  | `resample_projection` | | | no | yes | yes |
  | `input_residual` | no | no | no | no | yes |
  | `embedding` | positional | positional_adm | positional_adm | positional | fourier |
  | `noise_multiplier` | 1 | 1 | 1 | 1 | 2 |
  | `label_embedding` | | table | table | one_hot | one_hot |
  | `init` | ddpm | adm | adm | edm | edm |
  | `norm_epsilon` | 1e-6 | 1e-5 | 1e-5 | 1e-6 | 1e-6 |
  | `norm_groups` | 32 | 32 | 32 | none | none |
  | `downsample_padding` | 0, 1 | 1, 1 | | | |
  | `learned_variance` | no | yes | yes; no in EDM | no | no |
  | `augmentation_labels` | 0 | 0 | 0 | 9 | 9 |

  Attributes:
    channels: width at full resolution.
    multipliers: width of each level over `channels`; each level after the first halves the sides.
    num_blocks: residual blocks per level on the way down; one more on the way up.
    attention_resolutions: sides, in pixels, at which attention follows the blocks. The middle
      always has attention.
    dropout: dropout rate in the residual blocks.
    dtype: compute type; parameters, statistics and softmax stay float32.
    remat: values that the backward pass recomputes to save memory: `none`; `block`, all of a block
      except its input; `dots_with_no_batch_dims_saveable`, all except the outputs of convolutions
      and of products with weights; `offload_dot_with_no_batch_dims`, the same with these on the
      host.
    attention: `xla`, the plain form; `cudnn` on NVIDIA GPUs or `splash` on TPUs, which store no
      scores; `auto`, the device's kernel if it takes the type and shapes, else the plain form.
    num_heads: number of heads of every attention layer.
    channels_per_head: width of a head, which replaces `num_heads`; none: use `num_heads`.
    decoder_attention: attention on the way up: after `every` block of such a resolution, or only
      after its `last`.
    adaptive_scale: if true, the embedding scales and shifts the output of a block's second norm; if
      false, it is added to that norm's input.
    skip_scale: factor of the sum of a block's input and output.
    resampling: layer between levels: a `convolution` (of stride 2; or after nearest neighbour), or
      a residual `block` with a filter.
    resample_filter: filter of such a block: (1, 1) or (1, 3, 3, 1).
    resample_projection: true for a 1x1 convolution on such a block's shortcut.
    input_residual: true to add the image, halved and convolved, to each level on the way down.
    embedding: embedding of the noise level: `positional`; `positional_adm`, with the cosines first
      and a slightly higher lowest frequency; `fourier`, with random frequencies.
    fourier_scale: standard deviation of those frequencies.
    noise_multiplier: width of that embedding over `channels`.
    embedding_multiplier: width of the blocks' embedding over `channels`.
    label_embedding: embedding of the class: `table`, a vector per class (the null class too), added
      to the blocks' embedding; `one_hot`, a linear map of the one-hot class times the square root
      of the number of classes, added to the noise level's embedding (zero for the null class).
    init: initial distributions, by recipe.
    norm_epsilon: constant added to the variance in the group normalisation.
    norm_groups: number of its groups at any width, a divisor of `channels`; none: width / 4, at
      most 32.
    downsample_padding: zeros before and after each axis for a convolution of stride 2: (0, 1) as
      TensorFlow pads, (1, 1) as PyTorch does.
    time_scale: factor of the time before its embedding; the processes' times end at 999.
    time_offset: number added after that; -log(2) with time_scale=4 and process.name=ve shows the
      network log(sigma) of images between 0 and 1, as in score_sde.
    learned_variance: double the output's channels; the second half are variance logits.
    augmentation_labels: length of the vector that describes an image's augmentation; a linear map
      of it, without bias, is added to the embedding of the noise level. 0: no such input.
  """

  channels: int = 128
  multipliers: tuple[int, ...] = (1, 2, 2, 2)
  num_blocks: int = 2
  attention_resolutions: tuple[int, ...] = (16,)
  dropout: float = 0.1
  dtype: Literal["float32", "bfloat16"] = setting("float32", may_change=True)
  remat: Remat = setting("none", may_change=True, affects_figures=False)
  attention: Implementation = setting("auto", may_change=True)
  num_heads: int = 1
  channels_per_head: int | None = None
  decoder_attention: Literal["every", "last"] = "every"
  adaptive_scale: bool = False
  skip_scale: float = 1.0
  resampling: Literal["convolution", "block"] = "convolution"
  resample_filter: tuple[int, ...] = (1, 1)
  resample_projection: bool = False
  input_residual: bool = False
  embedding: Literal["positional", "positional_adm", "fourier"] = "positional"
  fourier_scale: float = 16.0
  noise_multiplier: int = 1
  embedding_multiplier: int = 4
  label_embedding: Literal["table", "one_hot"] = "table"
  init: Literal["ddpm", "edm", "adm"] = "ddpm"
  norm_epsilon: float = 1e-6
  norm_groups: int | None = None
  downsample_padding: tuple[int, ...] = (0, 1)
  time_scale: float = 1.0
  time_offset: float = 0.0
  learned_variance: bool = False
  augmentation_labels: int = 0

  def __post_init__(self):
    if self.channels < 4 or self.channels % 2:
      raise ValueError(f"channels={self.channels} must be even and at least 4")
    if not self.multipliers or min(self.multipliers) < 1 or self.num_blocks < 1:
      raise ValueError(
        f"multipliers={self.multipliers}, num_blocks={self.num_blocks}: all must be at least 1"
      )
    if not 0 <= self.dropout < 1:
      raise ValueError(f"dropout={self.dropout} must be at least 0 and below 1")
    self._check_recipe()

  def _check_recipe(self) -> None:
    if self.augmentation_labels < 0:
      raise ValueError(f"augmentation_labels={self.augmentation_labels} must not be negative")
    if self.noise_multiplier < 1 or self.embedding_multiplier < 1:
      raise ValueError("noise_multiplier and embedding_multiplier must be at least 1")
    if min(self.skip_scale, self.norm_epsilon, self.fourier_scale, self.time_scale) <= 0:
      raise ValueError("skip_scale, norm_epsilon, fourier_scale and time_scale must be positive")
    check_norm_groups(self.norm_groups, self.channels)
    if self.downsample_padding not in PADDINGS:
      allowed = " or ".join(str(padding) for padding in PADDINGS)
      raise ValueError(f"downsample_padding={self.downsample_padding} must be {allowed}")
    if self.resample_filter not in FILTERS:
      allowed = " or ".join(str(taps) for taps in FILTERS)
      raise ValueError(f"resample_filter={self.resample_filter} must be {allowed}")
    if self.num_heads < 1 or (self.channels_per_head is not None and self.channels_per_head < 1):
      raise ValueError("num_heads and channels_per_head must be at least 1")
    if self.channels_per_head is not None and self.num_heads != 1:
      raise ValueError(
        f"num_heads={self.num_heads} and channels_per_head={self.channels_per_head}: give only one "
        "of them, `model.num_heads=1` or `model.channels_per_head=None`"
      )

  @property
  def takes(self) -> frozenset[str]:
    return frozenset(
      {"label", "fields"} | ({"augmentation"} if self.augmentation_labels else set())
    )

  def create(self, spec: ImageSpec, num_labels: int) -> Network:
    """Build the pure functions for images of `spec`.

    Named arrays of the images' height and width join the input as further channels; vectors are
    added, by a linear map, to the blocks' embedding.

    Args:
      spec: shape of the images, with the named arrays that it is given.
      num_labels: size of the label embedding (the null class included), 0 for unconditional.

    Raises:
      ValueError: the image's sides cannot be halved between all levels, heads do not divide a
        width, or a named array is neither.
    """
    factor = 2 ** (len(self.multipliers) - 1)
    if spec.height % factor or spec.width % factor:
      raise ValueError(
        f"images of {spec.height}x{spec.width} cannot be halved {len(self.multipliers) - 1} times: "
        f"multipliers={self.multipliers} has {len(self.multipliers)} levels; use sides divisible "
        f"by {factor} or fewer multipliers"
      )
    self._check_heads(spec)
    check_fields(spec)
    out_channels = spec.channels * (2 if self.learned_variance else 1)
    return as_network(UNetModule(self, out_channels, num_labels), self, spec, num_labels)

  def warning(self, spec: ImageSpec) -> str | None:
    """Return a sentence on resolutions for attention that no level has; None if all exist."""
    sides = self._sides(spec)
    odd = [str(side) for side in self.attention_resolutions if side not in sides]
    if not odd:
      return None
    is_nowhere = len(odd) == len(self.attention_resolutions)
    where = ", so attention is only in the middle" if is_nowhere else ""
    return (
      f"`model.attention_resolutions={','.join(map(str, self.attention_resolutions))}`: no level "
      f"of the network has side {' or '.join(odd)}; its levels have "
      f"{', '.join(map(str, sides))}{where}"
    )

  def _sides(self, spec: ImageSpec) -> list[int]:
    return [spec.height // 2**level for level in range(len(self.multipliers))]

  def _check_heads(self, spec: ImageSpec) -> None:
    sides = self._sides(spec)
    here = [side in self.attention_resolutions for side in sides[:-1]] + [True]  # the middle too
    for multiplier in (m for m, attention in zip(self.multipliers, here, strict=True) if attention):
      width, unit = self.channels * multiplier, self.channels_per_head or self.num_heads
      if width % unit:
        name = "channels_per_head" if self.channels_per_head else "num_heads"
        raise ValueError(f"{name}={unit} must divide the {width} channels of its attention")

  @property
  def recipe(self) -> Recipe:
    """Return the settings that its blocks share."""
    return Recipe(
      init=INITS[self.init],
      epsilon=self.norm_epsilon,
      adaptive_scale=self.adaptive_scale,
      skip_scale=self.skip_scale,
      num_heads=self.num_heads,
      channels_per_head=self.channels_per_head,
      norm_groups=self.norm_groups,
      attention=self.attention,
    )

  def settled(self) -> "UNet":
    """Return the same network with an explicit number of groups, if all widths share one."""
    widths = [self.channels * n for n in range(1, 2 * max(self.multipliers) + 1)]
    return dataclasses.replace(self, norm_groups=settled_groups(self.norm_groups, widths))


def check_fields(spec: ImageSpec) -> None:
  """Raise an error for named arrays that are neither vectors nor as large as the images.

  Raises:
    ValueError: an array has another shape; the message has its name and shape.
  """
  for name, field in spec.fields.items():
    if len(field.shape) != 1 and not is_image(field.shape, spec.shape):
      raise ValueError(
        f"`generative.fields={name}` has shape {tuple(field.shape)}; the U-Net takes vectors (D,) "
        f"and images ({spec.height}, {spec.width}, C)"
      )
