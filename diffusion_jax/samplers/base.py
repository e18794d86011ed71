"""The contract of a sampler, and its defaults.

A config class is the sampler itself: a frozen dataclass of one of three kinds.

  LinearSampler   each state is linear in what is known; give `on_grid(process, grid)`: `linear`;
                  only this kind runs backwards and inpaints: `editing`
  SamplerBase     a loop of its own; give `sample` and `num_evaluations`
  SamplerBase     adaptive; `num_evaluations` returns None, as of `adaptive`

Each kind states its `order` and whether it is `stochastic`, which the audit measures.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffusion_jax.core import rng
from diffusion_jax.processes import Process
from diffusion_jax.types import Key, Keys, Samples

Data = Float[Array, "N ..."]
Denoise = Callable[[Data, Float[Array, "N"]], Any]
"""(xt, t [N]) -> x0 estimate; (x0 estimate, variance logits) for a sampler with needs_variance."""


@runtime_checkable
class Sampler(Protocol):
  """Draws examples by a denoiser from the noise at t = 1."""

  @property
  def order(self) -> int:
    """p: the error falls as steps^-p; in distribution if it draws noise."""
    ...

  @property
  def stochastic(self) -> bool:
    """True if it draws noise after the start."""
    ...

  @property
  def needs_variance(self) -> bool:
    """True if its denoiser must return (x0 estimate, variance logits)."""
    ...

  @property
  def clip(self) -> bool:
    """True if it clips each x0 estimate to [-1, 1]."""
    ...

  @property
  def keeps_estimates(self) -> bool:
    """True if `sample` returns its x0 estimates when asked."""
    ...

  def fit(self, gives_variance: bool) -> "Sampler":
    """Return the sampler for a network that gives variances, or none."""
    ...

  def check(self, process: Process) -> None:
    """Raise ValueError for a process or steps that it cannot serve."""
    ...

  def num_evaluations(self, process: Process) -> int | None:
    """Return the denoiser's evaluations per example; None: known only after sampling."""
    ...

  def evaluation_times(self, process: Process) -> Float[Array | np.ndarray, "R"] | None:
    """Return the time of each evaluation, where all examples share them; None: they do not."""
    ...

  def end_time(self, process: Process) -> Any:
    """Return the time of the returned states; None: they are the data."""
    ...

  def sample(
    self,
    denoise: Denoise,
    process: Process,
    key: Key | Keys,
    shape: tuple[int, ...],
    keep_estimates: bool = False,
  ) -> Samples:
    """Draw examples.

    Args:
      denoise: (xt, t [N]) -> x0 estimate.
      process: the process of the denoiser.
      key: one key, of which example i gets the i-th, or one key per example [N].
      shape: (N, ...): number and shape of the examples.
      keep_estimates: return the x0 estimate of every evaluation too, if it `keeps_estimates`.
    """
    ...


@dataclasses.dataclass(frozen=True)
class SamplerBase(abc.ABC):
  """Defaults of a sampler with a loop of its own, which needs `order`, `stochastic` and the rest.

  `initial_states` gives its x_1, and the keys of its noise.
  """

  needs_variance = False
  clip = False
  keeps_estimates = False

  def fit(self, gives_variance: bool) -> Sampler:
    """Return itself: it takes no variances."""
    del gives_variance
    return self  # pyright: ignore[reportReturnType]  # order and stochastic are the entry's

  def check(self, process: Process) -> None:
    """Accept every process."""
    del process

  @abc.abstractmethod
  def num_evaluations(self, process: Process) -> int | None:
    """Return the denoiser's evaluations per example; None: known only after sampling."""

  def evaluation_times(self, process: Process) -> Float[Array | np.ndarray, "R"] | None:
    """Return None: unknown, so that guidance with an interval counts as if it acted everywhere."""
    del process
    return None

  def end_time(self, process: Process) -> Any:
    """Return None: it ends at the data."""
    del process
    return None

  @abc.abstractmethod
  def sample(
    self,
    denoise: Denoise,
    process: Process,
    key: Key | Keys,
    shape: tuple[int, ...],
    keep_estimates: bool = False,
  ) -> Samples:
    """Draw examples, see `Sampler.sample`."""


def keys_per_example(key: Key | Keys, num: int) -> Keys:
  """Return one key per example.

  Args:
    key: one key, of which example i gets the i-th, or [num] keys.
    num: number of examples.

  Raises:
    ValueError: another number of keys.
  """
  if key.ndim == 0:
    return rng.example_keys(key, jnp.arange(num))
  if key.shape != (num,):
    raise ValueError(
      f"key has shape {key.shape} and shape[0]={num}: give one key, or one per example"
    )
  return key


def initial_states(process: Process, keys: Keys, shape: tuple[int, ...]) -> Data:
  """Return x_1 ~ N(0, prior_std^2) of each example.

  Args:
    process: gives the standard deviation.
    keys: one per example, see `keys_per_example`.
    shape: of one example.
  """
  return process.prior_std * rng.normal(rng.stream(keys, rng.Stream.START), shape)
