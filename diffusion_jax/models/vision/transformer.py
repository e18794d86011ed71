"""The vision transformers of DINOv2 and CLIP as pure functions of their parameters.

DINOv2 ViT (Oquab et al. 2023, arXiv 2304.07193): GELU, layer scale, the class token after the last
normalisation. CLIP ViT (Radford et al. 2021, arXiv 2103.00020): a normalisation before the first
block, GELU as x * sigmoid(1.702 x), and the class token projected onto the space shared with text.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Num

from diffusion_jax.models.vision.pillow_resize import center_square, resize_bicubic
from diffusion_jax.types import Params, UserError

HEAD_WIDTH = 64
HIGHEST = lax.Precision.HIGHEST


class VisionRecipe(NamedTuple):
  """Differences of the two networks besides their parameters.

  Attributes:
    name: "dinov2" or "clip".
    side: side of the pictures inside the network, pixels.
    mean, deviation: mean and standard deviation of each channel, for values in [0, 1].
    epsilon: constant in the normalisations.
    is_quick: true if GELU is x * sigmoid(1.702 x).
    is_cropped: true if the middle square of a picture is used, not all of it out of proportion.
    is_unit: true if features have length 1.
  """

  name: str
  side: int
  mean: tuple[float, float, float]
  deviation: tuple[float, float, float]
  epsilon: float
  is_quick: bool
  is_cropped: bool
  is_unit: bool


DINOV2 = VisionRecipe(
  "dinov2", 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 1e-6, False, False, False
)
"""The input of dgm-eval (Stein et al. 2023, arXiv 2306.04675), whose network is ViT-L/14."""

CLIP = VisionRecipe(
  "clip", 336, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711), 1e-5,
  True, True, True,
)  # fmt: skip
"""The input and output of CMMD (Jayasumana et al. 2024, arXiv 2401.09603), ViT-L/14@336."""


def vision_features(
  params: Params, images: Num[Array | np.ndarray, "B H W C"], recipe: VisionRecipe
) -> Float[Array, "B D"]:
  """Return the features of pictures 0..255 with 1 or 3 channels; pure, for `jax.jit`.

  Raises:
    UserError: another number of channels.
  """
  return embed(params, network_input(images, recipe), recipe)


def network_input(
  images: Num[Array | np.ndarray, "B H W C"], recipe: VisionRecipe
) -> Float[Array, "B S S 3"]:
  """Return pictures 0..255 as the network takes them: resized, in colour and standardised."""
  if images.shape[-1] not in (1, 3):
    raise UserError(
      f"{recipe.name} takes images of 1 or 3 channels, these have {images.shape[-1]}; leave it "
      f"out with --{recipe.name}=none"
    )
  x = resize_bicubic(center_square(images) if recipe.is_cropped else images, recipe.side) / 255.0
  x = jnp.repeat(x, 3 // x.shape[-1], axis=-1)
  return (x - jnp.asarray(recipe.mean)) / jnp.asarray(recipe.deviation)


def embed(params: Params, x: Float[Array, "B S S 3"], recipe: VisionRecipe) -> Float[Array, "B D"]:
  """Return the features of standardised images."""
  patch = params["patch"]["kernel"].shape[0]
  x = lax.conv_general_dilated(
    x, params["patch"]["kernel"], (patch, patch), "VALID",
    dimension_numbers=("NHWC", "HWIO", "NHWC"), precision=HIGHEST,
  )  # fmt: skip
  x = x.reshape(len(x), -1, x.shape[-1]) + params["patch"]["bias"]
  first = jnp.broadcast_to(params["class"], (len(x), 1, x.shape[-1]))
  x = jnp.concatenate([first, x], axis=1) + params["positions"]
  if "norm_before" in params:
    x = _norm(params["norm_before"], x, recipe.epsilon)
  x = lax.scan(lambda x, block: (_block(block, x, recipe), None), x, params["blocks"])[0]
  x = _norm(params["norm_after"], x[:, 0], recipe.epsilon)
  if "projection" in params:
    x = jnp.matmul(x, params["projection"], precision=HIGHEST)
  return x / jnp.linalg.norm(x, axis=-1, keepdims=True) if recipe.is_unit else x


def _block(block: Any, x: Array, recipe: VisionRecipe) -> Array:
  h = _attend(block, _norm(block["norm1"], x, recipe.epsilon))
  x = x + block["scale1"] * h
  h = _dense(block["inner"], _norm(block["norm2"], x, recipe.epsilon))
  h = h * jax.nn.sigmoid(1.702 * h) if recipe.is_quick else jax.nn.gelu(h, approximate=False)
  return x + block["scale2"] * _dense(block["outer"], h)


def _attend(block: Any, x: Array) -> Array:
  heads = x.shape[-1] // HEAD_WIDTH
  qkv = _dense(block["qkv"], x).reshape(*x.shape[:2], 3, heads, HEAD_WIDTH)
  query, key, value = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
  scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, precision=HIGHEST) * HEAD_WIDTH**-0.5
  weights = jax.nn.softmax(scores, axis=-1)
  h = jnp.einsum("bhqk,bkhd->bqhd", weights, value, precision=HIGHEST)
  return _dense(block["out"], h.reshape(x.shape))


def _dense(layer: Any, x: Array) -> Array:
  return jnp.matmul(x, layer["kernel"], precision=HIGHEST) + layer["bias"]


def _norm(layer: Any, x: Array, epsilon: float) -> Array:
  mean = x.mean(-1, keepdims=True)
  variance = jnp.square(x - mean).mean(-1, keepdims=True)
  return (x - mean) * lax.rsqrt(variance + epsilon) * layer["scale"] + layer["bias"]
