"""Data sets with random access, and batches as a pure function of (seed, step). NumPy only."""

from diffusion_jax.core.registry import Registry
from diffusion_jax.data.arrays import Arrays
from diffusion_jax.data.digits import Digits
from diffusion_jax.data.folder import Folder
from diffusion_jax.data.latents import Latents
from diffusion_jax.data.pictures import load_pictures, with_channels
from diffusion_jax.data.pipeline import Prefetcher, TrainStream, full_pass
from diffusion_jax.data.records import Records
from diffusion_jax.data.source import (
  About,
  ArraySource,
  Source,
  describe_classes,
  fingerprint,
  trained_classes,
)
from diffusion_jax.data.synthetic import Synthetic
from diffusion_jax.data.tfds import Tfds

SOURCES = Registry(
  "data",
  object,
  {
    "digits": Digits,
    "tfds": Tfds,
    "folder": Folder,
    "records": Records,
    "arrays": Arrays,
    "latents": Latents,
    "synthetic": Synthetic,
  },
)

__all__ = [
  "SOURCES",
  "About",
  "ArraySource",
  "Arrays",
  "Digits",
  "Folder",
  "Latents",
  "Prefetcher",
  "Records",
  "Source",
  "Synthetic",
  "Tfds",
  "TrainStream",
  "describe_classes",
  "fingerprint",
  "full_pass",
  "load_pictures",
  "trained_classes",
  "with_channels",
]
