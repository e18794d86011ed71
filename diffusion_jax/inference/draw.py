"""Drawing images over the mesh: any split of the work gives the same images."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int, UInt8

from diffusion_jax.core import rng
from diffusion_jax.data import Source, make_batch
from diffusion_jax.generative import ModelBase, require
from diffusion_jax.parallel import sharding
from diffusion_jax.samplers.editing import interpolate
from diffusion_jax.types import (
  UNCONDITIONAL,
  Batch,
  Condition,
  GenerativeModel,
  Keys,
  Params,
  Samples,
  UserError,
)


@runtime_checkable
class Draw(Protocol):
  """Draws images; see `make_draw`."""

  def __call__(
    self, params: Params, labels: Int[np.ndarray, "N"] | None, num: int, seed: int, first: int = 0
  ) -> Float[np.ndarray, "N H W C"]: ...


def make_draw(generative: GenerativeModel, mesh: Mesh, batch_size: int) -> Draw:
  """A function that draws images in batches over all devices.

  Args:
    generative: the model.
    mesh: the devices.
    batch_size: images of one batch, rounded up to a multiple of the devices.

  Returns:
    (params, labels [N] or None, num N, seed, first) -> images first..first+N-1 of the seed, in
    about [-1, 1]. Image i has key i of `rng.sample_keys`, whatever the batch size, the number of
    devices and the images that are drawn with it.
  """
  batch_size = sharding.round_up(batch_size, mesh)
  rows = sharding.batch_sharding(mesh)

  @jax.jit
  def sample(params, seed, index, labels):
    keys = rng.sample_keys(seed, index)
    images = generative.sample(params, keys, Condition(labels)).images
    return jax.lax.with_sharding_constraint(images, rows)

  def draw(params, labels, num, seed, first=0):
    images = []
    for begin in range(0, num, batch_size):
      place = np.arange(begin, begin + batch_size, dtype=np.uint32)
      own = None if labels is None else sharding.put_rows(labels[place % num], mesh)
      index = sharding.put_rows(place + np.uint32(first), mesh)
      images.append(sharding.fetch(sample(params, seed, index, own)))
    return np.concatenate(images)[:num]

  return draw


def make_inpaint(generative: GenerativeModel, mesh: Mesh) -> Callable[..., np.ndarray]:
  """(params, labels [N] or None, seed, x0 [N H W C], is_known [N H W C], first) -> images.

  Image i of the N draws from the key of image first + i, as `make_draw`'s.

  Raises:
    UserError: the model cannot edit images.
  """
  require(generative, "edit")

  @jax.jit
  def inpaint(params, seed, index, labels, x0, is_known):
    keys = rng.sample_keys(seed, index)
    return generative.inpaint(params, keys, Condition(labels), x0, is_known).images

  def call(params, labels, seed, x0, is_known, first=0):
    rows = (first + np.arange(len(x0), dtype=np.uint32), labels, x0, is_known)
    return sharding.fetch(inpaint(params, seed, *_send(rows, mesh)))[: len(x0)]

  return call


def make_interpolate(generative: GenerativeModel, mesh: Mesh) -> Callable[..., np.ndarray]:
  """(params, first [N H W C], second, share [K]) -> images [N K H W C] on the way between pairs.

  Both images of a pair are encoded, their noise is interpolated on the sphere and decoded.

  Raises:
    UserError: the model cannot edit images, or its sampler draws noise.
  """
  require(generative, "edit")

  @jax.jit
  def between(params, first, second, share):
    ends = generative.to_noise(params, first), generative.to_noise(params, second)
    return jax.vmap(lambda x: generative.from_noise(params, x))(interpolate(*ends, share))

  def call(params, first, second, share):
    sent = _send((first, second), mesh)
    try:
      images = between(params, *sent, np.asarray(share, np.float32))
    except ValueError as error:
      raise UserError(str(error)) from error
    return np.moveaxis(sharding.fetch(images), 0, 1)[: len(first)]

  return call


def _send(rows: Any, mesh: Mesh) -> Any:
  """Arrays of N rows on the mesh, the last row repeated until the devices divide them."""
  unit = sharding.num_batch_shards(mesh)
  return jax.tree.map(lambda x: sharding.put_rows(_pad(x, unit), mesh), rows)


@dataclasses.dataclass(frozen=True, eq=False)
class Autoguided(ModelBase):
  """A model guided away from an inferior one, to sample; params are {"good": ..., "guide": ...}."""

  good: GenerativeModel
  guide: GenerativeModel

  def sample(self, params: Params, keys: Keys, condition: Condition = UNCONDITIONAL) -> Samples:
    return self.good.sample_guided(params["good"], keys, condition, self.guide, params["guide"])


def autoguided(good: GenerativeModel, guide: GenerativeModel) -> Autoguided:
  """Return a model guided away from an inferior one.

  Raises:
    UserError: one of the two is not a diffusion model.
  """
  require(good, "guide")
  require(guide, "guide")
  return Autoguided(good, guide)


def make_reconstruct(
  generative: GenerativeModel, mesh: Mesh
) -> Callable[[Params, Batch], np.ndarray]:
  """(params, batch) -> images decoded from one posterior sample each, for models that encode.

  Raises:
    UserError: the model has no encoder or no decoder.
  """
  require(generative, "encode")

  @jax.jit
  def reconstruct(params, batch):
    return generative.decode(params, generative.encode(params, jax.random.key(0), batch))

  def call(params, batch):
    return sharding.fetch(reconstruct(params, _send(batch, mesh)))[: len(batch.index)]

  return call


def _pad(x: np.ndarray, unit: int) -> np.ndarray:
  """Repeats the last row until `unit` divides their number."""
  return np.pad(x, [(0, -len(x) % unit)] + [(0, 0)] * (x.ndim - 1), mode="edge")


def cycle_labels(classes: Sequence[int], num: int) -> Int[np.ndarray, "N"]:
  """The classes in turn, `num` in all."""
  return np.resize(np.asarray(classes, np.int32), num)


def choose_labels(text: str | None, num: int, trained: Sequence[int]) -> np.ndarray | None:
  """The class of each image: those asked for in turn, by default all that had training images.

  Args:
    text: of --labels.
    num: images.
    trained: labels that training images had; empty for an unconditional model, which has None.
  """
  if not trained:
    if text is not None:
      raise UserError(f"--labels={text}: this model is not class-conditional; leave --labels out")
    return None
  try:
    classes = trained if text is None else [int(name) for name in text.split(",")]
  except ValueError:
    classes = []
  if not classes or not set(classes) <= set(trained):
    is_range = list(trained) == list(range(len(trained)))
    allowed = f"from 0 to {trained[-1]}" if is_range else f"that were trained: {_listed(trained)}"
    example = ",".join(map(str, trained[:3]))
    raise UserError(f"--labels={text}: must be numbers {allowed}, e.g. {example}")
  return cycle_labels(classes, num)


def with_trained_labels(given: Batch, trained: Sequence[int], null_label: int) -> Batch:
  """Given images whose labels had no training image get the null class, and it is said.

  Args:
    given: held-out images.
    trained: labels that training images had.
    null_label: the class-conditional model's number for a hidden class.
  """
  is_known = np.isin(given.label, trained)
  if is_known.all():
    return given
  strange = _listed(np.unique(given.label[~is_known]).tolist())
  num = int((~is_known).sum())
  print(f"note: {num:,} of {len(is_known):,} images have a class that was never trained "
        f"({strange}); the model is not told their class")  # fmt: skip
  return given._replace(label=np.where(is_known, given.label, null_label).astype(np.int32))


def _listed(labels: Sequence[int]) -> str:
  """Labels with runs as one, "0-2, 5"."""
  parts: list[list[int]] = []
  for label in labels:
    if parts and parts[-1][-1] == label - 1:
      parts[-1].append(label)
    else:
      parts.append([label])
  return ", ".join(f"{p[0]}" if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)


def first_examples(source: Source, num: int) -> Batch:
  """The first images of a source as a batch."""
  index = np.arange(min(num, len(source)))
  return make_batch(source, index, index)


def rows_in_turn(
  parts: Sequence[UInt8[np.ndarray, "N H W C"]], columns: int
) -> UInt8[np.ndarray, "M H W C"]:
  """Rows of each part in turn: of originals, say, and of what became of them.

  The last rows are filled with white.
  """
  rows = []
  for first in range(0, len(parts[0]), columns):
    for images in parts:
      row = images[first : first + columns]
      blank = np.full((columns - len(row), *row.shape[1:]), 255, np.uint8)
      rows.append(np.concatenate([row, blank]))
  return np.concatenate(rows)
