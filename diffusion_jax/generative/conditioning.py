"""Conditional inputs of a model's network, and their dropout in training."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from diffusion_jax.core import rng
from diffusion_jax.core.broadcasting import expand
from diffusion_jax.core.rng import Stream
from diffusion_jax.types import Batch, Condition, FieldSpec, ImageSpec, Key, Keys, UserError


@dataclasses.dataclass(frozen=True)
class Conditioning:
  """Conditional inputs of a model's network.

  Attributes:
    num_classes: number of classes; the null class has the next number. 0: no labels.
    fields: shapes of the named arrays.
    dropped: parts that are dropped together for some examples in training: "label" (it becomes the
      null class) and names of fields (they become zeros).
    dropout: probability of dropping them for an example.
  """

  num_classes: int
  fields: Mapping[str, FieldSpec]
  dropped: tuple[str, ...]
  dropout: float

  @property
  def droppable(self) -> bool:
    """True if training drops something, so that guidance has a null condition."""
    return self.dropout > 0 and bool(self._hides_label or self._hidden_fields)

  @property
  def _hides_label(self) -> bool:
    return bool(self.num_classes) and "label" in self.dropped

  @property
  def _hidden_fields(self) -> list[str]:
    return [name for name in self.fields if name in self.dropped]

  def given(self, batch: Batch) -> Condition:
    """Return the complete condition of a batch."""
    fields = {name: batch.fields[name] for name in self.fields}
    return Condition(batch.label if self.num_classes else None, fields=fields)

  def in_training(self, keys: Keys, batch: Batch, dropout_key: Key | None) -> Condition:
    """Return the condition of a batch, dropped for some examples unless it is a measurement."""
    condition = self.given(batch)
    if dropout_key is None or not self.droppable:
      return condition
    hidden = rng.uniform(rng.stream(keys, Stream.CONDITION_DROPOUT)) < self.dropout
    choose = lambda null, given: jnp.where(expand(hidden, null), null, given)  # noqa: E731
    return jax.tree.map(choose, self.null(condition), condition)

  def null(self, condition: Condition) -> Condition:
    """Return the null condition: everything that training drops is dropped."""
    label: Any = condition.label
    if self._hides_label:
      label = jnp.full_like(label, self.num_classes)
    zeros = {name: jnp.zeros_like(condition.fields[name]) for name in self._hidden_fields}
    return condition._replace(label=label, fields={**condition.fields, **zeros})

  def complete(self, condition: Condition, num_images: int) -> Condition:
    """Return a condition of `num_images` examples, with missing parts dropped.

    Raises:
      UserError: a named array is unknown, or is missing and was never dropped in training.
    """
    label: Any = condition.label
    if self.num_classes and label is None:
      label = jnp.full(num_images, self.num_classes)
    fields = dict(condition.fields)
    for name in fields:
      if name not in self.fields:
        takes = ", ".join(self.fields) or "none"
        raise UserError(
          f"condition.fields has '{name}'; this model takes the named arrays: {takes}"
        )
    for name, field in self.fields.items():
      if name not in fields and name not in self._hidden_fields:
        raise UserError(
          f"condition.fields lacks '{name}', which this model was never trained without: give it "
          f"as Condition(fields={{'{name}': array of shape (N, *{tuple(field.shape)})}})"
        )
      fields.setdefault(name, jnp.zeros((num_images, *field.shape), field.dtype))
    return condition._replace(label=label, fields=fields)


def make_conditioning(
  conditional: bool, fields: tuple[str, ...], dropped: tuple[str, ...], dropout: float,
  spec: ImageSpec,
) -> Conditioning:  # fmt: skip
  """Return the conditioning of a config for a data set.

  Raises:
    ValueError: a part is missing in the data set, or is dropped without being an input.
  """
  if conditional and not spec.num_classes:
    raise ValueError(
      "generative.conditional is true but the data set has no labels; "
      "set `generative.conditional=False`"
    )
  has = ", ".join(spec.fields) or "none"
  for name in fields:
    if name not in spec.fields:
      raise ValueError(f"generative.fields={name}: the data set has the named arrays: {has}")
  for name in dropped:
    if name != "label" and name not in fields:
      allowed = ", ".join(("label", *fields))
      raise ValueError(f"generative.dropped={name} is not given to the network; allowed: {allowed}")
  given = {name: spec.fields[name] for name in fields}
  return Conditioning(spec.num_classes if conditional else 0, given, dropped, dropout)
