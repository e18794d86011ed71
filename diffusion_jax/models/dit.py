"""The diffusion transformer: patches as tokens, blocks modulated by time and class.

Source: Peebles and Xie 2023 (arXiv 2212.09748).
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from diffusion_jax.core.settings import setting
from diffusion_jax.kernels.attention import Implementation, attend
from diffusion_jax.models.base import Network, NetworkBase, as_network
from diffusion_jax.models.embeddings import cosine_first_embedding, position_embedding
from diffusion_jax.models.initializers import kernel_init
from diffusion_jax.models.layers import FLOAT32, Dtype, Pointwise, Remat, rematerialized
from diffusion_jax.parallel.sharding import gather_layer
from diffusion_jax.processes.base import EMBED_SCALE
from diffusion_jax.types import Condition, ImageSpec

TIME_FREQUENCIES = 256
EPSILON = 1e-6
MAX_UNROLLED = 6
"""Number of blocks up to which the scan is no loop: they compile in seconds and run faster."""

embed_init = nn.initializers.normal(0.02)
# Xavier's uniform of query, key and value as one layer, as the original initialises it.
qkv_init = nn.initializers.variance_scaling(0.5, "fan_avg", "uniform")
zeros = nn.initializers.zeros


@dataclasses.dataclass(frozen=True)
class DiT(NetworkBase):
  """A diffusion transformer; the defaults are DiT-S/2.

  | | depth | hidden | heads |
  |---|---|---|---|
  | S | 12 | 384 | 6 |
  | B | 12 | 768 | 12 |
  | L | 24 | 1024 | 16 |
  | XL | 28 | 1152 | 16 |

  The number after the slash is the patch: XL/2 cuts an image into patches of 2x2 pixels.

  Attributes:
    depth: number of blocks.
    hidden: width of a token.
    heads: number of heads of every attention layer.
    patch: side of a patch, pixels.
    mlp_ratio: width of the hidden layer of a block's MLP over `hidden`.
    time_scale: factor of the time before its embedding. 1 keeps the processes' 0 to 999, as in DiT;
      1 / 999 gives SiT's 0 to 1.
    frequency_shift: the exponents of the time's frequencies are divided by 128 less this: 0 in DiT,
      1 in the DiT of diffusers.
    from_noise: count the time from noise to data, as SiT does: 999 - time is embedded, and the
      output is the negative of the prediction, a velocity.
    learned_variance: double the output's channels; the second half are variance logits.
    spare_outputs: double the output's channels and discard the second half, as SiT does, whose
      last layer is that of a DiT with variance logits.
    mlp_epsilon: epsilon of the norms before the MLPs; other norms have 1e-6.
    dtype: compute type of products and residuals; parameters, embeddings, norms, modulation and
      softmax stay float32.
    remat: values that the backward pass recomputes to save memory: `none`; `block`, all of a block
      except its input; `dots_with_no_batch_dims_saveable`, all except the outputs of products with
      weights; `offload_dot_with_no_batch_dims`, the same with these on the host.
    attention: `xla`, the plain form; `cudnn` on NVIDIA GPUs or `splash` on TPUs, which store no
      scores; `auto`, the device's kernel if it takes the type and shapes, else the plain form.
    scan_blocks: compile one block and run it `depth` times, with the parameters of all blocks in
      one array each; false: compile each block by itself. Checkpoints of either can be restored.
  """

  depth: int = 12
  hidden: int = 384
  heads: int = 6
  patch: int = 2
  mlp_ratio: int = 4
  time_scale: float = 1.0
  frequency_shift: int = 0
  from_noise: bool = False
  learned_variance: bool = False
  spare_outputs: bool = False
  mlp_epsilon: float = EPSILON
  dtype: Literal["float32", "bfloat16"] = setting("float32", may_change=True)
  remat: Remat = setting("none", may_change=True, affects_figures=False)
  attention: Implementation = setting("auto", may_change=True)
  scan_blocks: bool = setting(True, may_change=True, affects_figures=False)

  def __post_init__(self):
    if min(self.depth, self.hidden, self.heads, self.patch, self.mlp_ratio) < 1:
      raise ValueError("depth, hidden, heads, patch and mlp_ratio must be at least 1")
    if self.hidden % self.heads or self.hidden % 4:
      raise ValueError(f"hidden={self.hidden} must be divisible by heads={self.heads} and by 4")
    if self.time_scale <= 0:
      raise ValueError(f"time_scale={self.time_scale} must be positive")
    if self.frequency_shift not in (0, 1):
      raise ValueError(f"frequency_shift={self.frequency_shift} must be 0 or 1")
    if self.mlp_epsilon <= 0:
      raise ValueError(f"mlp_epsilon={self.mlp_epsilon} must be positive")
    if self.learned_variance and (self.spare_outputs or self.from_noise):
      field = "spare_outputs" if self.spare_outputs else "from_noise"
      raise ValueError(f"{field}=True needs learned_variance=False: the output is a velocity")

  def create(self, spec: ImageSpec, num_labels: int) -> Network:
    """Build the pure functions for images of `spec`.

    Args:
      spec: shape of the images.
      num_labels: size of the label embedding (the null class included), 0 for unconditional.

    Raises:
      ValueError: the image cannot be cut into patches.
    """
    if spec.height % self.patch or spec.width % self.patch:
      raise ValueError(
        f"images of {spec.height}x{spec.width} cannot be cut into patches of {self.patch}x"
        f"{self.patch}; set a `model.patch=N` that divides both sides"
      )
    out_channels = spec.channels * (2 if self.learned_variance or self.spare_outputs else 1)
    return as_network(DiTModule(self, out_channels, num_labels), self, spec, num_labels)


class DiTModule(nn.Module):
  """The network; `DiT` describes its fields. It has no dropout."""

  config: DiT
  out_channels: int
  num_labels: int

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B H W C"],
    time: Float[Array, "B"],
    given: Condition,
    train: bool,
  ) -> Float[Array, "B H W D"]:
    del train
    config, dtype = self.config, jnp.dtype(self.config.dtype)
    condition = nn.swish(self._embed(time, given.label))
    grid = (x.shape[1] // config.patch, x.shape[2] // config.patch)
    h = _dense(config.hidden, dtype, name="patch_in")(_to_patches(x, config.patch))
    h = (h + position_embedding(*grid, config.hidden)).astype(dtype)
    h = self._blocks(h, condition)
    shift, scale = _modulation(condition, config.hidden, 2, "modulation_out")
    h = _modulated(h, shift, scale).astype(dtype)
    h = _dense(config.patch**2 * self.out_channels, dtype, zeros, "patch_out")(h)
    h = _to_image(h, *grid, config.patch)
    h = h[..., : x.shape[-1]] if config.spare_outputs else h
    return -h if config.from_noise else h

  def _blocks(self, h: Array, condition: Array) -> Float[Array, "B N D"]:
    config, kind = self.config, Block
    settings = (
      config.heads, config.mlp_ratio, jnp.dtype(config.dtype), config.attention, config.mlp_epsilon,
    )  # fmt: skip
    if not config.scan_blocks:
      kind = rematerialized(kind, config.remat)
      for i in range(config.depth):
        h = kind(*settings, name=f"block{i}")(h, condition)
      return h
    # The gather lies inside what is recomputed, so that the backward pass keeps no whole layers.
    is_first = self.is_initializing()
    kind = nn.map_variables(kind, "params", trans_in_fn=gather_layer, init=is_first, mutable=True)
    is_loop = config.depth > MAX_UNROLLED
    kind = rematerialized(kind, config.remat, in_scan=is_loop)
    scanned = nn.scan(
      lambda block, h, condition: (block(h, condition), None),
      variable_axes={"params": 0},
      split_rngs={"params": True},
      in_axes=nn.broadcast,  # pyright: ignore[reportArgumentType]
      length=config.depth,
      unroll=1 if is_loop else config.depth,
    )
    return scanned(kind(*settings, name="stacked_block"), h, condition)[0]

  def _embed(self, time: Array, labels: Any) -> Float[Array, "B D"]:
    config, hidden = self.config, self.config.hidden
    time = (EMBED_SCALE - time if config.from_noise else time) * config.time_scale
    h = cosine_first_embedding(time, TIME_FREQUENCIES, config.frequency_shift)
    h = nn.swish(_dense(hidden, FLOAT32, embed_init, "time1")(h))
    h = _dense(hidden, FLOAT32, embed_init, "time2")(h)
    if self.num_labels and labels is not None:
      h = h + nn.Embed(self.num_labels, hidden, embedding_init=embed_init, name="label")(labels)
    return h


class Block(nn.Module):
  """Attention and an MLP, each with a shift and scale before it and a gate after it.

  Shifts, scales and gates are functions of time and class. They start at zero, so the block starts
  as the identity (adaLN-Zero).
  """

  heads: int
  mlp_ratio: int
  dtype: Dtype
  attention: Implementation = "auto"
  mlp_epsilon: float = EPSILON

  @nn.compact
  def __call__(
    self, x: Float[Array, "B N D"], condition: Float[Array, "B D"]
  ) -> Float[Array, "B N D"]:
    width = x.shape[-1]
    shift1, scale1, gate1, shift2, scale2, gate2 = _modulation(condition, width, 6, "modulation")
    h = SelfAttention(self.heads, self.dtype, self.attention, name="attention")(
      _modulated(x, shift1, scale1).astype(self.dtype)
    )
    x = _gated(x, gate1, h)
    h = _modulated(x, shift2, scale2, self.mlp_epsilon).astype(self.dtype)
    h = nn.gelu(_dense(self.mlp_ratio * width, self.dtype, name="mlp_in")(h))
    h = _dense(width, self.dtype, name="mlp_out")(h)
    return _gated(x, gate2, h)


class SelfAttention(nn.Module):
  """Multi-head self-attention over tokens, without norm or residual."""

  heads: int
  dtype: Dtype
  implementation: Implementation = "auto"

  @nn.compact
  def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
    width = x.shape[-1]
    names = ("query", "key", "value")
    query, key, value = (_dense(width, self.dtype, qkv_init, name)(x) for name in names)
    h = attend(query, key, value, self.heads, self.implementation)
    return _dense(width, self.dtype, name="out")(h)


def _dense(features: int, dtype: Dtype, kernel=kernel_init, name: str = "") -> nn.Dense:
  return Pointwise(features, kernel_init=kernel, dtype=dtype, name=name)


def _modulation(condition: Array, width: int, count: int, name: str) -> list[Float[Array, "B 1 D"]]:
  """Return `count` vectors per example, float32, zero at initialisation."""
  vectors = _dense(count * width, FLOAT32, zeros, name)(condition)
  return jnp.split(vectors[:, None, :], count, axis=-1)


def _modulated(
  x: Array, shift: Array, scale: Array, epsilon: float = EPSILON
) -> Float[Array, "B N D"]:
  """Apply a layer norm without learned weights, then scale and shift, float32."""
  return _layer_norm(x, epsilon) * (1 + scale) + shift


def _layer_norm(x: Array, epsilon: float = EPSILON) -> Float[Array, "B N D"]:
  """Normalise each token in float32, measured from an anchor as in `kernels.group_norm`.

  The anchor is the token's rounded mean. The variance does not depend on it, and is accurate even
  if the mean is much larger than the deviation.
  """
  x = x.astype(FLOAT32)
  y = x - jax.lax.stop_gradient(x.mean(-1, keepdims=True))  # any constant has this gradient
  mean = y.mean(-1, keepdims=True)
  variance = jnp.maximum(jnp.square(y).mean(-1, keepdims=True) - jnp.square(mean), 0.0)
  return (y - mean) * jax.lax.rsqrt(variance + epsilon)


def _gated(x: Array, gate: Array, h: Array) -> Array:
  return (x + gate * h).astype(x.dtype)


def _to_patches(x: Float[Array, "B H W C"], patch: int) -> Float[Array, "B N P"]:
  """Return the patches row by row, each with its pixels row by row and the channels last."""
  batch, height, width, channels = x.shape
  x = x.reshape(batch, height // patch, patch, width // patch, patch, channels)
  return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, -1, patch * patch * channels)


def _to_image(h: Float[Array, "B N P"], num_rows: int, num_columns: int, patch: int):
  """Invert `_to_patches`."""
  h = h.reshape(h.shape[0], num_rows, num_columns, patch, patch, -1).transpose(0, 1, 3, 2, 4, 5)
  return h.reshape(h.shape[0], num_rows * patch, num_columns * patch, -1)
