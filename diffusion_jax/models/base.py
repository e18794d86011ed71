"""Contracts of networks, autoencoders and observation models, and defaults of a network."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from diffusion_jax.core.parts import Part
from diffusion_jax.core.shapes import describe_value
from diffusion_jax.types import UNCONDITIONAL, Condition, FieldSpec, ImageSpec, Key, Params


class Network(NamedTuple):
  """A denoising network as pure functions.

  Attributes:
    init: key -> params.
    apply: (params, x [B ...], time [B], condition, dropout_key=None) -> output [B ...]. With
      learned variance the last axis is twice as long; its second half holds the variance logits.
      Without a dropout key the network is in evaluation mode.
  """

  init: Callable[[Key], Params]
  apply: Callable[..., Float[Array, "B ..."]]


@runtime_checkable
class NetworkConfig(Protocol):
  """Contract of a denoising network's config: a frozen dataclass; `NetworkBase` has defaults."""

  @property
  def takes(self) -> frozenset[str]:
    """Parts of a `Condition` that it uses: label, end_time, augmentation, fields."""
    ...

  @property
  def learned_variance(self) -> bool:
    """True if the output contains variance logits after the prediction."""
    ...

  @property
  def augmentation_labels(self) -> int:
    """Length of the augmentation labels, 0 for none."""
    ...

  def create(self, spec: ImageSpec, num_labels: int) -> Network:
    """Return the network for data of a given shape.

    Args:
      spec: shape of the data, including the named arrays (`spec.fields`) that the network takes.
      num_labels: size of the label embedding including the null class; 0 for unconditional.

    Raises:
      ValueError: the network does not support this data.
    """
    ...

  def settled(self) -> Any:
    """Return the same config with all derived numbers filled in."""
    ...


@dataclasses.dataclass(frozen=True)
class NetworkBase(Part):
  """Defaults of a `NetworkConfig`: at most labels as a condition, no learned variance."""

  learned_variance = False  # unannotated, so that subclasses do not get them as dataclass fields
  augmentation_labels = 0

  @property
  def takes(self) -> frozenset[str]:
    return frozenset({"label"})

  def settled(self) -> "NetworkBase":
    return self


@runtime_checkable
class Autoencoder(Protocol):
  """Contract of a VAE's networks' config: a frozen dataclass."""

  def create(self, spec: ImageSpec, num_outputs: int) -> Any:
    """Return the `VAENetworks`.

    Args:
      spec: shape of the images.
      num_outputs: number P of values per pixel that the observation model needs.

    Raises:
      ValueError: the networks do not support this data.
    """
    ...

  @property
  def has_spatial_latents(self) -> bool:
    """True if the latents are small images, suitable for a diffusion model."""
    ...

  def settled(self) -> Any:
    """Return the same config with all derived numbers filled in."""
    ...


@runtime_checkable
class Observation(Protocol):
  """Contract of an observation model p(x | z): a frozen dataclass; images x are in [-1, 1]."""

  def num_outputs(self, channels: int) -> int:
    """Return P, the number of raw outputs per pixel for images with this many channels."""
    ...

  def num_levels(self, num_levels: int | None) -> int | None:
    """Return the number of pixel levels of a discrete likelihood, or None for a density."""
    ...

  def log_prob(
    self, raw: Float[Array, "B H W P"], x: Float[Array, "B H W C"], num_levels: int | None
  ) -> Float[Array, "B"]:
    """Return log p(x | z) of each example from the decoder's raw output, in nats."""
    ...

  def mean(self, raw: Float[Array, "B H W P"]) -> Float[Array, "B H W C"]:
    """Return the mean of p(x | z)."""
    ...


def created_networks(kind: type, config: Any, *args: Any) -> Any:
  """Return what a config's `create` returned for these arguments.

  Args:
    kind: the NamedTuple that it must be like, `Network` or `VAENetworks`.
    config: a `NetworkConfig` or an `Autoencoder`.
    args: arguments of `create`.

  Raises:
    ValueError: it lacks a field of `kind`.
  """
  made = config.create(*args)
  fields = kind._fields  # pyright: ignore[reportAttributeAccessIssue]
  if not all(hasattr(made, field) for field in fields):
    raise ValueError(
      f"{type(config).__name__}.create returned {describe_value(made)}; needed "
      f"{kind.__name__}({', '.join(fields)})"
    )
  return made


