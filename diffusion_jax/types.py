"""Types shared by all packages: batches, conditions, samples, estimates and models."""

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
"""One typed key per example, shape [N]."""

Params = Any
"""A tree of float32 arrays with stable string names."""

Aux = Any
"""State that a loss carries between steps; an empty dict for most."""

EMPTY: Mapping[str, Any] = {}
"""No parameters, no state, no metrics; never changed."""

Metrics = Mapping[str, Float[Array, "B"]]
"""Per-example scalars that are logged with the loss."""


class UserError(Exception):
  """An error that only the user can fix; printed as one line, exit code 2."""


class FieldSpec(NamedTuple):
  """Shape and type of one named array of an example, such as a text embedding or a mask.

  Attributes:
    shape: shape for one example, without the batch axis.
    dtype: NumPy name of the type, e.g. "float32".
  """

  shape: tuple[int, ...]
  dtype: str


class ImageSpec(NamedTuple):
  """Shape, levels, classes and named arrays of one example of a data set.

  Attributes:
    height, width, channels: shape of an image in pixels.
    num_levels: number L of pixel levels; pixels are the integers 0..L-1. None for float data.
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
    """Return a hash although `fields` is a dict; specs are static arguments and cache keys."""
    return hash((*self[:5], *sorted(self.fields.items())))

  @property
  def shape(self) -> tuple[int, int, int]:
    return (self.height, self.width, self.channels)

  @property
  def num_dims(self) -> int:
    return self.height * self.width * self.channels

  def to_json(self) -> dict[str, Any]:
    """Return the spec as JSON values; without named arrays in the format of older versions."""
    values = self._asdict()
    fields = {name: [list(shape), dtype] for name, (shape, dtype) in values.pop("fields").items()}
    return values | ({"fields": fields} if fields else {})

  @classmethod
  def from_json(cls, stored: Mapping[str, Any]) -> "ImageSpec":
    """Return the spec from `to_json` of any version."""
    fields = {n: FieldSpec(tuple(f[0]), f[1]) for n, f in stored.get("fields", {}).items()}
    return cls(**{**stored, "fields": fields})


class Batch(NamedTuple):
  """Examples as they travel from the host to the devices.

  Attributes:
    image: pixel levels 0..L-1 as uint8, or float32 latents.
    label: class numbers; 0 for an unlabelled set.
    mask: 1 for an example, 0 for padding.
    index: global number of the example, modulo 2^32: step * batch_size + position in training,
      position in the split during a full pass. It alone determines the example's random draws.
    fields: named arrays per example [B ...], as declared by the source's `spec.fields`.
  """

  image: Num[Array | np.ndarray, "B H W C"]
  label: Integer[Array | np.ndarray, "B"]
  mask: Float[Array | np.ndarray, "B"]
  index: Integer[Array | np.ndarray, "B"]  # pyright: ignore[reportIncompatibleMethodOverride]
  fields: Mapping[str, Num[Array | np.ndarray, "B ..."]] = {}


class Condition(NamedTuple):
  """All inputs of a network other than the noised data and its time.

  Attributes:
    label: class numbers including the null class; None: unconditional.
    end_time: a second time in [0, 1], for networks that map one time to another (mean flows,
      shortcuts, consistency models). Loss and sampler declare that they give it.
    augmentation: augmentation labels of each example; None: not augmented.
    fields: named arrays of the batch: embeddings [B N D], low-resolution images [B H W C], masks.
  """

  label: Integer[Array | np.ndarray, "B"] | None = None
  end_time: Float[Array | np.ndarray, "B"] | None = None
  augmentation: Float[Array | np.ndarray, "B A"] | None = None
  fields: Mapping[str, Num[Array | np.ndarray, "B ..."]] = {}


UNCONDITIONAL = Condition()
"""The empty condition: the network gets only the noised data and its time."""


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=["x0", "condition", "index", "mask", "step_key"],
  meta_fields=["num_levels"],
)
@dataclasses.dataclass(frozen=True, init=False)
class Examples:
  """Input of losses and likelihoods: data on the scale of the model, with conditions.

  Attributes:
    x0: data as NumPy or JAX arrays of floats; level k of L of quantised data is 2 k / (L - 1) - 1.
    condition: the other inputs of the network.
    index: global number of each example in the run, step * batch_size + position, modulo 2^32.
      None: losses count the examples from 0.
    mask: 1 for an example, 0 for padding. None: no padding.
    step_key: key of the step, the same for all its microbatches and on all devices. None: losses
      that need one key for all examples use the first example's.
    num_levels: number L of pixel levels. None: x0 is not quantised, likelihoods are densities.
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
    x0 = jnp.asarray(x0)
    if not jnp.issubdtype(x0.dtype, jnp.floating) or not x0.ndim:
      given = f"x0 is {x0.dtype}{list(x0.shape)}"
      raise ValueError(f"{given}; needed floats [B ...]: level k of L is 2 * k / (L - 1) - 1")
    if not isinstance(condition, Condition):
      raise ValueError(f"condition={condition!r}: write it as Condition(label=...)")
    values = x0, condition, index, mask, step_key, num_levels
    for field, value in zip(dataclasses.fields(self), values, strict=True):
      object.__setattr__(self, field.name, value)


