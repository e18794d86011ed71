"""Learned noise schedules: rising functions gamma(t) of trained parameters.

gamma is minus the log-SNR: alpha^2 = sigmoid(-gamma), sigma^2 = sigmoid(gamma). Source: Kingma et
al. 2021 (arXiv 2107.00630), section 3.1 and appendix H.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.processes import Learned, LearnedSchedule
from diffusion_jax.types import Key, Params


@dataclasses.dataclass(frozen=True)
class LearnedLinear(LearnedSchedule):
  """A learned schedule of two numbers: minus the log-SNR is b + |w| t."""

  def init(self, key: Key) -> Params:
    """Return b and w."""
    del key
    return _ends(self.gamma_min, self.gamma_max)

  def gamma(self, params: Params, t: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return b + |w| t."""
    return params["b"] + jnp.abs(params["w"]) * t


@dataclasses.dataclass(frozen=True)
class LearnedMonotone(LearnedSchedule):
  """A network of positive weights between two ends, which are trained too.

  gamma(t) = b + |w| (g(t) - g(0)) / (g(1) - g(0)) with g(t) = l1(t) + l3(sigmoid(l2(l1(t)))) of
  linear layers whose weights are the absolute values of parameters. The paper leaves the initial
  weights open: here the sigmoids' steps are spread evenly over [0, 1] and have random heights. The
  gradients of the layers are large beside the network's: train without optimizer.clip_norm.

  Attributes:
    width: number of hidden units of the schedule's network.
  """

  width: int = 1024

  def __post_init__(self):
    super().__post_init__()
    if self.width < 1:
      raise ValueError(f"width={self.width} must be at least 1")

  def init(self, key: Key) -> Params:
    """Return the ends and the layers."""
    steepness = jnp.full((self.width,), STEEPNESS, jnp.float32)
    centers = (jnp.arange(self.width) + 0.5) / self.width
    return {
      **_ends(self.gamma_min, self.gamma_max),
      "l1": {"weight": jnp.ones(()), "bias": jnp.zeros(())},
      "l2": {"weight": steepness, "bias": -steepness * centers},
      "l3": {"weight": jax.random.normal(key, (self.width,)) / self.width},
    }

  def gamma(self, params: Params, t: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return gamma(t) with gradients to the ends alone, which the variational bound trains."""
    endpoints = {name: params[name] for name in ENDS}
    return _monotone(jax.lax.stop_gradient(params) | endpoints, t)

  def interior_gamma(self, params: Params, t: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return gamma(t) with gradients to all but the ends."""
    endpoints = {name: jax.lax.stop_gradient(params[name]) for name in ENDS}
    return _monotone(params | endpoints, t)

  def bind(self, params: Params) -> Learned:
    """Return the process for these parameters, whose interior is trained too."""
    interior = functools.partial(self.interior_gamma, params)
    return dataclasses.replace(super().bind(params), interior=interior)


STEEPNESS = 10.0
"""Initial slope of the sigmoids' arguments: each rises over about a fifth of [0, 1]."""


ENDS = ("b", "w")


def _monotone(params: Params, t: Float[Array, "..."]) -> Float[Array, "..."]:
  start, end = (_rising(params, jnp.asarray(end, jnp.float32)) for end in (0.0, 1.0))
  fraction = (_rising(params, jnp.asarray(t)) - start) / (end - start)
  return params["b"] + jnp.abs(params["w"]) * fraction


def _rising(params: Params, t: Float[Array, "..."]) -> Float[Array, "..."]:
  """g(t); every weight counts by its absolute value, so g rises at least as fast as l1."""
  l1, l2, l3 = (params[name] for name in ("l1", "l2", "l3"))
  h = jnp.abs(l1["weight"]) * t + l1["bias"]
  steps = jax.nn.sigmoid(h[..., None] * jnp.abs(l2["weight"]) + l2["bias"])
  return h + jnp.sum(steps * jnp.abs(l3["weight"]), axis=-1)


def _ends(gamma_min: float, gamma_max: float) -> dict[str, Array]:
  return {
    "b": jnp.asarray(gamma_min, jnp.float32),
    "w": jnp.asarray(gamma_max - gamma_min, jnp.float32),
  }
