"""Draw images over the mesh; the result does not depend on how the work is split."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int, UInt8

from diffusion_jax.core import rng
from diffusion_jax.core.class_names import class_numbers, list_classes
from diffusion_jax.data import Source, make_batch
from diffusion_jax.generative import ModelBase, require
from diffusion_jax.inference.condition_fields import mixed_fields
from diffusion_jax.parallel import sharding
from diffusion_jax.parallel.spread import jit_spread
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

Fields = Mapping[str, Any]
"""Named arrays [N ...], see `Condition.fields`."""

NO_FIELDS: Fields = MappingProxyType({})


@runtime_checkable
class Draw(Protocol):
  """Draw images; see `make_draw`."""

  def __call__(
    self,
    params: Params,
    labels: Int[np.ndarray, "N"] | None,
    num: int,
    seed: int,
    first: int = 0,
    fields: Fields = NO_FIELDS,
  ) -> Float[np.ndarray, "N H W C"]: ...


def jit_sample(generative: GenerativeModel, mesh: Mesh) -> Any:
  """Return the jitted (params, seed, index [N], condition [N]) -> images [N H W C]."""
  by_batch = sharding.batch_sharding(mesh)

  def sample(params, seed, index, condition):
    keys = rng.sample_keys(seed, index)
    images = generative.sample(params, keys, condition).images
    return jax.lax.with_sharding_constraint(images, by_batch)

  return jit_spread(sample, mesh)


def make_draw(generative: GenerativeModel, mesh: Mesh, batch_size: int) -> Draw:
  """Return a function that draws images in batches over all devices.

  Args:
    generative: the model.
    mesh: the devices.
    batch_size: images per batch, rounded up to a multiple of the number of devices.

  Returns:
    The function (params, labels [N] or None, num N, seed, first, fields [N ...] by name) -> images
    first..first+N-1 of the seed, in about [-1, 1]. Image i has key i of `rng.sample_keys`, whatever
    the batch size, the number of devices and the other images drawn with it.
  """
  batch_size, sample = sharding.round_up(batch_size, mesh), jit_sample(generative, mesh)

  def draw(params, labels, num, seed, first=0, fields: Fields = NO_FIELDS):
    images = []
    for begin in range(0, num, batch_size):
      positions = np.arange(begin, begin + batch_size, dtype=np.uint32)
      rows_of = lambda given, positions=positions: sharding.put_rows(given[positions % num], mesh)  # noqa: E731
      batch_condition = jax.tree.map(rows_of, Condition(labels, fields=dict(fields)))
      index = sharding.put_rows(positions + np.uint32(first), mesh)
      images.append(sharding.fetch(sample(params, seed, index, batch_condition)))
    return np.concatenate(images)[:num]

  return draw


def make_inpaint(generative: GenerativeModel, mesh: Mesh) -> Callable[..., np.ndarray]:
  """Return a function that fills in the unknown pixels of images.

  Returns:
    The function (params, labels [N] or None, seed, x0 [N H W C], is_known [N H W C], first,
    fields [N ...] by name) -> images [N H W C]. Image i uses the key of image first + i, as in
    `make_draw`.

  Raises:
    UserError: the model cannot edit images.
  """
  require(generative, "edit")

  @functools.partial(jit_spread, mesh=mesh)
  def inpaint(params, seed, index, condition, x0, is_known):
    keys = rng.sample_keys(seed, index)
    return generative.inpaint(params, keys, condition, x0, is_known).images

  def call(params, labels, seed, x0, is_known, first=0, fields: Fields = NO_FIELDS):
    condition = Condition(labels, fields=dict(fields))
    batch = (first + np.arange(len(x0), dtype=np.uint32), condition, x0, is_known)
    return sharding.fetch(inpaint(params, seed, *_send(batch, mesh)))[: len(x0)]

  return call


def make_interpolate(generative: GenerativeModel, mesh: Mesh) -> Callable[..., np.ndarray]:
  """Return a function that interpolates between pairs of images.

  Both images of a pair are encoded, their noise is interpolated on the sphere and decoded.

  Returns:
    The function (params, first [N H W C], second, share [K], named arrays [N ...] of the first and
    of the second) -> images [N K H W C]. An image in between gets the arrays of both ends,
    weighted by its share; integer arrays are those of the nearer end.

  Raises:
    UserError: the model cannot edit images, or its sampler draws noise.
  """
  require(generative, "edit")

  @functools.partial(jit_spread, mesh=mesh)
  def between(params, first, second, weights):
    (one, one_fields), (other, other_fields) = first, second
    start = generative.to_noise(params, one, Condition(fields=one_fields))
    end = generative.to_noise(params, other, Condition(fields=other_fields))

    def at(x, weight):
      mixed = mixed_fields(one_fields, other_fields, weight)
      return generative.from_noise(params, x, Condition(fields=mixed))

    return jax.vmap(at)(interpolate(start, end, weights), weights)

  def call(params, first, second, weights, fields: tuple[Fields, Fields] = (NO_FIELDS, NO_FIELDS)):
    sent = _send(((first, dict(fields[0])), (second, dict(fields[1]))), mesh)
    try:
      images = between(params, *sent, np.asarray(weights, np.float32))
    except ValueError as error:
      raise UserError(str(error)) from error
    return np.moveaxis(sharding.fetch(images), 0, 1)[: len(first)]

  return call


def _send(arrays: Any, mesh: Mesh) -> Any:
  """Place arrays of N rows on the mesh, repeating the last row until the devices divide N."""
  unit = sharding.num_batch_shards(mesh)
  return jax.tree.map(lambda x: sharding.put_rows(_pad(x, unit), mesh), arrays)


@dataclasses.dataclass(frozen=True, eq=False)
class Autoguided(ModelBase):
  """A model guided away from an inferior one; its params are {"good": ..., "guide": ...}."""

  good: GenerativeModel
  guide: GenerativeModel

  @property
  def fields(self) -> tuple[str, ...]:
    return self.good.fields

  def sample(self, params: Params, keys: Keys, condition: Condition = UNCONDITIONAL) -> Samples:
    return self.good.sample_guided(params["good"], keys, condition, self.guide, params["guide"])


def autoguided(good: GenerativeModel, guide: GenerativeModel) -> Autoguided:
  """Return a model guided away from an inferior one.

  Raises:
    UserError: one of the two is not a diffusion model, or only the guide takes a named array.
  """
  require(good, "guide")
  require(guide, "guide")
  if others := sorted({*guide.fields} - {*good.fields}):
    raise UserError(
      f"the guide takes the named arrays {', '.join(others)}, and this run's model does not; "
      "choose a guide without them"
    )
  return Autoguided(good, guide)


def make_reconstruct(
  generative: GenerativeModel, mesh: Mesh
) -> Callable[[Params, Batch], np.ndarray]:
  """Return a function that decodes one posterior sample of each image of a batch.

  Returns:
    The function (params, batch) -> images [N H W C].

  Raises:
    UserError: the model has no encoder or no decoder.
  """
  require(generative, "encode")

  @functools.partial(jit_spread, mesh=mesh)
  def reconstruct(params, batch):
    return generative.decode(params, generative.encode(params, jax.random.key(0), batch))

  def call(params, batch):
    return sharding.fetch(reconstruct(params, _send(batch, mesh)))[: len(batch.index)]

  return call


def _pad(x: np.ndarray, unit: int) -> np.ndarray:
  """Repeat the last row until `unit` divides the number of rows."""
  return np.pad(x, [(0, -len(x) % unit)] + [(0, 0)] * (x.ndim - 1), mode="edge")


def cycle_labels(classes: Sequence[int], num_images: int) -> Int[np.ndarray, "N"]:
  """Return `num_images` labels that repeat the classes in order."""
  return np.resize(np.asarray(classes, np.int32), num_images)


def choose_labels(
  text: str | None, num_images: int, trained: Sequence[int], names: Sequence[str] = ()
) -> np.ndarray | None:
  """Return the class of each image, by default the trained classes in turn.

  Args:
    text: value of --labels, e.g. "cat,3", repeated in order; None: the trained classes.
    num_images: number of images.
    trained: labels with training images; empty for an unconditional model, which gets None.
    names: names of all classes in the order of their numbers, if they have some.

  Raises:
    UserError: a class is not known, or was not trained.
  """
  if not trained:
    if text is not None:
      raise UserError(f"--labels={text}: this model is not class-conditional; leave --labels out")
    return None
  if list(names) == [str(label) for label in range(len(names))]:  # the digits: only numbers
    names = ()
  classes = trained if text is None else _numbers(text, names)
  if names and (strange := sorted(set(classes) - set(trained))):
    raise UserError(f"--labels={text}: {_unknown(strange, trained, names)}")
  if not classes or not set(classes) <= set(trained):
    is_range = list(trained) == list(range(len(trained)))
    allowed = f"from 0 to {trained[-1]}" if is_range else f"that were trained: {_listed(trained)}"
    example = ",".join(map(str, trained[:3]))
    raise UserError(f"--labels={text}: must be numbers {allowed}, e.g. {example}")
  return cycle_labels(classes, num_images)


def _numbers(text: str, names: Sequence[str]) -> list[int]:
  """Return the numbers of the classes in a text; none if they are neither names nor numbers."""
  if names:
    return class_numbers(text, names, f"--labels={text}")
  try:
    return [int(number) for number in text.split(",")]
  except ValueError:
    return []


def _unknown(strange: Sequence[int], trained: Sequence[int], names: Sequence[str]) -> str:
  """Describe classes that do not exist or have no training image."""
  if outside := [label for label in strange if not 0 <= label < len(names)]:
    return (
      f"there is no class {outside[0]}; give a number from 0 to {len(names) - 1}, or a name: "
      f"{list_classes(names)}"
    )
  there = list_classes([names[label] for label in trained])
  return f"{names[strange[0]]} has no training image; trained were {there}"


def with_trained_labels(given: Batch, trained: Sequence[int], null_label: int) -> Batch:
  """Replace labels without a training image by the null class, and print a note.

  Args:
    given: held-out images.
    trained: labels with training images.
    null_label: the class-conditional model's number for a dropped label.
  """
  is_known = np.isin(given.label, trained)
  if is_known.all():
    return given
  strange = _listed(np.unique(given.label[~is_known]).tolist())
  num_strange = int((~is_known).sum())
  print(f"note: {num_strange:,} of {len(is_known):,} images have a class that was never trained "
        f"({strange}); they get the null class")  # fmt: skip
  return given._replace(label=np.where(is_known, given.label, null_label).astype(np.int32))


def _listed(labels: Sequence[int]) -> str:
  """Write labels with ranges shortened, e.g. "0-2, 5"."""
  ranges: list[list[int]] = []
  for label in labels:
    if ranges and ranges[-1][-1] == label - 1:
      ranges[-1].append(label)
    else:
      ranges.append([label])
  return ", ".join(f"{p[0]}" if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in ranges)


def first_examples(source: Source, num_images: int) -> Batch:
  """Return the first images of a source as a batch."""
  index = np.arange(min(num_images, len(source)))
  return make_batch(source, index, index)


def rows_in_turn(
  sets: Sequence[UInt8[np.ndarray, "N H W C"]], columns: int
) -> UInt8[np.ndarray, "M H W C"]:
  """Interleave rows of images, e.g. a row of originals, then a row of their reconstructions.

  The last rows are filled up with white images.
  """
  interleaved = []
  for first in range(0, len(sets[0]), columns):
    for images in sets:
      row = images[first : first + columns]
      blank = np.full((columns - len(row), *row.shape[1:]), 255, np.uint8)
      interleaved.append(np.concatenate([row, blank]))
  return np.concatenate(interleaved)


def captions_in_turn(captions: Sequence[str], num_sets: int, columns: int) -> list[str]:
  """Return the captions of `rows_in_turn`, repeated for each set of images."""
  repeated = []
  for first in range(0, len(captions), columns):
    row = list(captions[first : first + columns])
    repeated += (row + [""] * (columns - len(row))) * num_sets
  return repeated
