"""Contracts of likelihood estimators, and a base class with their defaults."""

import dataclasses
from collections.abc import Callable
from typing import Protocol, runtime_checkable

from jaxtyping import Array, Float

from diffusion_jax.processes import Denoiser, Process
from diffusion_jax.types import Estimate, Examples, Keys


@runtime_checkable
class Likelihood(Protocol):
  """An estimator of a diffusion model's bits/dim; `LikelihoodBase` has defaults."""

  @property
  def figure_name(self) -> str:
    """Name of its value in metrics.json, a string."""
    ...

  @property
  def estimates(self) -> str:
    """ "exact" or "upper_bound": relation of its mean to -log p(x)."""
    ...

  def serves(self, process: Process) -> bool:
    """A method: process -> True if it supports this process."""
    ...

  def estimate(self, model: Denoiser, examples: Examples, keys: Keys) -> Estimate:
    """A method: (model, examples, keys) -> Estimate of each example.

    Args:
      model: the network itself, without guidance, in evaluation mode.
      examples: data, with the condition that the likelihood is given; `num_levels` None makes it a
        density.
      keys: one per example; all its draws derive from it.
    """
    ...


@dataclasses.dataclass(frozen=True)
class LikelihoodBase:
  """Defaults of an estimator: an upper bound on every process."""

  estimates = "upper_bound"

  def serves(self, process: Process) -> bool:
    """Return True: every process."""
    del process
    return True


@runtime_checkable
class VAELikelihood(Protocol):
  """An estimator of a VAE's bits/dim from importance weights p(x, z) / q(z | x)."""

  @property
  def figure_name(self) -> str:
    """Name of its value in metrics.json, a string."""
    ...

  def estimate(
    self, log_weight: Callable[[Keys], Float[Array, "B"]], keys: Keys, num_dims: int
  ) -> Estimate:
    """A method: (log weight, keys, num_dims) -> Estimate of each example.

    Args:
      log_weight: log p(x, z) - log q(z | x) in nats of each example, for one z ~ q(z | x) drawn
        from its key. `jax.vmap` over keys works.
      keys: one per example.
      num_dims: number of dimensions of an example.
    """
    ...