def check_takes(config: NetworkConfig, needed: Mapping[str, str]) -> None:
  """Raise a ValueError if a network cannot use a required part of the condition.

  Args:
    config: the network's config.
    needed: part of the condition -> setting that needs it, e.g. "generative.fields=text".

  Raises:
    ValueError: the setting, what the network takes, and what to change.
  """
  for part, setting in needed.items():
    if part not in config.takes:
      takes = ", ".join(sorted(config.takes)) or "no condition"
      raise ValueError(
        f"{setting} needs a network that takes {part}, and {type(config).__name__} takes {takes}; "
        "choose another such as `model.name=mlp`, or leave it out"
      )


def example_condition(
  num_labels: int,
  fields: Mapping[str, FieldSpec],
  augmentation_labels: int = 0,
  end_time: bool = False,
) -> Condition:
  """Return the condition of one example, filled with zeros."""
  return Condition(
    label=jnp.zeros(1, jnp.int32) if num_labels else None,
    end_time=jnp.zeros(1) if end_time else None,
    augmentation=jnp.zeros((1, augmentation_labels)) if augmentation_labels else None,
    fields={name: jnp.zeros((1, *field.shape), field.dtype) for name, field in fields.items()},
  )


def as_network(
  module: nn.Module, config: NetworkConfig, spec: ImageSpec, num_labels: int
) -> Network:
  """Wrap a module called as (x, time, condition, train) as pure functions.

  Args:
    module: the network.
    config: the module's config, which declares the parts of a condition that it uses.
    spec: shape of the data, including the named arrays that the network takes.
    num_labels: size of the label embedding; 0 for unconditional.

  Raises:
    ValueError: `spec.fields` is not empty and the network takes none.
  """
  if spec.fields:
    check_takes(config, {"fields": f"`generative.fields={','.join(spec.fields)}`"})
  end_time = "end_time" in config.takes
  example = example_condition(num_labels, spec.fields, config.augmentation_labels, end_time)

  def init(key: Key) -> Params:
    return module.init(key, jnp.zeros((1, *spec.shape)), jnp.zeros(1), example, False)["params"]

  def apply(
    params: Params,
    x: Float[Array | np.ndarray, "B ..."],
    time: Float[Array | np.ndarray, "B"],
    condition: Condition = UNCONDITIONAL,
    dropout_key: Key | None = None,
  ) -> Any:
    check_given(condition, example)
    rngs = {} if dropout_key is None else {"dropout": dropout_key}
    train = dropout_key is not None
    return module.apply({"params": params}, x, time, condition, train, rngs=rngs)

  return Network(init, apply)


def check_given(condition: Condition, example: Condition) -> None:
  """Raise a ValueError for unsupported parts of a condition or missing named arrays.

  Raises:
    ValueError: the part that is unsupported or missing.
  """
  given, wanted = condition.fields.keys(), example.fields.keys()
  if given != wanted:
    names = lambda keys: ", ".join(sorted(keys)) or "none"  # noqa: E731
    raise ValueError(f"condition.fields={names(given)}: the network was made for {names(wanted)}")
  if (condition.end_time is None) != (example.end_time is None):
    state = "missing" if condition.end_time is None else "given, and the network takes none"
    raise ValueError(
      f"condition.end_time is {state}: `model.end_time=True` makes one that takes it"
    )


def with_fields(h: Float[Array, "B E"], fields: Mapping[str, Any]) -> Float[Array, "B E"]:
  """Add a linear map of each flattened named array; to be called inside a module."""
  for name in sorted(fields):
    flat = jnp.asarray(fields[name], jnp.float32).reshape(len(h), -1)
    h = h + nn.Dense(h.shape[-1], name=f"field_{name}")(flat)
  return h
