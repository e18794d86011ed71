"""DINOv2 and CLIP as extractors, for fd_dinov2, kd_dinov2, fd_clip and others."""

from collections.abc import Callable, Mapping
from pathlib import Path

import jax.numpy as jnp

from diffusion_jax.core.files import bucket_path
from diffusion_jax.extractors.base import Extractor
from diffusion_jax.models.vision.transformer import vision_features
from diffusion_jax.models.vision.vision_weights import RECIPES, load_vision_weights
from diffusion_jax.types import UserError

VISION = tuple(RECIPES)
"""Names of the networks, which are also those of their flags."""


def load_vision(name: str, path: Path | None = None) -> Extractor:
  """Load a network's weights.

  Args:
    name: one of `VISION`. "dinov2" follows dgm-eval (Stein et al. 2023, arXiv 2306.04675), "clip"
      the embeddings of CMMD (Jayasumana et al. 2024, arXiv 2401.09603).
    path: path of the weights; None: in the user's cache. Other weights than the published ones
      have the start of their SHA-256 in the name.

  Raises:
    UserError: the file is missing, damaged, or of another network.
  """
  recipe = RECIPES[name]
  weights = load_vision_weights(recipe, path)
  crop = "the middle square, " if recipe.is_cropped else ""
  stamp = {
    "network": f"{name} vision transformer, {'unit ' if recipe.is_unit else ''}class token",
    "sha256": weights.sha256,
    "published": weights.is_published,
    "resize": f"{crop}Pillow bicubic to {recipe.side}x{recipe.side}, 8 bits",
    "input": f"(k / 255 - {recipe.mean}) / {recipe.deviation} of levels 0..255",
  }

  def apply(params, images):
    return vision_features(params, images, recipe), jnp.zeros((len(images), 0)), None

  own = name if weights.is_published else f"{name}_{weights.sha256[:8]}"
  return Extractor(own, stamp, weights.params, apply)


def optional_vision(
  flags: Mapping[str, str | None], agree: Callable[[Callable[[], Extractor]], Extractor]
) -> tuple[list[Extractor], list[str]]:
  """Load the networks of the flags --dinov2 and --clip; a line says why one is left out.

  Args:
    flags: name of each network -> its flag's value: a file, "none", or None for the prepared
      weights if there are any.
    agree: function that runs a loader, e.g. on all hosts alike.

  Raises:
    UserError: weights that were named are missing or damaged.
  """
  extractors, missing = [], []
  for name in VISION:
    text = flags[name]
    if text == "none":
      continue
    path = None if text is None else bucket_path(text)
    try:
      extractors.append(agree(lambda name=name, path=path: load_vision(name, path)))
    except UserError as error:
      if text is not None:
        raise
      missing.append(str(error))
  return extractors, missing
