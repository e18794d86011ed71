"""What a training run carries from step to step: parameters, optimizer, EMA and counters."""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from diffusion_jax.types import Aux, Params


class TrainState(NamedTuple):
  """One atomic unit; all floats are float32.

  Attributes:
    step: batches consumed so far, the skipped ones included.
    params: trained parameters.
    opt_state: of the optimizer.
    ema: average of the parameters, used to sample and evaluate.
    aux: state that the loss carries.
    num_skipped: updates skipped for a non-finite loss or gradient.
    num_skipped_in_a_row: the same since the last good update.
  """

  step: Int[Array, ""]
  params: Params
  opt_state: Any
  ema: Params
  aux: Aux
  num_skipped: Int[Array, ""]
  num_skipped_in_a_row: Int[Array, ""]


@dataclasses.dataclass(frozen=True)
class Adam:
  """Adam with linear warm-up, a schedule and a gradient clip.

  Attributes:
    learning_rate: after the warm-up.
    b1, b2, eps: of Kingma and Ba 2015 (arXiv 1412.6980).
    weight_decay: decoupled (Loshchilov and Hutter 2019), on arrays of two or more axes.
    warmup_steps: the rate rises linearly from 0 over so many updates.
    schedule: what follows: constant, or down to 0 along a line or half a cosine.
    decay_steps: the update at which a falling schedule reaches 0; none: the run's last.
    clip_norm: largest global norm of a gradient; none: no clipping.
    clip_scope: `global` clips the batch's gradient; `microbatch` clips each of
      training.accumulation_steps parts before they are averaged, as the original DDPM did on
      each of its 8 replicas.
  """

  learning_rate: float = 2e-4
  b1: float = 0.9
  b2: float = 0.999
  eps: float = 1e-8
  weight_decay: float = 0.0
  warmup_steps: int = 0
  schedule: Literal["constant", "cosine", "linear"] = "constant"
  decay_steps: int | None = None
  clip_norm: float | None = 1.0
  clip_scope: Literal["global", "microbatch"] = "global"

  def __post_init__(self):
    if self.learning_rate <= 0 or self.eps <= 0:
      raise ValueError(f"learning_rate={self.learning_rate}, eps={self.eps} must be positive")
    if not (0 <= self.b1 < 1 and 0 <= self.b2 < 1):
      raise ValueError(f"b1={self.b1}, b2={self.b2} must be at least 0 and below 1")
    if self.weight_decay < 0 or self.warmup_steps < 0:
      raise ValueError("weight_decay and warmup_steps must not be negative")
    if self.clip_norm is not None and self.clip_norm <= 0:
      raise ValueError(f"clip_norm={self.clip_norm} must be positive, or none")
    if self.decay_steps is not None and self.decay_steps <= self.warmup_steps:
      raise ValueError(f"decay_steps={self.decay_steps} must exceed the warm-up")

  def rate(self, num_steps: int) -> optax.Schedule:
    """Learning rate by number of updates made, for a run of `num_steps`."""
    decay = max((self.decay_steps or num_steps) - self.warmup_steps, 1)
    after = {
      "constant": optax.constant_schedule(self.learning_rate),
      "linear": optax.linear_schedule(self.learning_rate, 0.0, decay),
      "cosine": optax.cosine_decay_schedule(self.learning_rate, decay),
    }[self.schedule]
    if not self.warmup_steps:
      return after
    warmup = optax.linear_schedule(0.0, self.learning_rate, self.warmup_steps)
    return optax.join_schedules([warmup, after], [self.warmup_steps])

  def create(self, num_steps: int) -> optax.GradientTransformation:
    """The update rule, without the clip: the step has the norm at hand and clips."""
    decay = optax.add_decayed_weights(
      self.weight_decay, mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params)
    )
    return optax.chain(
      optax.scale_by_adam(self.b1, self.b2, self.eps),
      decay,  # with a weight of 0 too: its state must not depend on it, or no run could change it
      optax.scale_by_learning_rate(self.rate(num_steps)),
    )


OPTIMIZERS = {"adam": Adam}


@dataclasses.dataclass(frozen=True)
class EMA:
  """Exponential moving average of the parameters, one update a step.

  Attributes:
    decay: weight of the past.
    warmup: start shorter: min(decay, (1 + step) / (10 + step)), so that a short run's average
      forgets the initial parameters.
  """

  decay: float = 0.9999
  warmup: bool = False

  def __post_init__(self):
    if not 0 <= self.decay < 1:
      raise ValueError(f"decay={self.decay} must be at least 0 and below 1")

  def update(self, ema: Params, params: Params, step: Int[Array, ""]) -> Params:
    """The average after the update that `step` earlier updates preceded."""
    decay = self.decay_at(step)
    return jax.tree.map(lambda e, p: decay * e + (1.0 - decay) * p, ema, params)

  def decay_at(self, step: Int[Array, ""]) -> Float[Array, ""]:
    if not self.warmup:
      return jnp.float32(self.decay)
    return jnp.minimum(self.decay, (1.0 + step) / (10.0 + step)).astype(jnp.float32)


def create_state(params: Params, aux: Aux, optimizer: optax.GradientTransformation) -> TrainState:
  """The state before the first step; the average starts at the initial parameters."""
  return TrainState(
    step=jnp.int32(0),
    params=params,
    opt_state=optimizer.init(params),
    ema=jax.tree.map(jnp.copy, params),
    aux=aux,
    num_skipped=jnp.int32(0),
    num_skipped_in_a_row=jnp.int32(0),
  )


def count_parameters(params: Params) -> int:
  """Number of trained numbers."""
  return sum(leaf.size for leaf in jax.tree.leaves(params))
