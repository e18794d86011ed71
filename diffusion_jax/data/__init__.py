"""Data sets with random access, and batches as a pure function of (seed, step). NumPy only."""

from diffusion_jax.core.registry import Registry
from diffusion_jax.core.settings import Facts
from diffusion_jax.data.arrays import Arrays
from diffusion_jax.data.base import (
  About,
  DataSet,
  DataSetBase,
  Source,
  SourceBase,
  fetch_data,
  load_held_out,
  load_split,
  load_splits,
)
from diffusion_jax.data.digits import Digits
from diffusion_jax.data.folder import Folder
from diffusion_jax.data.hugging_face import HuggingFace
from diffusion_jax.data.latents import Latents
from diffusion_jax.data.pictures import load_pictures, with_channels
from diffusion_jax.data.pipeline import Prefetcher, TrainStream, full_pass, make_batch
from diffusion_jax.data.records import Records
from diffusion_jax.data.source import (
  ArraySource,
  class_names,
  describe_classes,
  fingerprint,
  source_identity,
  trained_classes,
)
from diffusion_jax.data.synthetic import Synthetic
from diffusion_jax.data.tfds import Tfds
from diffusion_jax.data.unknown import Unknown

SOURCES = Registry(
  "data",
  DataSet,
  {
    "digits": Digits,
    "tfds": Tfds,
    "folder": Folder,
    "hugging_face": HuggingFace,
    "records": Records,
    "arrays": Arrays,
    "latents": Latents,
    "synthetic": Synthetic,
    "unknown": Unknown,
  },
  setting_facts=Facts(affects_samples=False),
  base=DataSetBase,
)
"""Data sets by name: the values of `data.name`."""

__all__ = [
  "SOURCES",
  "About",
  "ArraySource",
  "Arrays",
  "DataSet",
  "DataSetBase",
  "Digits",
  "Folder",
  "HuggingFace",
  "Latents",
  "Prefetcher",
  "Records",
  "Source",
  "SourceBase",
  "Synthetic",
  "Tfds",
  "TrainStream",
  "Unknown",
  "class_names",
  "describe_classes",
  "fetch_data",
  "fingerprint",
  "full_pass",
  "load_held_out",
  "load_pictures",
  "load_split",
  "load_splits",
  "make_batch",
  "source_identity",
  "trained_classes",
  "with_channels",
]


def __dir__() -> list[str]:
  """Return the public names, for completion."""
  return sorted(__all__)
