"""Update rules with their learning rates."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from diffusion_jax.core.parts import Part
from diffusion_jax.core.registry import Registry
from diffusion_jax.core.settings import HOW_IT_RUNS
from diffusion_jax.core.shapes import describe_value
from diffusion_jax.core.stacking import shape_of_layer
from diffusion_jax.types import Params

Rates = Mapping[str, Any]
"""Float32 scalars by name: NumPy's, or traced arguments of a compiled step."""

FIXED = ("autoencoder", "latent_scale", "frequencies")
"""Names of parameters that are saved with a model but never trained, see `apply_updates`."""


@runtime_checkable
class Optimizer(Protocol):
  """An update rule with its learning rate; `ScheduledOptimizer` has all but `create`."""

  @property
  def clip_scope(self) -> Literal["global", "microbatch"]:
    """Scope of gradient clipping: "global" for the whole batch, "microbatch" for each part."""
    ...

  def rates(self, num_steps: int) -> Rates:
    """Return the numbers that a compiled step takes as arguments in a run of `num_steps`.

    They are float32 scalars by name; "clip_norm", if present, is the largest norm of a gradient.
    """
    ...

  def rate(self, num_steps: int, rates: Rates | None = None) -> optax.Schedule:
    """Return the learning rate as a function of the number of updates so far.

    `rates` are these numbers as traced arguments; None: as constants.
    """
    ...

  def create(self, num_steps: int, rates: Rates | None = None) -> optax.GradientTransformation:
    """Return the optax update rule, with the learning rate but without clipping.

    The structure of the optimizer state must not depend on the numbers in `rates`. The training
    step leaves the parameters named in FIXED alone, whatever the rule returns for them.
    """
    ...


@dataclasses.dataclass(frozen=True)
class ScheduledOptimizer(Part):
  """A learning rate with linear warm-up and schedule, and gradient clipping.

  Attributes:
    learning_rate: rate after the warm-up.
    warmup_steps: number of updates over which the rate rises linearly from 0.
    schedule: rate after the warm-up: constant, or a decay to 0, linear or as half a cosine.
    decay_steps: update at which a decaying schedule reaches 0; none: the run's last.
    clip_norm: largest global norm of a gradient; none: no clipping.
    clip_scope: `global` clips the batch's gradient; `microbatch` clips each of
      training.accumulation_steps parts before they are averaged, as the original DDPM did on each
      of its 8 replicas.
  """

  learning_rate: float = 2e-4
  warmup_steps: int = 0
  schedule: Literal["constant", "cosine", "linear"] = "constant"
  decay_steps: int | None = None
  clip_norm: float | None = 1.0
  clip_scope: Literal["global", "microbatch"] = "global"

  def __post_init__(self):
    if self.learning_rate <= 0:
      raise ValueError(f"learning_rate={self.learning_rate} must be positive")
    if self.warmup_steps < 0:
      raise ValueError(f"warmup_steps={self.warmup_steps} must not be negative")
    if self.clip_norm is not None and self.clip_norm <= 0:
      raise ValueError(f"clip_norm={self.clip_norm} must be positive, or none")
    if self.decay_steps is not None and self.decay_steps <= self.warmup_steps:
      raise ValueError(f"decay_steps={self.decay_steps} must exceed the warm-up")

  def rates(self, num_steps: int) -> Rates:
    """Return the numbers that a compiled step takes as arguments in a run of `num_steps`.

    They are float32 scalars: learning_rate, warmup_steps, decay_steps for a decaying schedule (the
    length of its decaying part) and clip_norm unless it is None.
    """
    names = ("learning_rate", "warmup_steps")
    numbers = {name: getattr(self, name) for name in names}
    if self.schedule != "constant":
      numbers["decay_steps"] = max((self.decay_steps or num_steps) - self.warmup_steps, 1)
    if self.clip_norm is not None:
      numbers["clip_norm"] = self.clip_norm
    return {name: np.asarray(value, np.float32) for name, value in numbers.items()}

  def rate(self, num_steps: int, rates: Rates | None = None) -> optax.Schedule:
    """Return the learning rate as a function of the number of updates so far.

    Args:
      num_steps: length of the run.
      rates: `rates(num_steps)` as traced arguments of a compiled step; None: as constants.
    """
    rates = self.rates(num_steps) if rates is None else rates
    shape = {
      "linear": lambda progress: 1.0 - progress,
      "cosine": lambda progress: 0.5 * (1.0 + jnp.cos(jnp.pi * progress)),
    }

    def schedule(updates: Any) -> Any:
      after, factor = updates - rates["warmup_steps"], 1.0
      if self.schedule != "constant":
        factor = shape[self.schedule](jnp.clip(after / rates["decay_steps"], 0.0, 1.0))
      rising = updates / jnp.maximum(rates["warmup_steps"], 1.0)
      return rates["learning_rate"] * jnp.where(after < 0, rising, factor)

    return schedule


