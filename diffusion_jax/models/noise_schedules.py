"""Learned noise schedules: rising functions gamma(t) of trained parameters.

gamma is minus the log-SNR: alpha^2 = sigmoid(-gamma), sigma^2 = sigmoid(gamma). Source: Kingma et
al. 2021 (arXiv 2107.00630), section 3.1 and appendix H.
"""

import dataclasses
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.types import Key, Params


class NoiseSchedule(NamedTuple):
  """A learned schedule as pure functions.

  Attributes:
    init: key -> params, a dict of float32 arrays.
    gamma: (params, t of any shape in [0, 1]) -> gamma of that shape; it rises with t. Its gradient
      goes to the ends alone, which the variational bound trains.
    interior: the same numbers, whose gradient goes to what lies between the ends, for a loss that
      has a use for it; None: nothing does.
  """

  init: Callable[[Key], Params]
  gamma: Callable[[Params, Array], Float[Array, "..."]]
  interior: Callable[[Params, Array], Float[Array, "..."]] | None = None


@dataclasses.dataclass(frozen=True)
class LearnedLinear:
  """gamma(t) = b + |w| t.

  Attributes:
    gamma_min: b at the start, minus the log-SNR of t = 0.
    gamma_max: b + |w| at the start.
    image_scale: factor of the images before noise is added: (L - 1) / L puts level k of L at
      2 (k + 1/2) / L - 1 there, as the original does.
  """

  gamma_min: float = -13.3
  gamma_max: float = 5.0
  image_scale: float = 1.0

  learned: ClassVar[bool] = True

  def __post_init__(self):
    _check(self.gamma_min, self.gamma_max, self.image_scale)

  def create(self) -> NoiseSchedule:
    """Builds the pure functions."""

    def init(key: Key) -> Params:
      del key
      return _ends(self.gamma_min, self.gamma_max)

    return NoiseSchedule(init, lambda params, t: params["b"] + jnp.abs(params["w"]) * t)


@dataclasses.dataclass(frozen=True)
class LearnedMonotone:
  """A network of positive weights between two ends, which are trained too.

  gamma(t) = b + |w| (g(t) - g(0)) / (g(1) - g(0)) with g(t) = l1(t) + l3(sigmoid(l2(l1(t)))) of
  linear layers whose weights are the absolute values of parameters. The paper leaves the initial
  weights open: here the sigmoids' steps are spread evenly over [0, 1] and have random heights. The
  gradients of the layers are large beside the network's: train without optimizer.clip_norm.

  Attributes:
    gamma_min: b at the start, minus the log-SNR of t = 0.
    gamma_max: b + |w| at the start, that of t = 1.
    width: outputs of l2.
    image_scale: as of LearnedLinear.
  """

  gamma_min: float = -13.3
  gamma_max: float = 5.0
  width: int = 1024
  image_scale: float = 1.0

  learned: ClassVar[bool] = True

  def __post_init__(self):
    _check(self.gamma_min, self.gamma_max, self.image_scale)
    if self.width < 1:
      raise ValueError(f"width={self.width} must be at least 1")

  def create(self) -> NoiseSchedule:
    """Builds the pure functions."""
    return NoiseSchedule(self._init, _of_the_ends, _of_the_interior)

  def _init(self, key: Key) -> Params:
    steepness = jnp.full((self.width,), STEEPNESS, jnp.float32)
    centers = (jnp.arange(self.width) + 0.5) / self.width
    return {
      **_ends(self.gamma_min, self.gamma_max),
      "l1": {"weight": jnp.ones(()), "bias": jnp.zeros(())},
      "l2": {"weight": steepness, "bias": -steepness * centers},
      "l3": {"weight": jax.random.normal(key, (self.width,)) / self.width},
    }


STEEPNESS = 10.0
"""Initial slope of the sigmoids' arguments: each rises over about a fifth of [0, 1]."""


ENDS = ("b", "w")


def _of_the_ends(params: Params, t: Float[Array, "..."]) -> Float[Array, "..."]:
  return _monotone(jax.lax.stop_gradient(params) | {name: params[name] for name in ENDS}, t)


def _of_the_interior(params: Params, t: Float[Array, "..."]) -> Float[Array, "..."]:
  return _monotone(params | {name: jax.lax.stop_gradient(params[name]) for name in ENDS}, t)


def _monotone(params: Params, t: Float[Array, "..."]) -> Float[Array, "..."]:
  start, end = (_rising(params, jnp.asarray(end, jnp.float32)) for end in (0.0, 1.0))
  share = (_rising(params, jnp.asarray(t)) - start) / (end - start)
  return params["b"] + jnp.abs(params["w"]) * share


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


def _check(gamma_min: float, gamma_max: float, image_scale: float) -> None:
  if gamma_min >= gamma_max:
    raise ValueError(f"gamma_min={gamma_min} must be below gamma_max={gamma_max}")
  if image_scale <= 0:
    raise ValueError(f"image_scale={image_scale} must be positive; 1 leaves images as they are")
