"""Contracts of a data set, which a config names, and of its splits, with random access."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int, Int32, Num

from diffusion_jax.core.files import BUCKET, bucket_path
from diffusion_jax.core.own_code import own_code
from diffusion_jax.core.parts import Part
from diffusion_jax.core.registry import documented
from diffusion_jax.core.settings import fields_with
from diffusion_jax.data.accounting import FileCounts
from diffusion_jax.types import ImageSpec, UserError


class About(NamedTuple):
  """Facts about a split for messages, besides its images.

  Attributes:
    classes: class names in the order of their numbers; empty if they have only numbers.
    counts: number of images per class; None if unlabelled, or unknown before all are read.
    origin: origin of the images, e.g. "from `data.test_path=cats`"; empty if plain.
    notes: sentences on files that were skipped or changed.
    files: counts of every file found, for pictures in folders and archives.
  """

  classes: Sequence[str] = ()
  counts: Sequence[int] | None = None
  origin: str = ""
  notes: Sequence[str] = ()
  files: FileCounts | None = None


class Seen(NamedTuple):
  """Facts about the training images that do not need their decoding.

  Attributes:
    sizes: heights and widths of the images, or of some of them.
    is_grey: True if all are grey.
    num_images: number of images.
    num_classes: number of classes; 0: unlabelled.
    resizable: True if the data set can resize them, by its field image_size.
  """

  sizes: Sequence[tuple[int, int]]
  is_grey: bool
  num_images: int
  num_classes: int
  resizable: bool


class Autoencoder(NamedTuple):
  """The frozen autoencoder of encoded images.

  Attributes:
    weights: parameters of the autoencoder as one vector, see `generative.latent_diffusion`.
    scale: factor that gives the latents of the training split standard deviation 1.
  """

  weights: Float32[np.ndarray, "P"]
  scale: float


@runtime_checkable
class Source(Protocol):
  """One split of a data set, with random access. `SourceBase` has defaults for the last two."""

  @property
  def name(self) -> str:
    """Name for messages, e.g. "digits train"."""
    ...

  @property
  def spec(self) -> ImageSpec:
    """Shape, levels, classes and named arrays of one example, an ImageSpec."""
    ...

  def __len__(self) -> int: ...

  def gather(
    self, index: Int[np.ndarray, "B"]
  ) -> tuple[Num[np.ndarray, "B H W C"], Int32[np.ndarray, "B"]]:
    """Return the images (uint8 levels, or float32) and labels at positions 0..N-1.

    Safe to call from several threads.
    """
    ...

  @property
  def about(self) -> About:
    """Further facts for messages, an About."""
    ...

  def gather_fields(self, index: Int[np.ndarray, "B"]) -> Mapping[str, Num[np.ndarray, "B ..."]]:
    """Return the named arrays of `spec.fields` at these positions."""
    ...


class SourceBase:
  """Defaults of a source: no further facts and no named arrays."""

  about: About = About()

  def gather_fields(self, index: Int[np.ndarray, "B"]) -> Mapping[str, Num[np.ndarray, "B ..."]]:
    """Return no named arrays."""
    del index
    return {}


@runtime_checkable
class DataSet(Protocol):
  """A data set. `DataSetBase` has defaults for all but `load`."""

  def load(self, split: str) -> Source:
    """Return the split "train" or "test"; raise a UserError if it is invalid."""
    ...

  def has_split(self, split: str) -> bool:
    """Return True if a split of this name exists."""
    ...

  @property
  def flip(self) -> bool:
    """Mirror half of the training images left to right."""
    ...

  def known_spec(self) -> ImageSpec | None:
    """Return the spec if known without a download or a scan of the data, else None."""
    ...

  @property
  def has_latents(self) -> bool:
    """True if the images are encoded, so that latent_diffusion can train on their latents."""
    ...

  def load_latents(self, split: str, autoencoder: Mapping[str, Mapping[str, Any]]) -> Source:
    """Return means and log-variances of a split, for the config sections of the autoencoder."""
    ...

  def autoencoder(self) -> Autoencoder:
    """Return the weights of the autoencoder and the scale of its latents."""
    ...


class DataSetBase(Part):
  """Defaults of a data set: only a training split, not mirrored and not encoded."""

  flip: bool = False
  has_latents: bool = False

  def has_split(self, split: str) -> bool:
    """Return True for the training split."""
    return split == "train"

  def known_spec(self) -> ImageSpec | None:
    """Return None: the spec is only known after reading the data."""
    return None

  def look(self) -> Seen:
    """Return the size and classes of the training split, by default of images of one size."""
    source: Source = self.load("train")  # type: ignore[attr-defined]
    spec = source.spec
    size = (spec.height, spec.width)
    return Seen([size], spec.channels == 1, len(source), spec.num_classes, False)

  def fetch(self) -> None:
    """Copy the files that are in a bucket to this machine, before they are read."""
    for name in fields_with("is_path", type(self)):
      if BUCKET.match(str(getattr(self, name) or "")):
        bucket_path(getattr(self, name))

  def load_latents(self, split: str, autoencoder: Mapping[str, Mapping[str, Any]]) -> Source:
    """Raise a UserError: there are no latents."""
    raise UserError(NO_LATENTS)

  def autoencoder(self) -> Autoencoder:
    """Raise a UserError: there are no latents."""
    raise UserError(NO_LATENTS)


NO_LATENTS = (
  "these data have no latents; set `data.name=latents` `data.path=DIR`, made by "
  "python -m diffusion_jax.encode"
)


def load_split(data: DataSet, split: str) -> Source:
  """Load a split and check its first and last example.

  Raises:
    UserError: the split cannot be loaded, or breaks the contract of a source.
  """
  try:
    with own_code({"data": data}, refusals=(ValueError,)):
      source = data.load(split)
  except ValueError as error:
    raise UserError(f"config.data: {error}") from error
  with own_code({"data": data}):
    fault = source_fault(source)
  if fault:
    raise UserError(f"config.data: {type(data).__name__}.load('{split}') {fault}")
  if data.flip:
    _check_flip(source.spec)
  return source


def fetch_data(data: DataSet) -> None:
  """Copy the files of a data set that are in a bucket to this machine, if it says how."""
  with own_code({"data": data}):
    getattr(data, "fetch", lambda: None)()


def load_splits(data: DataSet) -> tuple[Source, Source | None]:
  """Load the training split and, if there is one, the test split.

  Raises:
    UserError: see `load_split`.
  """
  train = load_split(data, "train")
  with own_code({"data": data}):
    has_test = data.has_split("test")
  return train, load_split(data, "test") if has_test else None


def load_held_out(data: DataSet) -> Source:
  """Load the test split, or the training split if there is no other."""
  return load_split(data, "test" if data.has_split("test") else "train")


def source_fault(source: Any) -> str | None:
  """Return how an object breaks the contract of a source, or None."""
  where = f"see {Source.__module__}.{Source.__qualname__}"
  needed = [*documented(Source), ("__len__", "Return the number of examples.")]
  lacking = [f"{name} ({words.rstrip('.')})" for name, words in needed if not hasattr(source, name)]
  if lacking:
    return f"gave {type(source).__name__} without {'; '.join(lacking)}; {where}."
  if not isinstance(source.spec, ImageSpec):
    return f"gave spec={source.spec!r}; it must be an ImageSpec; {where}."
  if not len(source):
    return "gave no example; give at least one."
  index = np.unique([0, len(source) - 1])
  gathered = source.gather(index)
  if not isinstance(gathered, tuple) or len(gathered) != 2:
    return f"gathers {type(gathered).__name__}; it must be images and labels; {where}."
  spec, (images, labels) = source.spec, gathered
  dtype = "float32" if spec.num_levels is None else "uint8"
  fault = _unlike("images", images, (len(index), *spec.shape), dtype)
  fault = fault or _unlike("labels", labels, (len(index),), "int32") or _misnumbered(labels, spec)
  return fault or field_fault(source.gather_fields(index), spec, len(index))


def field_fault(fields: Mapping[str, np.ndarray], spec: ImageSpec, num_images: int) -> str | None:
  """Return how named arrays differ from the declared ones of a spec, or None."""
  for name in {**spec.fields, **fields}:
    if name not in fields or name not in spec.fields:
      one, other = ("declares", "gathers") if name in spec.fields else ("gathers", "declares")
      return f"{one} the named array '{name}' and {other} none of that name."
    wanted = spec.fields[name]
    if fault := _unlike(f"'{name}'", fields[name], (num_images, *wanted.shape), wanted.dtype):
      return fault
  return None


def _check_flip(spec: ImageSpec) -> None:
  """Refuse to mirror images if named arrays may or may not belong to their pixels."""
  for name, field in spec.fields.items():
    if tuple(field.shape) == (spec.height, spec.width):
      raise UserError(
        f"`data.flip=True` mirrors images and named arrays [H, W, C], and '{name}' is "
        f"{list(field.shape)}; give it a third axis, or set `data.flip=False`"
      )


def _unlike(what: str, array: Any, shape: tuple[int, ...], dtype: str) -> str | None:
  actual = (np.shape(array), str(np.asarray(array).dtype))
  if actual == (shape, dtype):
    return None
  return f"gathers {what} of {actual[1]}{list(actual[0])}; its spec declares {dtype}{list(shape)}."


def _misnumbered(labels: np.ndarray, spec: ImageSpec) -> str | None:
  last = max(spec.num_classes - 1, 0)
  strange = [int(label) for label in labels if not 0 <= label <= last]
  return f"gathers the label {strange[0]}; its spec allows 0 to {last}." if strange else None
