"""Contracts of likelihood estimators, and a base class with their defaults."""

import dataclasses
from collections.abc import Callable
from typing import Protocol, runtime_checkable

from jaxtyping import Array, Float

from diffusion_jax.core.parts import Part
from diffusion_jax.processes import Denoiser, Process, check_inputs
from diffusion_jax.types import Estimate, Examples, Keys

LIKELIHOOD_CARD = 2.0
"""Position of the first likelihood among the cards of the report."""


@runtime_checkable
class DescribedLikelihood(Protocol):
  """Name, description and report card of an estimator."""

  @property
  def figure_name(self) -> str:
    """Name of its value in metrics.json, a string."""
    ...

  @property
  def description(self) -> str:
    """Description for the report, e.g. "importance-weighted bound"; empty: its name alone."""
    ...

  @property
  def card(self) -> float:
    """Position among the cards at the top of the report, as a metric's; 0: no card.

    Only the first likelihood with a card is shown there.
    """
    ...


@runtime_checkable
class Likelihood(DescribedLikelihood, Protocol):
  """An estimator of a diffusion model's bits/dim; `LikelihoodBase` has defaults."""

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
class DescribedBase(Part):
  """Defaults of an estimator's description: the name alone, on a card."""

  description = ""
  card = LIKELIHOOD_CARD


@dataclasses.dataclass(frozen=True)
class LikelihoodBase(DescribedBase):
  """Defaults of an estimator: an upper bound on every process."""

  estimates = "upper_bound"

  def serves(self, process: Process) -> bool:
    """Return True: every process."""
    del process
    return True

  def check(self, model: Denoiser, examples: Examples, keys: Keys, needed: str) -> None:
    """Check the arguments of `estimate`.

    Args:
      model, examples, keys: its arguments.
      needed: words for the process that it serves, and what to take for others.

    Raises:
      ValueError: an argument is of another kind, or it does not serve the process.
    """
    check_inputs(model, examples, keys)
    if not self.serves(model.process):
      raise ValueError(f"process={model.process}: {type(self).__name__} needs {needed}")


@runtime_checkable
class VAELikelihood(DescribedLikelihood, Protocol):
  """An estimator of a VAE's bits/dim from weights p(x, z) / q(z | x); see `DescribedBase`."""

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
