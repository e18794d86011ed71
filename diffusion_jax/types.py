"""What passes between the rooms: batches, samples, estimates and the interface of a model."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
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

EMPTY: Mapping[str, Any] = {}
"""No parameters, no state, no metrics; never changed."""

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

  def __hash__(self) -> int:
    """Return a hash, although `fields` is a dict: specs are static arguments and cache keys."""
    return hash((*self[:5], *sorted(self.fields.items())))

  @property
  def shape(self) -> tuple[int, int, int]:
    return (self.height, self.width, self.channels)

  @property
  def num_dims(self) -> int:
    return self.height * self.width * self.channels

  def to_json(self) -> dict[str, Any]:
    """Return the spec as JSON values; without named arrays as versions before them wrote it."""
    found = self._asdict()
    fields = {name: [list(shape), dtype] for name, (shape, dtype) in found.pop("fields").items()}
    return found | ({"fields": fields} if fields else {})

  @classmethod
  def from_json(cls, stored: Mapping[str, Any]) -> "ImageSpec":
    """Return the spec that `to_json` wrote, in any version."""
    fields = {n: FieldSpec(tuple(f[0]), f[1]) for n, f in stored.get("fields", {}).items()}
    return cls(**{**stored, "fields": fields})


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


UNCONDITIONAL = Condition()
"""The condition of a network that is given nothing besides the noised data and its time."""


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=["x0", "condition", "index", "mask", "step_key"],
  meta_fields=["num_levels"],
)
@dataclasses.dataclass(frozen=True, init=False)
class Examples:
  """Examples as losses and likelihoods take them: on the scale of the model, with conditions.

  Attributes:
    x0: data, from NumPy or JAX arrays; quantised data have level k of L as 2 k / (L - 1) - 1.
    condition: what the network is given besides.
    index: the global number of each example in the run: step * batch_size + position. None: losses
      count the examples from 0.
    mask: 1 for an example, 0 for padding. None: there is no padding.
    step_key: key of the step, the same for all its microbatches and on all devices. None: losses
      that need a key for all examples take that of the first.
    num_levels: L. None: x0 is not quantised, and likelihoods are densities.
  """

  x0: Float[Array, "B ..."]
  condition: Condition
  index: Integer[Array | np.ndarray, "B"] | None
  mask: Float[Array | np.ndarray, "B"] | None
  step_key: Key | None
  num_levels: int | None

  def __init__(
    self,
    x0: Float[Array | np.ndarray, "B ..."],
    condition: Condition = UNCONDITIONAL,
    index: Integer[Array | np.ndarray, "B"] | None = None,
    mask: Float[Array | np.ndarray, "B"] | None = None,
    step_key: Key | None = None,
    num_levels: int | None = None,
  ):
    values = jnp.asarray(x0), condition, index, mask, step_key, num_levels
    for field, value in zip(dataclasses.fields(self), values, strict=True):
      object.__setattr__(self, field.name, value)


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


class LossOutput(NamedTuple):
  """Values of a loss.

  Attributes:
    values: loss per example, not averaged.
    metrics: per-example scalars that are logged beside it.
    state: what the loss carries to the next step; {} for most.
  """

  values: Float[Array, "B"]
  metrics: Metrics = EMPTY
  state: Aux = EMPTY


Likelihood = Callable[[Params, Keys, Batch], Estimate]
"""(params, keys [B], batch) -> bits/dim at the model's `num_levels`, given each example's condition
if the model takes one."""


class Objective(NamedTuple):
  """A loss with the parameters that it trains.

  Attributes:
    name: of its figures in the log and of its part of a checkpoint.
    loss: called as `GenerativeModel.loss`.
    group: names of the parameters that it trains, at the top of their tree; (): all.
    optimizer: section of the config with its optimizer.
  """

  name: str
  loss: Callable[..., LossOutput]
  group: tuple[str, ...] = ()
  optimizer: str = "optimizer"


@runtime_checkable
class GenerativeModel(Protocol):
  """A generative model for one data set: all that training and the programs use of it.

  A frozen dataclass whose methods are pure functions of the parameters. `generative.base.ModelBase`
  has defaults for all members; its methods for what a model cannot do raise a UserError.
  """

  @property
  def capabilities(self) -> frozenset[str]:
    """Names of `generative.base.CAPABILITIES` that it has beyond training and sampling."""
    ...

  @property
  def num_levels(self) -> int | None:
    """Number of pixel levels that its likelihoods count; None: they are densities."""
    ...

  @property
  def num_classes(self) -> int:
    """Number of classes that `sample` takes as labels, 0 for an unconditional model."""
    ...

  @property
  def trains_on(self) -> tuple[tuple[int, ...], Any] | None:
    """Shape and type of `Batch.image` in training where it is not the image's levels, or None."""
    ...

  @property
  def likelihoods(self) -> Mapping[str, Likelihood]:
    """Likelihood estimators by name."""
    ...

  @property
  def objectives(self) -> tuple[Objective, ...]:
    """What a training step minimises; by default `loss`, over all parameters.

    With several, `init` returns a dict of loss states by their names.
    """
    ...

  @property
  def needs_average(self) -> bool:
    """True if the loss takes the averaged parameters."""
    ...

  @property
  def needs_batch_mean(self) -> bool:
    """True if the loss depends on the mean of `batch_statistics` over the whole batch."""
    ...

  def init(self, key: Key) -> tuple[Params, Aux]:
    """Return initial parameters, and the loss's state before the first step."""
    ...

  def loss(
    self,
    params: Params,
    loss_state: Aux,
    key: Key,
    batch: Batch,
    *,
    train: bool,
    average: Params | None = None,
    batch_mean: Array | None = None,
  ) -> LossOutput:
    """Return the loss of each example.

    Args:
      params, loss_state: see `init`.
      key: of the step; each example's draws derive from it and the example's index.
      batch: examples.
      train: True: with dropout, augmentation and hidden conditions; False: a measurement.
      average: averaged parameters, for a loss with a teacher or target network.
      batch_mean: mean of `batch_statistics` over the whole batch of which `batch` is a part; None:
        it is the whole.
    """
    ...

  def batch_statistics(self, params: Params, key: Key, batch: Batch, *, train: bool) -> Array:
    """Return the values [B ...] whose mean over the whole batch the loss depends on."""
    ...

  def sample(self, params: Params, keys: Keys, condition: Condition = UNCONDITIONAL) -> Samples:
    """Return generated images; image i depends on keys[i] and its condition alone."""
    ...

  def sample_guided(
    self,
    params: Params,
    keys: Keys,
    condition: Condition,
    guide: "GenerativeModel",
    guide_params: Params,
  ) -> Samples:
    """Return images guided away from an inferior model (capability "guide")."""
    ...

  def trajectory(self, params: Params, keys: Keys, condition: Condition = UNCONDITIONAL) -> Array:
    """Return the guided x0 estimate of every sampler step [S N ...] (capability "trajectory").

    For the same keys, the last one is `sample`'s images.
    """
    ...

  def denoise(
    self, params: Params, xt: Array, t: Array, condition: Condition = UNCONDITIONAL
  ) -> Array:
    """Return the x0 estimate for x_t at times t [B] (capability "denoise")."""
    ...

  def loss_by_log_snr(self, params: Params, keys: Keys, batch: Batch) -> SpectrumEstimate:
    """Return the denoising error at each noise level (capability "loss_by_log_snr")."""
    ...

  def inpaint(
    self, params: Params, keys: Keys, condition: Condition, x0: Array, is_known: Array
  ) -> Samples:
    """Return images that keep the known pixels of x0 in [-1, 1] (capability "edit")."""
    ...

  def to_noise(self, params: Params, x0: Array) -> Array:
    """Return the noise that `from_noise` turns into x0, without guidance (capability "edit")."""
    ...

  def from_noise(self, params: Params, noise: Array) -> Array:
    """Return the images that the sampler makes of noise, without guidance (capability "edit")."""
    ...

  def encode(self, params: Params, key: Key, batch: Batch) -> Array:
    """Return one latent of each example, drawn from its posterior (capability "encode")."""
    ...

  def decode(self, params: Params, latents: Array) -> Array:
    """Return images in [-1, 1] for latents (capability "encode")."""
    ...
