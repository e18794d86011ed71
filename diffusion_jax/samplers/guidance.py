"""Guidance of a denoiser away from an unconditional estimate or from another model's."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffusion_jax.core.broadcasting import dims, expand
from diffusion_jax.core.parts import Part
from diffusion_jax.core.settings import Facts
from diffusion_jax.core.shapes import float_array
from diffusion_jax.processes import Data, Denoiser, Predicted, Process, State, namespace
from diffusion_jax.samplers.base import Denoise
from diffusion_jax.types import Condition

GuidingModel = Callable[[Data, Float[Array, "N"], Condition], Data]
"""(xt, t, condition) -> x0 estimate of an inferior model: a `Denoiser.denoise`."""


@dataclasses.dataclass(frozen=True)
class Guidance(Part):
  """D = D_null + weight (D_label - D_null) on the x0 estimate, before clipping.

  Source: Ho and Salimans 2022 (arXiv 2207.12598); their w is weight - 1. It is the same
  combination for eps, x0 and v, since each is affine in the others at a fixed x_t. With a guiding
  model, its estimate replaces D_null: autoguidance, Karras et al. 2024 (arXiv 2406.02507).

  Attributes:
    weight: weight w; 1 is off: one network evaluation per step instead of two.
    interval_low: smallest noise level sigma / alpha at which guidance acts, inclusive.
    interval_high: largest noise level sigma / alpha at which guidance acts, inclusive; none: no
      upper end. Source: Kynkaanniemi et al. 2024 (arXiv 2404.07724).
    rescale: fraction by which the guided estimate takes the standard deviation of D_label over an
      image: 0 off, 0.7 in the paper, which rescales the network's output. Source: Lin et al. 2024
      (arXiv 2305.08891), equations 14 to 16.
    channels: number of the data's first channels that are guided; none: all. DiT and SiT guide
      three of four latent channels for their published figures.
    against: estimate to move away from: the null class, or an inferior model, given by `sample
      --guide_workdir`.
  """

  weight: float = 1.0
  interval_low: float = 0.0
  interval_high: float | None = None
  rescale: float = 0.0
  channels: int | None = None
  against: Literal["null_class", "model"] = "null_class"

  setting_facts: ClassVar[Facts] = Facts(may_change=True)

  def __post_init__(self):
    high = math.inf if self.interval_high is None else self.interval_high
    if not 0 <= self.interval_low < high:
      raise ValueError(
        f"guidance.interval_low={self.interval_low}, interval_high={self.interval_high}: noise "
        "levels sigma / alpha, at least 0 and in that order; interval_high=None has no end"
      )
    if not 0 <= self.rescale <= 1:
      raise ValueError(f"guidance.rescale={self.rescale} must be between 0 (off) and 1")
    if self.channels is not None and self.channels < 1:
      raise ValueError(f"guidance.channels={self.channels} must be at least 1, or none for all")

  @property
  def is_off(self) -> bool:
    """True if it changes nothing, so that one network evaluation per step is enough."""
    return self.weight == 1.0

  @property
  def num_evaluations(self) -> int:
    """Return the maximum number of network evaluations per example in a call of the denoiser."""
    return 1 if self.is_off else 2

  @property
  def everywhere(self) -> bool:
    """True if it acts at every noise level."""
    return self.interval_low == 0.0 and self.interval_high is None

  def count(self, process: Process, t: Float[Array | np.ndarray, "R"]) -> int | Array:
    """Return the network evaluations per example over these times.

    It is two inside the interval and one outside; an array for a learned schedule.
    """
    if self.is_off:
      return len(t)
    evaluations = len(t) + self._acts(process, t).sum()
    return int(evaluations) if namespace(evaluations) is np else evaluations

  def bind(
    self,
    denoiser: Denoiser,
    condition: Condition,
    null_condition: Condition | None = None,
    guiding_model: GuidingModel | None = None,
    with_variance: bool = False,
  ) -> Denoise:
    """Return the denoiser (xt, t, end_time=None) -> x0 for fixed conditions.

    Without a guiding model, both halves go through the network as one batch of 2 N if the two
    conditions have the same members; otherwise one after the other.

    Args:
      denoiser: the model.
      condition: condition of the samples.
      null_condition: the condition to move away from; None: an unconditional model, which only a
        guiding model can guide.
      guiding_model: move away from this model's estimate for `condition` instead.
      with_variance: True returns (x0, variance logits); the logits are those of the model's own
        estimate, since guidance only changes means.
    """

    def own(state: State, end_time: Any) -> Predicted:
      return denoiser.predict(state, _until(condition, end_time))

    def pair(state: State, end_time: Any) -> tuple[Predicted, Data]:
      """Return the model's own prediction, and the estimate to move away from."""
      told = _until(condition, end_time)
      if guiding_model is not None:
        guide = guiding_model(state.xt, state.t, told)
        return own(state, end_time), float_array(guide, state.xt.shape, "guiding_model")
      assert null_condition is not None
      null = _until(null_condition, end_time)
      if jax.tree.structure(told) != jax.tree.structure(null):
        return own(state, end_time), denoiser.predict(state, null).x0
      twice = jax.tree.map(lambda v: jnp.concatenate([v, v]), state)
      conditions = jax.tree.map(lambda *c: jnp.concatenate(c), told, null)
      both, num_images = denoiser.predict(twice, conditions), len(state.xt)
      return jax.tree.map(lambda v: v[:num_images], both), both.x0[num_images:]

    def guided(state: State, end_time: Any) -> Predicted:
      best, bad = pair(state, end_time)
      moved = self._rescaled(bad + self.weight * (best.x0 - bad), best.x0)
      if self.channels is not None:
        is_guided = jnp.arange(moved.shape[-1]) < self.channels
        moved = jnp.where(is_guided, moved, best.x0)
      if not self.everywhere:
        moved = jnp.where(expand(self._acts(denoiser.process, state.t), moved), moved, best.x0)
      return best._replace(x0=moved)

    def in_interval(state: State, end_time: Any) -> Predicted:
      acts = self._acts(denoiser.process, state.t).any()
      return jax.lax.cond(acts, guided, own, state, end_time)

    off = self.is_off or (guiding_model is None and null_condition is None)
    evaluate = own if off else guided if self.everywhere else in_interval

    def denoise(xt: Data, t: Float[Array, "N"], end_time: Any = None) -> Any:
      predicted = evaluate(denoiser.state(xt, t), end_time)
      return (predicted.x0, predicted.variance_logits) if with_variance else predicted.x0

    return denoise

  def _acts(self, process: Process, t):
    """Return True where the noise level is in the interval, in a form that allows alpha = 0."""
    alpha, sigma = process.alpha_sigma(t)
    inside = sigma >= self.interval_low * alpha
    return inside if self.interval_high is None else inside & (sigma <= self.interval_high * alpha)

  def _rescaled(self, guided: Data, good: Data) -> Data:
    if self.rescale == 0.0:
      return guided
    spread = good.std(dims(good), keepdims=True) / guided.std(dims(guided), keepdims=True)
    return guided * (self.rescale * spread + 1.0 - self.rescale)


def _until(condition: Condition, end_time: Any) -> Condition:
  """Return the condition with the second time that a sampler gives, if it gives one."""
  return condition if end_time is None else condition._replace(end_time=end_time)