class Samples(NamedTuple):
  """Generated images.

  Attributes:
    images: images in about [-1, 1], neither clipped nor quantised.
    num_evaluations: network evaluations per image, conditional and unconditional counted
      separately; for an adaptive sampler the mean over the images, as an array.
    estimates: x0 estimates of all sampler steps in order, if they were kept.
  """

  images: Float[Array, "N ..."]
  num_evaluations: int | Float[Array, ""]
  estimates: Float[Array, "S N ..."] | None = None


class Estimate(NamedTuple):
  """A likelihood estimate per example.

  Attributes:
    bits_per_dim: negative log2-likelihood, or a bound on it, divided by the number of dimensions.
    terms: parts of it by name, in the same unit.
  """

  bits_per_dim: Float[Array, "B"]
  terms: Mapping[str, Float[Array, "B ..."]]


class SpectrumEstimate(NamedTuple):
  """Error of the noise prediction per example and noise level.

  Attributes:
    log_snr: log(alpha^2 / sigma^2), increasing.
    eps_mse: |eps - eps_hat|^2 divided by the number of dimensions.
  """

  log_snr: Float[Array, "M"]
  eps_mse: Float[Array, "B M"]


class LossOutput(NamedTuple):
  """Output of a loss.

  Attributes:
    values: loss per example, not averaged.
    metrics: per-example scalars that are logged with it.
    state: state of the loss for the next step; {} for most losses.
  """

  values: Float[Array, "B"]
  metrics: Metrics = EMPTY
  state: Aux = EMPTY


Likelihood = Callable[[Params, Keys, Batch], Estimate]
"""A function (params, keys [B], batch) -> bits/dim at `num_levels`, given the conditions."""


class Objective(NamedTuple):
  """A loss and the parameters that it trains.

  Attributes:
    name: prefix of its metrics in the log, and name of its part of a checkpoint.
    loss: function with the signature of `GenerativeModel.loss`.
    group: top-level names of the parameters that it trains; (): all.
    optimizer: config section of its optimizer.
  """

  name: str
  loss: Callable[..., LossOutput]
  group: tuple[str, ...] = ()
  optimizer: str = "optimizer"


@runtime_checkable
class GenerativeModel(Protocol):
  """Interface of a generative model for one data set, as training and the commands use it.

  A frozen dataclass whose methods are pure functions of the parameters. `generative.base.ModelBase`
  has defaults for all members; its defaults for optional capabilities raise a UserError.
  """

  @property
  def kind(self) -> str:
    """Name of the kind of model in messages, e.g. "diffusion"."""
    ...

  @property
  def capabilities(self) -> frozenset[str]:
    """Capabilities beyond training and sampling, from `generative.base.CAPABILITIES`."""
    ...

  @property
  def num_levels(self) -> int | None:
    """Number of pixel levels of its likelihoods; None: they are densities."""
    ...

  @property
  def num_classes(self) -> int:
    """Number of classes that `sample` accepts as labels; 0 for an unconditional model."""
    ...

  @property
  def fields(self) -> tuple[str, ...]:
    """Names of the arrays of a batch that its network is given."""
    ...

  @property
  def trains_on(self) -> tuple[tuple[int, ...], Any] | None:
    """Shape and type of `Batch.image` in training if it differs from pixel levels, else None."""
    ...

  @property
  def likelihoods(self) -> Mapping[str, Likelihood]:
    """Likelihood estimators by name."""
    ...

  @property
  def described_likelihoods(self) -> Mapping[str, Any]:
    """Declarations of its likelihoods by name, each a `likelihood.DescribedLikelihood`."""
    ...

  @property
  def objectives(self) -> tuple[Objective, ...]:
    """Losses that a training step minimises; by default `loss` over all parameters.

    If there are several, `init` returns a dict of loss states by their names.
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
    """Return the initial parameters and the initial state of the loss."""
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
      params, loss_state: parameters and state of the loss, see `init`.
      key: key of the step; each example's draws derive from it and the example's index.
      batch: examples.
      train: True in training, with dropout, augmentation and dropped conditions; False to measure.
      average: averaged parameters, for a loss with a teacher or target network.
      batch_mean: mean of `batch_statistics` over the whole batch; None if `batch` is the whole
        batch and not a part of it.
    """
    ...

  def batch_statistics(self, params: Params, key: Key, batch: Batch, *, train: bool) -> Array:
    """Return values [B ...] whose mean over the whole batch enters the loss."""
    ...

  def sample(self, params: Params, keys: Keys, condition: Condition = UNCONDITIONAL) -> Samples:
    """Return generated images; image i depends only on keys[i] and its condition."""
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

    The last one equals the images of `sample` for the same keys.
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

  def to_noise(self, params: Params, x0: Array, condition: Condition = UNCONDITIONAL) -> Array:
    """Return the noise that `from_noise` maps to x0, without guidance (capability "edit")."""
    ...

  def from_noise(self, params: Params, noise: Array, condition: Condition = UNCONDITIONAL) -> Array:
    """Return the sampler's images for given noise, without guidance (capability "edit")."""
    ...

  def encode(self, params: Params, key: Key, batch: Batch) -> Array:
    """Return one latent per example, drawn from its posterior (capability "encode")."""
    ...

  def decode(self, params: Params, latents: Array) -> Array:
    """Return images in [-1, 1] for latents (capability "encode")."""
    ...
