"""Defaults of the interface of generative models, and their optional capabilities by name."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, NoReturn, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array

from diffusion_jax.core import rng
from diffusion_jax.core.parts import Part
from diffusion_jax.core.rng import Stream
from diffusion_jax.types import (
  UNCONDITIONAL,
  Aux,
  Batch,
  Condition,
  GenerativeModel,
  ImageSpec,
  Key,
  Keys,
  Likelihood,
  LossOutput,
  Objective,
  Params,
  Samples,
  SpectrumEstimate,
  UserError,
)

CAPABILITIES = {
  "denoise": "estimate x0 from x_t: only diffusion models of the images themselves do",
  "guide": "be guided by another model: --guide_workdir needs two diffusion models: leave it out",
  "trajectory": "show its sampler's steps: only diffusion models with a sampler that keeps its "
  "estimates do",
  "loss_by_log_snr": "be measured by noise level: only diffusion models of one time have noise "
  "levels; set `eval.spectrum_images=0`",
  "edit": "edit images: it takes a diffusion model of the images themselves, not of latents, and a "
  "sampler of fixed steps, e.g. `sampler.name=ddim`",
  "encode": "reconstruct: it has no encoder; leave --reconstruct out",
}
"""Capability -> message for a model without it, with the models that have it."""


def require(model: GenerativeModel, capability: str) -> None:
  """Raise a UserError if a model lacks a capability.

  Raises:
    UserError: the capability is missing; the message names models that have it.
  """
  if capability not in model.capabilities:
    raise lacks(model, capability)


def lacks(model: GenerativeModel, capability: str) -> UserError:
  """Return the error of a model that lacks a capability."""
  return UserError(f"this model ({model.kind}) cannot {CAPABILITIES[capability]}")


@runtime_checkable
class GenerativeConfig(Protocol):
  """Contract of a kind of model in the config; `GenerativeConfigBase` has some defaults."""

  @property
  def sections(self) -> Mapping[str, Any]:
    """Sections that this kind of model adds to the config: name -> registry or dataclass."""
    ...

  @property
  def description(self) -> str:
    """Description for the report, e.g. "diffusion model"; empty: its name alone."""
    ...

  @property
  def trains_on_latents(self) -> bool:
    """True if training reads the latents of the data set instead of its images."""
    ...

  def warning(self, parts: Mapping[str, Any]) -> str | None:
    """Return a line about settings that work but probably not as intended, or None."""
    ...

  def create(self, parts: Mapping[str, Any], spec: ImageSpec) -> GenerativeModel:
    """Return the model for the config's sections; ValueError if they do not fit each other."""
    ...


@dataclasses.dataclass(frozen=True)
class GenerativeConfigBase(Part):
  """Defaults of a `GenerativeConfig`: it trains on images and has no warning."""

  description: ClassVar[str] = ""
  trains_on_latents = False

  def warning(self, parts: Mapping[str, Any]) -> str | None:
    """Return None."""
    del parts


class LossKeys(NamedTuple):
  """Random keys of a loss.

  Attributes:
    step: key of the step; the same for all its microbatches.
    examples: one key per example.
    dropout: key of the batch; None: the loss is measured, not trained. Code below
      `GenerativeModel.loss` learns this only from here.
  """

  step: Key
  examples: Keys
  dropout: Key | None


def loss_keys(key: Key, batch: Batch, train: bool) -> LossKeys:
  """Return the keys of a step's loss on a batch or one of its microbatches."""
  examples = rng.example_keys(rng.stream(key, Stream.EXAMPLES), batch.index)
  # Each microbatch has its own dropout key, numbered by its first example.
  dropout = rng.numbered(rng.stream(key, Stream.DROPOUT), jnp.asarray(batch.index)[0])
  return LossKeys(key, examples, dropout if train else None)


@dataclasses.dataclass(frozen=True, eq=False)
class ModelBase:
  """Defaults of a `GenerativeModel`: unconditional, no likelihoods, no other capabilities."""

  kind = "model"

  @property
  def capabilities(self) -> frozenset[str]:
    return frozenset()

  @property
  def num_levels(self) -> int | None:
    return None

  @property
  def num_classes(self) -> int:
    return 0

  @property
  def fields(self) -> tuple[str, ...]:
    return ()

  @property
  def trains_on(self) -> tuple[tuple[int, ...], Any] | None:
    return None

  @property
  def likelihoods(self) -> Mapping[str, Likelihood]:
    return {}

  @property
  def described_likelihoods(self) -> Mapping[str, Any]:
    return {}

  @property
  def objectives(self) -> tuple[Objective, ...]:
    return (Objective("loss", self.loss),)

  @property
  def needs_average(self) -> bool:
    return False

  @property
  def needs_batch_mean(self) -> bool:
    return False

  def init(self, key: Key) -> tuple[Params, Aux]:
    raise NotImplementedError

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
    raise NotImplementedError

  def batch_statistics(self, params: Params, key: Key, batch: Batch, *, train: bool) -> Array:
    raise NotImplementedError

  def sample(self, params: Params, keys: Keys, condition: Condition = UNCONDITIONAL) -> Samples:
    raise NotImplementedError

  def sample_guided(
    self,
    params: Params,
    keys: Keys,
    condition: Condition,
    guide: GenerativeModel,
    guide_params: Params,
  ) -> Samples:
    self._refuse("guide")

  def trajectory(self, params: Params, keys: Keys, condition: Condition = UNCONDITIONAL) -> Array:
    self._refuse("trajectory")

  def denoise(
    self, params: Params, xt: Array, t: Array, condition: Condition = UNCONDITIONAL
  ) -> Array:
    self._refuse("denoise")

  def loss_by_log_snr(self, params: Params, keys: Keys, batch: Batch) -> SpectrumEstimate:
    self._refuse("loss_by_log_snr")

  def inpaint(
    self, params: Params, keys: Keys, condition: Condition, x0: Array, is_known: Array
  ) -> Samples:
    self._refuse("edit")

  def to_noise(self, params: Params, x0: Array, condition: Condition = UNCONDITIONAL) -> Array:
    self._refuse("edit")

  def from_noise(self, params: Params, noise: Array, condition: Condition = UNCONDITIONAL) -> Array:
    self._refuse("edit")

  def encode(self, params: Params, key: Key, batch: Batch) -> Array:
    self._refuse("encode")

  def decode(self, params: Params, latents: Array) -> Array:
    self._refuse("encode")

  def _refuse(self, capability: str) -> NoReturn:
    raise lacks(self, capability)
