"""Losses that learn the variances of the steps: the hybrid loss and the full bound.

The logarithm of a step's variance is between those of the smallest and the largest, as the network
gives it per dimension; see `processes.log_ratio`. Source: Nichol and Dhariwal 2021 (arXiv
2102.09672).
"""

import dataclasses
import math
from typing import Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffusion_jax.core import distributions, rng
from diffusion_jax.core.broadcasting import mean_dims
from diffusion_jax.core.rng import Stream
from diffusion_jax.losses import loss_aware_times
from diffusion_jax.losses.base import (
  LossBase,
  LossState,
  Values,
  batch_position,
)
from diffusion_jax.processes import (
  Denoiser,
  DiscreteVP,
  Noised,
  Predicted,
  Process,
  bound_term,
  check_inputs,
  prior_kl,
  reverse_steps,
)
from diffusion_jax.types import EMPTY, Examples, Key, Keys, LossOutput, Params

Steps = Int[Array, "B"]
"""Step t of 1..T per example."""


class _Evaluated(NamedTuple):
  """Examples at their steps, with the network's output."""

  step: Steps
  noised: Noised
  predicted: Predicted
  logits: Float[Array, "B ..."]


def _evaluate(
  model: Denoiser, examples: Examples, keys: Keys, step: Steps, dropout_key: Key | None
) -> _Evaluated:
  """Evaluate the network at x_t of the given steps, with the noise of `Simple`."""
  eps = rng.normal(rng.stream(keys, Stream.NOISE), examples.x0.shape[1:])
  noised = model.noised(examples.x0, step / _num_timesteps(model.process), eps)
  predicted = model.predict(noised, examples.condition, dropout_key)
  if predicted.variance_logits is None:
    raise ValueError("learned_variance=False: this loss trains variances that the network gives")
  return _Evaluated(step, noised, predicted, predicted.variance_logits)


def _num_timesteps(process: Process) -> int:
  if process.num_timesteps is None:
    raise ValueError(f"process={process}: this loss trains variances of steps, and it has no steps")
  return process.num_timesteps


def _uniform_step(process: Process, quantile: Values) -> Steps:
  """Return t of 1..T, each with equal probability."""
  return jnp.round(process.time_at(quantile) * _num_timesteps(process)).astype(jnp.int32)


def _bound_term(
  model: Denoiser, examples: Examples, at: _Evaluated, estimate: Float[Array, "B ..."]
) -> Values:
  """Return the bound's term at each example's step for an x0 estimate, in bits/dim."""
  steps = reverse_steps(cast(DiscreteVP, model.process))
  args = steps, at.step, examples.x0, estimate, at.logits, examples.num_levels
  return _bits(bound_term(*args), examples)


def _prior(model: Denoiser, examples: Examples) -> Values:
  return _bits(prior_kl(cast(DiscreteVP, model.process), examples.x0), examples)


def _bits(nats: Values, examples: Examples) -> Values:
  return distributions.nats_to_bits_per_dim(nats, math.prod(examples.x0.shape[1:]))


@dataclasses.dataclass(frozen=True)
class Hybrid(LossBase):
  """L_simple + weight * L_vlb, where L_vlb trains only the variances.

  L_simple is the loss `simple`, a mean over dimensions. L_vlb is the full bound in bits/dim,
  estimated as T times the term of one uniform t per image; its gradient stops at the x0 estimate.
  With weight 0.001 this is the L_hybrid of Nichol and Dhariwal 2021 (arXiv 2102.09672),
  equation 16, in the scale of their code's RESCALED_MSE, which multiplies a term by T / 1000.

  Attributes:
    weight: weight of the bound.
  """

  weight: float = 0.001

  needs_variance = True
  needs_levels = True

  def __post_init__(self):
    if self.weight <= 0:
      raise ValueError(
        f"weight={self.weight} must be positive, e.g. 0.001; without it nothing trains variances"
      )

  def __call__(
    self,
    model: Denoiser,
    examples: Examples,
    keys: Keys,
    *,
    average: Denoiser | None = None,
    state: LossState = EMPTY,
    loss_params: Params = EMPTY,
    dropout_key: Key | None = None,
  ) -> LossOutput:
    """Return the loss; its metrics are "simple" and "vlb_bits_per_dim", the full bound."""
    del average, loss_params
    check_inputs(model, examples, keys)
    step = _uniform_step(model.process, rng.uniform(rng.stream(keys, Stream.TIME)))
    at = _evaluate(model, examples, keys, step, dropout_key)
    term = _bound_term(model, examples, at, jax.lax.stop_gradient(at.predicted.x0))
    bound = _prior(model, examples) + _num_timesteps(model.process) * term
    simple = mean_dims(jnp.square(at.predicted.output - model.target(at.noised)))
    metrics = {"simple": simple, "vlb_bits_per_dim": bound}
    return LossOutput(simple + self.weight * bound, metrics, state)


@dataclasses.dataclass(frozen=True)
class FullBound(LossBase):
  """The variational bound in bits/dim, an unbiased estimate from one t per image.

  prior + L_t / p_t: L_t is the KL of step t (at t = 1 the reconstruction), and p_t the probability
  of drawing t. Estimates of x0 are not clipped. Source: Nichol and Dhariwal 2021 (arXiv
  2102.09672), section 3.3, whose code omits the constant prior term.

  Attributes:
    sampling: distribution of times: `importance`, p_t by the size of earlier L_t, see
      `loss_aware_times`; `uniform`, 1 / T.
  """

  sampling: Literal["importance", "uniform"] = "importance"

  needs_variance = True
  needs_levels = True

  def initial_state(self, process: Process) -> LossState:
    """Return the empty history of terms; {} for uniform t."""
    if self.sampling == "uniform":
      return {}
    return loss_aware_times.empty(_num_timesteps(process))

  def __call__(
    self,
    model: Denoiser,
    examples: Examples,
    keys: Keys,
    *,
    average: Denoiser | None = None,
    state: LossState = EMPTY,
    loss_params: Params = EMPTY,
    dropout_key: Key | None = None,
  ) -> LossOutput:
    """Return the bound of each example in bits/dim; the state is the history of terms."""
    del average, loss_params
    check_inputs(model, examples, keys)
    uniform = rng.uniform(rng.stream(keys, Stream.TIME))
    if self.sampling == "uniform":
      step = _uniform_step(model.process, uniform)
      values, _ = self._bound(
        model, examples, keys, step, 1.0 / _num_timesteps(model.process), dropout_key
      )
      return LossOutput(values, state=state)
    position = batch_position(examples, keys)
    history = loss_aware_times.begin(state or self.initial_state(model.process), position)
    if examples.index is None:  # continue from the end of the history
      position = position._replace(index=position.index + jnp.max(history["age"]))
    drawn = loss_aware_times.draw_times(history["probability"], uniform)
    values, terms = self._bound(model, examples, keys, *drawn, dropout_key)
    if dropout_key is None:
      return LossOutput(values, state=state)
    return LossOutput(
      values, state=loss_aware_times.remember(history, position, drawn.number, terms)
    )

  def _bound(
    self,
    model: Denoiser,
    examples: Examples,
    keys: Keys,
    step: Steps,
    probability: float | Values,
    dropout_key: Key | None,
  ) -> tuple[Values, Values]:
    """Return the bound from one step drawn with its probability, and that step's term."""
    at = _evaluate(model, examples, keys, step, dropout_key)
    term = _bound_term(model, examples, at, at.predicted.x0)
    return _prior(model, examples) + term / probability, term
