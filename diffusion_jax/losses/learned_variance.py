"""Losses that learn the variances of the steps: the hybrid one and the full variational bound.

A step's variance lies between the smallest and the largest in the logarithm, in each dimension
where the network says; see `processes.log_ratio`. Source: Nichol and Dhariwal 2021 (arXiv
2102.09672).
"""

import dataclasses
import math
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffusion_jax.core import distributions, rng
from diffusion_jax.losses import loss_aware_times
from diffusion_jax.losses.base import Objective
from diffusion_jax.processes import (
  DiscreteVP,
  Preconditioned,
  ReverseSteps,
  bound_term,
  expand,
  prior_kl,
  reverse_steps,
)
from diffusion_jax.types import Keys

Images = Float[Array, "B H W C"]


class _Seen(NamedTuple):
  """What one evaluation of the network at x_t gives."""

  number: Int[Array, "B"]
  x0: Images
  eps: Images
  estimate: Images
  logits: Images


class _Terms(NamedTuple):
  """The bound of one process, a term an image, in bits/dim."""

  process: DiscreteVP
  steps: ReverseSteps
  num_levels: int | None

  @property
  def num_timesteps(self) -> int:
    return self.process.num_timesteps

  def number_at(self, quantile: Float[Array, "B"]) -> Int[Array, "B"]:
    """t of 1..T, each equally often."""
    return jnp.round(self.process.time_at(quantile) * self.num_timesteps).astype(jnp.int32)

  def prior(self, x0: Images) -> Float[Array, "B"]:
    return _bits(prior_kl(self.process, x0), x0)

  def at(self, seen: _Seen, estimate: Images) -> Float[Array, "B"]:
    args = (self.steps, seen.number, seen.x0, estimate, seen.logits, self.num_levels)
    return _bits(bound_term(*args), seen.x0)


def _bits(nats: Float[Array, "B"], x0: Images) -> Float[Array, "B"]:
  return distributions.nats_to_bits_per_dim(nats, math.prod(x0.shape[1:]))


def _evaluate(
  network: Preconditioned,
  process: DiscreteVP,
  params: Any,
  keys: Keys,
  x0: Images,
  labels: Any,
  dropout_key: Any,
  number: Int[Array, "B"],
) -> _Seen:
  """The network at x_t of the given steps, the noise being that of `Simple`."""
  assert network.denoise_and_variance is not None  # the wiring has seen to it
  t = number / process.num_timesteps
  eps = rng.normal(rng.fold_in(keys, 1), x0.shape[1:])
  alpha, sigma = (expand(c, x0) for c in process.alpha_sigma(t))
  xt = alpha * x0 + sigma * eps
  answer = network.denoise_and_variance(params, xt, t, labels, dropout_key)
  return _Seen(number, x0, eps, *answer)


def _simple(network: Preconditioned, process: DiscreteVP, seen: _Seen) -> Float[Array, "B"]:
  """|output - target|^2 / num_dims, as of `Simple`.

  At a fixed x_t every target is linear in (x0, eps), and eps_hat - eps = -(alpha / sigma)
  (x0_hat - x0): the error follows from that of x0, without asking the network twice.
  """
  t = seen.number / process.num_timesteps
  alpha, sigma = (expand(c, seen.x0) for c in process.alpha_sigma(t))
  away = seen.estimate - seen.x0
  error = network.target(away, -alpha / sigma * away, t)
  return jnp.mean(jnp.square(error), axis=(1, 2, 3))


@dataclasses.dataclass(frozen=True)
class Hybrid:
  """L_simple + weight * L_vlb, where L_vlb trains the variances alone.

  L_simple is the loss `simple`, a mean over dimensions. L_vlb is the whole bound in bits/dim,
  estimated from T times the term of one uniform t an image; its gradient stops at the x0 estimate.
  With the weight 0.001 that is the L_hybrid of Nichol and Dhariwal 2021 (arXiv 2102.09672),
  equation 16, in the scale of their code's RESCALED_MSE, which multiplies a term by T / 1000.

  Attributes:
    weight: of the bound.
  """

  weight: float = 0.001

  needs_derivative: ClassVar[bool] = False
  needs_variance: ClassVar[bool] = True
  needs_levels: ClassVar[bool] = True

  def __post_init__(self):
    if self.weight <= 0:
      raise ValueError(
        f"weight={self.weight} must be positive, e.g. 0.001; without it nothing trains variances"
      )

  def objective(self, process: DiscreteVP, num_levels: int | None = None) -> Objective:
    """The loss for a process with steps, and images of so many levels (None: a density)."""
    terms = _Terms(process, reverse_steps(process), num_levels)

    def loss(network, process, params, own, memory, place, keys, x0, labels, dropout_key=None):
      del own, place
      number = terms.number_at(rng.uniform(rng.fold_in(keys, 0)))
      seen = _evaluate(network, process, params, keys, x0, labels, dropout_key, number)
      term = terms.at(seen, jax.lax.stop_gradient(seen.estimate))
      bound = terms.prior(x0) + terms.num_timesteps * term
      simple = _simple(network, process, seen)
      return simple + self.weight * bound, {"simple": simple, "vlb_bits_per_dim": bound}, memory

    return Objective(lambda key: {}, {}, loss)


@dataclasses.dataclass(frozen=True)
class FullBound:
  """The variational bound in bits/dim, an unbiased estimate from one t an image.

  prior + L_t / p_t: L_t is the KL of step t, at t = 1 the reconstruction, and p_t the probability
  with which t was drawn. Estimates of x0 are not clipped. Source: Nichol and Dhariwal 2021 (arXiv
  2102.09672), section 3.3, whose code leaves out the prior's constant.

  Attributes:
    sampling: `importance`: p_t by the size of earlier L_t, in `loss_aware_times`; `uniform`: 1/T.
  """

  sampling: Literal["importance", "uniform"] = "importance"

  needs_derivative: ClassVar[bool] = False
  needs_variance: ClassVar[bool] = True
  needs_levels: ClassVar[bool] = True

  def objective(self, process: DiscreteVP, num_levels: int | None = None) -> Objective:
    """The loss for a process with steps, and images of so many levels (None: a density)."""
    terms = _Terms(process, reverse_steps(process), num_levels)
    important = self.sampling == "importance"

    def loss(network, process, params, own, memory, place, keys, x0, labels, dropout_key=None):
      del own
      uniform = rng.uniform(rng.fold_in(keys, 0))
      begun = loss_aware_times.begin(memory, place) if important else memory
      drawn = _draw(begun, uniform, terms)
      seen = _evaluate(network, process, params, keys, x0, labels, dropout_key, drawn.number)
      term = terms.at(seen, seen.estimate)
      values = terms.prior(x0) + term / drawn.probability
      if dropout_key is None or not important:
        return values, {}, memory
      return values, {}, loss_aware_times.remember(begun, place, drawn.number, term)

    memory = loss_aware_times.empty(terms.num_timesteps) if important else {}
    return Objective(lambda key: {}, memory, loss)


def _draw(memory: Any, uniform: Float[Array, "B"], terms: _Terms) -> loss_aware_times.Drawn:
  if memory:
    return loss_aware_times.draw_times(memory["probability"], uniform)
  probability = jnp.full(len(uniform), 1.0 / terms.num_timesteps)
  return loss_aware_times.Drawn(terms.number_at(uniform), probability)
