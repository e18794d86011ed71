"""Guidance of a denoiser away from a worse one: its own without a class, or an inferior model."""

import dataclasses
import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from diffusion_jax.processes import Preconditioned, Process, expand
from diffusion_jax.samplers.linear import Denoise
from diffusion_jax.types import Params

Images = Float[Array, "N H W C"]


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

  def count(self, process: Process, t: Float[np.ndarray, "R"]) -> int:
    """Network evaluations on one image when all images are asked at these times, one after the
    other: two inside the interval, one outside."""
    if self.weight == 1.0:
      return len(t)
    return len(t) + int(np.sum(self._acts(process, np.asarray(t))))

  def bind(
    self,
    network: Preconditioned,
    params: Params,
    labels: Int[Array, "N"] | None,
    null_label: int | None,
    process: Process | None = None,
    worse: Worse | None = None,
  ) -> Denoise:
    """The denoiser (xt, t) -> x0 for fixed parameters and labels.

    Without a worse model both halves go through the network as one batch of 2 N.

    Args:
      network, params: of the model.
      labels: classes, None for an unconditional model.
      null_label: the class that stands for none.
      process: of the noise levels; needed for an interval.
      worse: guide away from this model instead of from the null class.

    Raises:
      ValueError: an interval without a process.
    """
    if self.weight == 1.0 or (worse is None and (labels is None or null_label is None)):
      return lambda xt, t: network.denoise(params, xt, t, labels)
    if not self.everywhere and process is None:
      raise ValueError("a guidance interval needs the process's noise levels: pass process=")

    def guided(xt, t):
      good, bad = _pair(network, params, labels, null_label, worse, xt, t)
      both = self._rescaled(bad + self.weight * (good - bad), good)
      return both if process is None else jnp.where(expand(self._acts(process, t)), both, good)

    def in_interval(xt, t):
      assert process is not None
      good = lambda xt, t: network.denoise(params, xt, t, labels)  # noqa: E731
      return jax.lax.cond(self._acts(process, t).any(), guided, good, xt, t)

    return guided if self.everywhere else in_interval

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


def _pair(network, params, labels, null_label, worse, xt, t) -> tuple[Images, Images]:
  """The good estimate, and the one to move away from."""
  if worse is not None:
    bad = worse.denoise(worse.params, xt, t, labels)
    return network.denoise(params, xt, t, labels), bad
  both = jnp.concatenate([labels, jnp.full_like(labels, null_label)])
  x0 = network.denoise(params, jnp.concatenate([xt, xt]), jnp.concatenate([t, t]), both)
  good, bad = jnp.split(x0, 2)
  return good, bad
