"""Networks that turn images into features, on which the sample metrics are computed."""

from diffusion_jax.extractors.base import Extract, Extractor, Features, make_extract
from diffusion_jax.extractors.domain import load_domain, train_domain
from diffusion_jax.extractors.inception_extractor import load_inception, optional_inception

__all__ = [
  "Extract",
  "Extractor",
  "Features",
  "load_domain",
  "load_inception",
  "make_extract",
  "optional_inception",
  "train_domain",
]
