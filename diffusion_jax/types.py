"""What passes between the rooms: batches, samples, estimates and the one interface of a model."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Integer, Num

Key = jax.Array
"""A typed key, `jax.random.key(seed)`."""

Keys = jax.Array
"""One typed key an example, shape [N]."""

Params = Any
"""A tree of float32 arrays with stable string names."""

Aux = Any
"""State that a loss carries between steps; an empty dict for most."""

Metrics = Mapping[str, Float[Array, "B"]]
"""Per-example scalars that are logged beside the loss."""


class UserError(Exception):
  """Something that only the user can mend: printed as one line, exit code 2."""


class FieldSpec(NamedTuple):
  """Shape and type of one named array of an example, such as a text embedding or a mask.

  Attributes:
    shape: of one example, without the batch.
    dtype: NumPy's name of its type, e.g. "float32".
  """

  shape: tuple[int, ...]
  dtype: str


class ImageSpec(NamedTuple):
  """Shape, levels, classes and named arrays of one example of a data set.

  Attributes:
    height, width, channels: shape of an image in pixels.
    num_levels: L, the number of pixel levels; pixels are the integers 0..L-1. None for float data.
    num_classes: number of labels, 0 for an unlabelled set.
    fields: named arrays that accompany each image, see `Condition.fields`.
  """

  height: int
  width: int
  channels: int
  num_levels: int | None
  num_classes: int
  fields: Mapping[str, FieldSpec] = {}

  @property
  def shape(self) -> tuple[int, int, int]:
    return (self.height, self.width, self.channels)

  @property
  def num_dims(self) -> int:
    return self.height * self.width * self.channels


class Batch(NamedTuple):
  """Examples as they travel from the host to the devices.

  Attributes:
    image: levels 0..L-1 as uint8, or float32 latents.
    label: class numbers, 0 for an unlabelled set.
    mask: 1 for an example, 0 for padding.
    index: the example's global number: step * batch_size + position while training, its place
      in the split during a full pass. Randomness of an example derives from it alone.
    fields: named arrays of each example [B ...], as the source's `spec.fields` declares them.
  """

  image: Num[Array | np.ndarray, "B H W C"]
  label: Integer[Array | np.ndarray, "B"]
  mask: Float[Array | np.ndarray, "B"]
  index: Integer[Array | np.ndarray, "B"]  # pyright: ignore[reportIncompatibleMethodOverride]
  fields: Mapping[str, Num[Array | np.ndarray, "B ..."]] = {}


class Condition(NamedTuple):
  """Everything that a network is given besides the noised data and its time.

  Attributes:
    label: class numbers, the null class included; None: unconditional.
    end_time: a second time in [0, 1], for networks that map one time to another (mean flows,
      shortcuts, consistency models).
    augmentation: labels of how each example was augmented; None: not augmented.
    fields: named arrays of the batch, e.g. embeddings [B N D], a low-resolution image
      [B H W C] or masks.
  """

  label: Integer[Array | np.ndarray, "B"] | None = None
  end_time: Float[Array | np.ndarray, "B"] | None = None
  augmentation: Float[Array | np.ndarray, "B A"] | None = None
  fields: Mapping[str, Num[Array | np.ndarray, "B ..."]] = {}


class Samples(NamedTuple):
  """Generated images.

  Attributes:
    images: in [-1, 1] up to the model's error; not clipped, not quantised.
    num_evaluations: network evaluations spent on one image, conditional and unconditional
      counted separately; of an adaptive sampler the mean over the images, an array.
    estimates: the x0 estimate of every sampler step in order, if it was asked to keep them.
  """

  images: Float[Array, "N H W C"]
  num_evaluations: int | Float[Array, ""]
  estimates: Float[Array, "S N H W C"] | None = None


class Estimate(NamedTuple):
  """A likelihood estimate of each example.

  Attributes:
    bits_per_dim: minus log2-likelihood (or a bound of it) over the number of dimensions.
    terms: its parts, in the same unit, by name.
  """

  bits_per_dim: Float[Array, "B"]
  terms: Mapping[str, Float[Array, "B ..."]]


class SpectrumEstimate(NamedTuple):
  """How well each example's noise is predicted at each noise level.

  Attributes:
    log_snr: log(alpha^2 / sigma^2), rising.
    eps_mse: |eps - eps_hat|^2 over the number of dimensions.
  """

  log_snr: Float[Array, "M"]
  eps_mse: Float[Array, "B M"]


class Editing(NamedTuple):
  """What a diffusion model does with given images x0 in [-1, 1], by the sampler of its config.

  Attributes:
    inpaint: (params, keys [N], labels [N] or None, x0 [N H W C], is_known [N H W C]) -> Samples
      that keep the known pixels.
    encode: (params, x0) -> the noise that `decode` turns into x0; without guidance, and of a
      class-conditional model with the null class.
    decode: (params, noise) -> x0.
  """

  inpaint: Callable[[Params, Keys, Array | None, Array, Array], Samples]
  encode: Callable[[Params, Array], Array]
  decode: Callable[[Params, Array], Array]


class Generative(NamedTuple):
  """A generative model as pure functions: all that the binaries know of it.

  A capability that a model lacks is None (or missing from `likelihoods`).

  Attributes:
    init: key -> (params, aux).
    loss: (params, aux, key, batch, train) -> (loss of each example [B], metrics, aux).
    sample: (params, keys [N], labels [N] or None) -> Samples; image i depends on keys[i] alone.
    likelihoods: name -> (params, keys [B], batch) -> Estimate, in bits/dim at `num_levels`; of a
      class-conditional model, given the label.
    spectrum: (params, keys [B], batch) -> SpectrumEstimate. Diffusion only.
    trajectory: (params, keys [N], labels [N] or None) -> the guided x0 estimate of every sampler
      step [S N H W C]; for the same keys, the last one is `sample`'s images. Diffusion only.
    denoise: (params, xt, t [B], labels or None) -> x0 estimate. Diffusion only.
    sample_against: (params, keys [N], labels [N] or None, worse, worse_params) -> Samples guided
      away from an inferior model, whose `denoise` is `worse`. Diffusion only.
    editing: what it does with given images. Diffusion with a sampler of fixed steps only.
    encode: (params, key, batch) -> latents. VAEs and latent models only.
    decode: (params, latents) -> images in [-1, 1].
    num_levels: grey levels that the likelihoods count (None: a density).
    num_classes: classes that `sample` takes as labels, 0 for an unconditional model.
    trains_on: shape and type of Batch.image in training, where it is not the image's levels.
    statistics: (params, key, batch, train) -> values [B ...] of each example, where the loss
      depends on their mean over the whole batch. `loss` takes that mean as a sixth argument where
      its batch is a part of the whole; without it, the batch is the whole.
  """

  init: Callable[[Key], tuple[Params, Aux]]
  loss: Callable[..., tuple[Array, Metrics, Aux]]
  sample: Callable[[Params, Keys, Array | None], Samples]
  likelihoods: Mapping[str, Callable[[Params, Keys, Batch], Estimate]]
  spectrum: Callable[[Params, Keys, Batch], SpectrumEstimate] | None = None
  trajectory: Callable[[Params, Keys, Array | None], Array] | None = None
  denoise: Callable[[Params, Array, Array, Array | None], Array] | None = None
  sample_against: Callable[[Params, Keys, Array | None, Callable, Params], Samples] | None = None
  editing: Editing | None = None
  encode: Callable[[Params, Key, Batch], Array] | None = None
  decode: Callable[[Params, Array], Array] | None = None
  num_levels: int | None = None
  num_classes: int = 0
  trains_on: tuple[tuple[int, ...], Any] | None = None
  statistics: Callable[[Params, Key, Batch, bool], Array] | None = None
