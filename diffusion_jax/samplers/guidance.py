"""Guidance of a denoiser away from a worse one: its own without a class, or an inferior model."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from diffusion_jax.processes import Preconditioned, Process, expand, namespace
from diffusion_jax.samplers.linear import Denoise
from diffusion_jax.types import Params

Images = Float[Array, "N H W C"]
Answer = tuple[Images, Images | None]
"""An x0 estimate and its variance logits, None if they are not asked for."""


class Worse(NamedTuple):
  """The inferior model of autoguidance.

  Attributes:
    denoise: (params, xt, t, labels) -> x0 estimate, asked as the good one is.
    params: of it.
  """

  denoise: Callable[..., Images]
  params: Params


@dataclasses.dataclass(frozen=True)
class Guidance:
  """D = D_null + weight (D_label - D_null) on the x0 estimate, before clipping.

  Source: Ho and Salimans 2022 (arXiv 2207.12598); their w is weight - 1. It is the same
  combination for eps, x0 and v, since each is affine in the others at a fixed x_t. With a worse
  model its estimate takes D_null's place: autoguidance, Karras et al. 2024 (arXiv 2406.02507).

  Attributes:
    weight: 1 is off: one network evaluation a step instead of two.
    interval_low, interval_high: noise levels sigma / alpha between which guidance acts, both
      included; None: no upper end. Source: Kynkaanniemi et al. 2024 (arXiv 2404.07724).
    rescale: share in which the guided estimate takes the standard deviation that D_label has over
      an image: 0 off, 0.7 in the paper, which rescales the network's output. Source: Lin et al.
      2024 (arXiv 2305.08891), equations 14 to 16.
    against: what it moves away from: the null class, or an inferior model, which the sampling
      program's --guide_workdir names.
  """

  weight: float = 1.0
  interval_low: float = 0.0
  interval_high: float | None = None
  rescale: float = 0.0
  against: Literal["null_class", "model"] = "null_class"

  def __post_init__(self):
    high = math.inf if self.interval_high is None else self.interval_high
    if not 0 <= self.interval_low < high:
      raise ValueError(
        f"guidance.interval_low={self.interval_low}, interval_high={self.interval_high}: noise "
        "levels sigma / alpha, at least 0 and in that order; interval_high=None has no end"
      )
    if not 0 <= self.rescale <= 1:
      raise ValueError(f"guidance.rescale={self.rescale} must lie between 0 (off) and 1")

  @property
  def num_evaluations(self) -> int:
    """Network evaluations a call of the guided denoiser spends on one image, at the most."""
    return 1 if self.weight == 1.0 else 2

  @property
  def everywhere(self) -> bool:
    """Whether it acts at every noise level."""
    return self.interval_low == 0.0 and self.interval_high is None

  def count(self, process: Process, t: Float[Array | np.ndarray, "R"]) -> int | Array:
    """Network evaluations on one image when all images are asked at these times, one after the
    other: two inside the interval, one outside. Of a learned schedule, as an array."""
    if self.weight == 1.0:
      return len(t)
    num = len(t) + self._acts(process, t).sum()
    return int(num) if namespace(num) is np else num

  def bind(
    self,
    network: Preconditioned,
    params: Params,
    labels: Int[Array, "N"] | None,
    null_label: int | None,
    process: Process | None = None,
    worse: Worse | None = None,
    with_variance: bool = False,
  ) -> Denoise:
    """The denoiser (xt, t) -> x0 for fixed parameters and labels.

    Without a worse model both halves go through the network as one batch of 2 N.

    Args:
      network, params: of the model.
      labels: classes, None for an unconditional model.
      null_label: the class that stands for none.
      process: of the noise levels; needed for an interval.
      worse: guide away from this model instead of from the null class.
      with_variance: the denoiser answers (x0, variance logits); the logits are those of the good
        estimate, as guidance moves means alone.

    Raises:
      ValueError: an interval without a process.
    """
    good: Any = functools.partial(_answer, network, params, labels, with_variance)
    if self.weight == 1.0 or (worse is None and (labels is None or null_label is None)):
      return good if with_variance else lambda xt, t: good(xt, t)[0]
    if not self.everywhere and process is None:
      raise ValueError("a guidance interval needs the process's noise levels: pass process=")

    pair = functools.partial(_pair, network, params, labels, null_label, worse, with_variance)

    def guided(xt, t):
      (best, logits), bad = pair(xt, t)
      both = self._rescaled(bad + self.weight * (best - bad), best)
      inside = (
        both if process is None else jnp.where(expand(self._acts(process, t), xt), both, best)
      )
      return inside, logits

    def in_interval(xt, t):
      assert process is not None
      return jax.lax.cond(self._acts(process, t).any(), guided, good, xt, t)

    found: Any = guided if self.everywhere else in_interval
    return found if with_variance else lambda xt, t: found(xt, t)[0]

  def _acts(self, process: Process, t):
    """Where the noise level lies in the interval, written so that alpha may be 0."""
    alpha, sigma = process.alpha_sigma(t)
    inside = sigma >= self.interval_low * alpha
    return inside if self.interval_high is None else inside & (sigma <= self.interval_high * alpha)

  def _rescaled(self, guided: Images, good: Images) -> Images:
    if self.rescale == 0.0:
      return guided
    spread = good.std((1, 2, 3), keepdims=True) / guided.std((1, 2, 3), keepdims=True)
    return guided * (self.rescale * spread + 1.0 - self.rescale)


def _answer(network, params, labels, with_variance, xt, t) -> Answer:
  """Of the network for these labels."""
  if with_variance:
    return network.denoise_and_variance(params, xt, t, labels)
  return network.denoise(params, xt, t, labels), None


def _pair(
  network, params, labels, null_label, worse, with_variance, xt, t
) -> tuple[Answer, Images]:
  """The good answer, and the estimate to move away from."""
  if worse is not None:
    bad = worse.denoise(worse.params, xt, t, labels)
    return _answer(network, params, labels, with_variance, xt, t), bad
  both = jnp.concatenate([labels, jnp.full_like(labels, null_label)])
  twice = jnp.concatenate([xt, xt]), jnp.concatenate([t, t])
  x0, logits = _answer(network, params, both, with_variance, *twice)
  best, bad = jnp.split(x0, 2)
  return (best, None if logits is None else logits[: len(xt)]), bad
