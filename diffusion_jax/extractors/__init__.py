"""Networks that turn images into features, on which the sample metrics are computed."""

from diffusion_jax.extractors.base import Extract, Extractor, Features, make_extract
from diffusion_jax.extractors.domain import load_domain, train_domain
from diffusion_jax.extractors.inception_extractor import load_inception, optional_inception
from diffusion_jax.extractors.vision_extractor import VISION, load_vision, optional_vision

__all__ = [
  "VISION",
  "Extract",
  "Extractor",
  "Features",
  "load_domain",
  "load_inception",
  "load_vision",
  "make_extract",
  "optional_inception",
  "optional_vision",
  "train_domain",
]
