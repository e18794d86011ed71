"""The interface of a feature network, and the extraction of features in batches."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, UInt8

from diffusion_jax.parallel import sharding
from diffusion_jax.types import Params, UserError


class Features(NamedTuple):
  """Features of images, float32 on the host.

  Attributes:
    pool: features between which distances are computed.
    logits: logits of the network's classes, for the Inception Score.
    spatial: features of an inner layer, for sFID; only Inception has them.
  """

  pool: Float[np.ndarray, "N D"]
  logits: Float[np.ndarray, "N K"]
  spatial: Float[np.ndarray, "N S"] | None = None


class Extractor(NamedTuple):
  """A feature network.

  Attributes:
    name: end of its figures' names, as in fd_digits; "inception" is FID's network.
    stamp: facts stored with each figure: sha256, resize and so on, as JSON values.
    params: weights.
    apply: jittable function (params, images 0..255 [B H W C]) -> (pool, logits, spatial or None).
    resolution: (H, W, C) of the only accepted images; None: any.
  """

  name: str
  stamp: Mapping[str, Any]
  params: Params
  apply: Callable[[Params, jax.Array], tuple[jax.Array, jax.Array, jax.Array | None]]
  resolution: tuple[int, int, int] | None = None


Extract = Callable[[UInt8[np.ndarray, "N H W C"]], Features]


def make_extract(extractor: Extractor, mesh: Mesh, batch_size: int) -> Extract:
  """Return a function that computes the features of any number of images, in batches.

  Args:
    extractor: feature network.
    mesh: device mesh.
    batch_size: images per batch, rounded up to a multiple of the devices; the last batch is padded.

  The returned function raises UserError if features are not finite.
  """
  batch_size = sharding.round_up(batch_size, mesh)
  params = sharding.put_everywhere(extractor.params, mesh)
  apply = jax.jit(extractor.apply)

  def batch(images: np.ndarray) -> Features:
    missing = batch_size - len(images)
    padded = np.pad(images, [(0, missing), (0, 0), (0, 0), (0, 0)], mode="edge")
    pool, logits, spatial = apply(params, sharding.put_rows(padded, mesh))

    def rows(x: jax.Array) -> np.ndarray:
      return sharding.fetch(x)[: len(images)]

    return Features(rows(pool), rows(logits), None if spatial is None else rows(spatial))

  def extract(images: UInt8[np.ndarray, "N H W C"]) -> Features:
    batches = [batch(images[i : i + batch_size]) for i in range(0, len(images), batch_size)]
    spatial = [of_batch.spatial for of_batch in batches if of_batch.spatial is not None]
    features = Features(
      np.concatenate([of_batch.pool for of_batch in batches]),
      np.concatenate([of_batch.logits for of_batch in batches]),
      np.concatenate(spatial) if spatial else None,
    )
    if not (np.isfinite(features.pool).all() and np.isfinite(features.logits).all()):
      raise UserError(
        f"the features of {extractor.name} are not finite: its weights (sha256 "
        f"{extractor.stamp['sha256']}) are not those of a trained network; give others"
      )
    return features

  return extract
