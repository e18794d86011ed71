"""Networks that turn pictures into the features on which samples are measured."""

from diffusion_jax.extractors.base import Extract, Extractor, Features, make_extract
from diffusion_jax.extractors.domain import load_domain, train_domain
from diffusion_jax.extractors.inception_extractor import load_inception

__all__ = [
  "Extract",
  "Extractor",
  "Features",
  "load_domain",
  "load_inception",
  "make_extract",
  "train_domain",
]