@dataclasses.dataclass(frozen=True)
class Adam(ScheduledOptimizer):
  """Adam with linear warm-up, a schedule and gradient clipping, see `ScheduledOptimizer`.

  Attributes:
    b1: decay rate of the mean gradient, in [0, 1) (Kingma and Ba 2015, arXiv 1412.6980).
    b2: decay rate of the mean squared gradient, in [0, 1).
    eps: number added to the root of the mean squared gradient to avoid division by 0.
    weight_decay: decoupled weight decay (Loshchilov and Hutter 2019).
    decay: parameters with weight decay: `kernels`, arrays of two or more axes; `non_bias`, all that
      are not named bias, so also scales of norms and a schedule's numbers, as in VDM's program.
      Parameters that are never trained (FIXED) are always excluded.
  """

  b1: float = 0.9
  b2: float = 0.999
  eps: float = 1e-8
  weight_decay: float = 0.0
  decay: Literal["kernels", "non_bias"] = "kernels"

  def __post_init__(self):
    super().__post_init__()
    if self.eps <= 0:
      raise ValueError(f"eps={self.eps} must be positive")
    if not (0 <= self.b1 < 1 and 0 <= self.b2 < 1):
      raise ValueError(f"b1={self.b1}, b2={self.b2} must be at least 0 and below 1")
    if self.weight_decay < 0:
      raise ValueError(f"weight_decay={self.weight_decay} must not be negative")

  def rates(self, num_steps: int) -> Rates:
    """Return the numbers of the schedule and clipping, and weight_decay."""
    decay = np.asarray(self.weight_decay, np.float32)
    return {**super().rates(num_steps), "weight_decay": decay}

  def create(self, num_steps: int, rates: Rates | None = None) -> optax.GradientTransformation:
    """Return the update rule without clipping, which the step does since it has the norm.

    Args:
      num_steps: length of the run.
      rates: `rates(num_steps)` as traced arguments of a compiled step; None: as constants.
    """
    rates = self.rates(num_steps) if rates is None else rates
    decay = optax.add_decayed_weights(rates["weight_decay"], mask=self.decayed)
    return optax.chain(
      optax.scale_by_adam(self.b1, self.b2, self.eps),
      decay,  # also for weight 0, so that the state's structure does not depend on the weight
      optax.scale_by_learning_rate(self.rate(num_steps, rates)),
    )

  def decayed(self, params: Params) -> Any:
    """Return a tree of booleans: True for parameters with weight decay."""

    def decays(path: Any, leaf: Any) -> bool:
      name = _own_name(path)
      if name in FIXED:
        return False
      if self.decay == "non_bias":
        return name != "bias"
      return len(shape_of_layer(_whole_name(path), leaf.shape)) > 1

    return jax.tree_util.tree_map_with_path(decays, params)


def update_rule(
  optimizer: Optimizer, num_steps: int, rates: Rates | None = None
) -> optax.GradientTransformation:
  """Return an optimizer's update rule; arguments as in `Optimizer.create`.

  Raises:
    ValueError: `create` returned something else.
  """
  rule = optimizer.create(num_steps, rates)
  if not isinstance(rule, optax.GradientTransformation):
    raise ValueError(
      f"{type(optimizer).__name__}.create returned {describe_value(rule)}; needed an "
      "optax.GradientTransformation"
    )
  return rule


def apply_updates(params: Params, updates: Params) -> Params:
  """Return the parameters with an optimizer's updates added, except to those named in FIXED.

  The gradient of those is zero, but weight decay, noise or a rule of another package would change
  them.
  """
  moved = optax.apply_updates(params, updates)
  choose = lambda path, old, new: old if _own_name(path) in FIXED else new  # noqa: E731
  return jax.tree_util.tree_map_with_path(choose, params, moved)


def _own_name(path: Any) -> str:
  """Return the last name of a parameter's path."""
  return _whole_name(path).rpartition("/")[2]


def _whole_name(path: Any) -> str:
  return jax.tree_util.keystr(path, simple=True, separator="/")


OPTIMIZERS = Registry(
  "optimizer",
  Optimizer,
  {"adam": Adam},
  setting_facts=HOW_IT_RUNS,
  base=ScheduledOptimizer,
)
