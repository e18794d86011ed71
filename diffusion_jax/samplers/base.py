"""Contract of a sampler, and its defaults.

A config class is the sampler itself: a frozen dataclass of one of three kinds.

  LinearSampler   steps are linear in states, estimates and noise; define
                  `on_grid(process, grid)`, see `linear`; only this kind can run backwards and
                  inpaint, see `editing`
  SamplerBase     own loop; define `sample` and `num_evaluations`
  SamplerBase     adaptive; `num_evaluations` returns None, as in `adaptive`

Each declares its `order` and if it is `stochastic`; the audit measures both.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffusion_jax.core import rng
from diffusion_jax.core.parts import Part
from diffusion_jax.core.shapes import describe_value, float_array
from diffusion_jax.processes import Process
from diffusion_jax.processes.base import check_bindable
from diffusion_jax.types import Key, Keys, Samples

Data = Float[Array, "N ..."]
Denoise = Callable[..., Any]
"""A function (xt, t [N], end_time=None) -> x0 estimate.

For a sampler with needs_variance it returns (x0 estimate, variance logits). Only a sampler with
gives_end_time passes the second time `end_time` [N].
"""


@runtime_checkable
class Sampler(Protocol):
  """Draws examples from noise at t = 1 with a denoiser."""

  @property
  def order(self) -> int:
    """Order p: the error decreases as steps^-p (in distribution, for a stochastic sampler)."""
    ...

  @property
  def stochastic(self) -> bool:
    """True if it draws noise after the initial state."""
    ...

  @property
  def needs_variance(self) -> bool:
    """True if its denoiser must return (x0 estimate, variance logits)."""
    ...

  @property
  def gives_end_time(self) -> bool:
    """True if it gives its denoiser a second time, `end_time`, at each evaluation."""
    ...

  @property
  def clip(self) -> bool:
    """True if it clips each x0 estimate to [-1, 1]."""
    ...

  @property
  def keeps_estimates(self) -> bool:
    """True if `sample` can return its x0 estimates."""
    ...

  def fit(self, gives_variance: bool) -> "Sampler":
    """Return the sampler for a network with or without variances."""
    ...

  def check(self, process: Process) -> None:
    """Raise a ValueError for a process or number of steps that it does not support."""
    ...

  def num_evaluations(self, process: Process) -> int | None:
    """Return the denoiser evaluations per example; None: known only after sampling."""
    ...

  def evaluation_times(self, process: Process) -> Float[Array | np.ndarray, "R"] | None:
    """Return the time of each evaluation; None if the examples do not share these times."""
    ...

  def end_time(self, process: Process) -> Any:
    """Return the time of the final states; None: they are data."""
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
      denoise: (xt, t [N]) -> x0 estimate; with the keyword `end_time` if it `gives_end_time`.
      process: the process of the denoiser.
      key: one key, from which example i uses the i-th, or one key per example [N].
      shape: (N, ...), the number and shape of the examples.
      keep_estimates: also return the x0 estimate of every evaluation, if it `keeps_estimates`.
    """
    ...


@dataclasses.dataclass(frozen=True)
class SamplerBase(Part, abc.ABC):
  """Defaults of a sampler with its own loop, which must define `order` and `stochastic`.

  `initial_states` gives x_1, and `keys_per_example` the keys of its noise.
  """

  needs_variance = False
  gives_end_time = False
  clip = False
  keeps_estimates = False

  def fit(self, gives_variance: bool) -> Sampler:
    """Return itself: it uses no variances."""
    del gives_variance
    return self  # pyright: ignore[reportReturnType]  # order and stochastic are the entry's

  def check(self, process: Process) -> None:
    """Accept every process."""
    del process

  @abc.abstractmethod
  def num_evaluations(self, process: Process) -> int | None:
    """Return the denoiser evaluations per example; None: known only after sampling."""

  def evaluation_times(self, process: Process) -> Float[Array | np.ndarray, "R"] | None:
    """Return None: unknown, so guidance with an interval counts as if it acted everywhere."""
    del process
    return None

  def end_time(self, process: Process) -> Any:
    """Return None: the final states are data."""
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


def checked_shape(shape: Any) -> tuple[int, ...]:
  """Return (N, ...), the number and shape of the examples to draw.

  Raises:
    ValueError: it is anything but a tuple of positive integers.
  """
  given = tuple(shape) if isinstance(shape, tuple | list) else ()
  if not given or any(not isinstance(n, int | np.integer) or n < 1 for n in given):
    raise ValueError(
      f"shape={shape!r}: it must be (N, ...), the number and shape of the examples, e.g. (8, 2)"
    )
  return tuple(int(n) for n in given)


def checked_denoise(denoise: Denoise, needs_variance: bool = False) -> Denoise:
  """Return the denoiser with a check of its results, which get the state's precision.

  Args:
    denoise: (xt, t [N]) -> x0 estimate.
    needs_variance: True if it returns (x0 estimate, variance logits).

  Raises:
    ValueError: it is no function, or a result is no array of floats with the shape of xt; what it
      is, is named.
  """
  if not callable(denoise):
    raise ValueError(f"denoise={denoise!r}: must be a function (xt, t) -> x0 estimate")

  def checked(xt: Data, t: Float[Array, "N"], **options: Any) -> Any:
    result = denoise(xt, t, **options)
    if not needs_variance:
      return float_array(result, xt.shape, "denoise", xt.dtype)
    if not isinstance(result, tuple) or len(result) != 2:
      raise ValueError(
        f"denoise returned {describe_value(result)}; needed (x0 estimate, variance logits)"
      )
    return tuple(float_array(r, xt.shape, "denoise", xt.dtype) for r in result)

  return checked


def checked_samples(samples: Any, shape: tuple[int, ...]) -> Samples:
  """Return what a sampler returned, with images in float32 or wider.

  Args:
    samples: result of `Sampler.sample`.
    shape: shape that was asked for.

  Raises:
    ValueError: it is no `Samples`, or its images have another number, shape or type.
  """
  if not isinstance(samples, Samples):
    raise ValueError(
      f"sampler returned {describe_value(samples)}; needed Samples(images, num_evaluations)"
    )
  return samples._replace(images=float_array(samples.images, shape, "sampler"))


def keys_per_example(key: Key | Keys, num_images: int) -> Keys:
  """Return one key per example.

  Args:
    key: one key, from which example i uses the i-th, or one key per example.
    num_images: number of examples.

  Raises:
    ValueError: the number of keys is neither 1 nor `num_images`, or these are no keys.
  """
  rng.check_typed(key)
  if key.ndim == 0:
    return rng.example_keys(key, jnp.arange(num_images))
  if key.shape != (num_images,):
    raise ValueError(
      f"key has shape {key.shape} and shape[0]={num_images}: give one key, or one per example"
    )
  return key


def initial_states(process: Process, keys: Keys, shape: tuple[int, ...]) -> Data:
  """Return x_1 ~ N(0, prior_std^2) of each example.

  Args:
    process: the process, which gives the standard deviation.
    keys: one per example, see `keys_per_example`.
    shape: shape of one example.
  """
  check_bindable(process)
  return process.prior_std * rng.normal(rng.stream(keys, rng.Stream.START), shape)
