"""The Inception network of FID as an extractor."""

from collections.abc import Callable
from pathlib import Path

from diffusion_jax.extractors.base import Extractor
from diffusion_jax.models.inception import network
from diffusion_jax.models.inception import weights as inception_weights
from diffusion_jax.types import UserError

NETWORK = "Inception-v3 2015-12-05, features before the classes"


def load_inception(path: Path | None, any_weights: bool = False) -> Extractor:
  """Load the network of Heusel et al. 2017 (arXiv 1706.08500) with the weights of 2015-12-05.

  Args:
    path: path of the weights; None: in the user's cache.
    any_weights: also accept other weights of this network; its metrics are then named after them
      and never fid.

  Raises:
    UserError: the file is missing or damaged, or does not have the published weights.
  """
  weights = inception_weights.load_weights(path, **({"expected": None} if any_weights else {}))
  stamp = {
    "network": NETWORK,
    "sha256": weights.sha256,
    "published": weights.is_published,
    "resize": "TF1 bilinear to 299x299",
    "input": "(k - 128) / 128 of levels 0..255",
  }

  def apply(params, images):
    features = network.apply(params, images)
    return features.pool, features.logits, features.spatial

  name = "inception" if weights.is_published else f"inception_{weights.sha256[:8]}"
  return Extractor(name, stamp, weights.params, apply)


def is_inception(extractor: Extractor) -> bool:
  """Return whether an extractor is Inception, with the published or other weights."""
  return extractor.stamp.get("network") == NETWORK


def optional_inception(
  flag: str | None, load: Callable[[], Extractor]
) -> tuple[list[Extractor], list[str]]:
  """Load the network of --inception, or return a line that says why it is left out.

  Args:
    flag: the flag's value: "none" for no network, None for one that may be missing.
    load: reads it.

  Raises:
    UserError: weights that were named are missing, damaged or others.
  """
  if flag == "none":
    return [], []
  try:
    return [load()], []
  except UserError as error:
    if flag is not None:
      raise
    return [], [str(error)]
