"""Drawing images over the mesh: any split of the work gives the same images."""

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int, UInt8

from diffusion_jax import sharding
from diffusion_jax.data import Source
from diffusion_jax.types import Batch, Generative, Params, UserError


@runtime_checkable
class Draw(Protocol):
  """Draws images; see `make_draw`."""

  def __call__(
    self, params: Params, labels: Int[np.ndarray, "N"] | None, num: int, seed: int, first: int = 0
  ) -> Float[np.ndarray, "N H W C"]: ...


def make_draw(generative: Generative, mesh: Mesh, batch_size: int) -> Draw:
  """A function that draws images in batches over all devices.

  Args:
    generative: the model.
    mesh: the devices.
    batch_size: images of one batch, rounded up to a multiple of the devices.

  Returns:
    (params, labels [N] or None, num N, seed, first) -> images first..first+N-1 of the seed, in
    about [-1, 1]. Image i has the key fold_in(key(seed), i), whatever the batch size, the number of
    devices and the images that are drawn with it.
  """
  batch_size = sharding.round_up(batch_size, mesh)
  rows = sharding.batch_sharding(mesh)

  @jax.jit
  def sample(params, seed, index, labels):
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(index)
    return jax.lax.with_sharding_constraint(generative.sample(params, keys, labels).images, rows)

  def draw(params, labels, num, seed, first=0):
    images = []
    for begin in range(0, num, batch_size):
      place = np.arange(begin, begin + batch_size, dtype=np.uint32)
      own = None if labels is None else sharding.put_rows(labels[place % num], mesh)
      index = sharding.put_rows(place + np.uint32(first), mesh)
      images.append(sharding.fetch(sample(params, seed, index, own)))
    return np.concatenate(images)[:num]

  return draw


def make_reconstruct(generative: Generative, mesh: Mesh) -> Callable[[Params, Batch], np.ndarray]:
  """(params, batch) -> images decoded from one posterior sample each, for models that encode.

  Raises:
    UserError: the model has no encoder or no decoder.
  """
  encode, decode = generative.encode, generative.decode
  if encode is None or decode is None:
    raise UserError("this model cannot reconstruct: it has no encoder; leave --reconstruct out")

  @jax.jit
  def reconstruct(params, batch):
    return decode(params, encode(params, jax.random.key(0), batch))

  def call(params, batch):
    padded = _pad(batch, sharding.num_batch_shards(mesh))
    sent = jax.tree.map(lambda x: sharding.put_rows(x, mesh), padded)
    return sharding.fetch(reconstruct(params, sent))[: len(batch.index)]

  return call


def _pad(batch: Batch, unit: int) -> Batch:
  """Repeats the last example until `unit` divides the batch."""

  def pad(x):
    return np.pad(x, [(0, -len(x) % unit)] + [(0, 0)] * (x.ndim - 1), mode="edge")

  return jax.tree.map(pad, batch)


def cycle_labels(classes: Sequence[int], num: int) -> Int[np.ndarray, "N"]:
  """The classes in turn, `num` in all."""
  return np.resize(np.asarray(classes, np.int32), num)


def first_examples(source: Source, num: int) -> Batch:
  """The first images of a source as a batch."""
  index = np.arange(min(num, len(source)))
  image, label = source.gather(index)
  return Batch(image, label, np.ones(len(index), np.float32), index.astype(np.uint32))


def paired_rows(
  originals: UInt8[np.ndarray, "N H W C"], others: UInt8[np.ndarray, "N H W C"], columns: int
) -> UInt8[np.ndarray, "M H W C"]:
  """Rows of originals and of what became of them, in turn; the last row is filled with white."""
  rows = []
  for first in range(0, len(originals), columns):
    for images in (originals, others):
      row = images[first : first + columns]
      blank = np.full((columns - len(row), *row.shape[1:]), 255, np.uint8)
      rows.append(np.concatenate([row, blank]))
  return np.concatenate(rows)
