"""The evidence lower bound of a VAE, ELBO = E_q[log p(x|z)] - KL(q(z|x) || p(z)).

The prior is p(z) = N(0, I).
Since log p(x) = ELBO + KL(q(z|x) || p(z|x)), minus the ELBO bounds the negative log-likelihood
from above. Kingma and Welling 2014 (arXiv 1312.6114).
"""

import dataclasses
from typing import NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.core import distributions
from diffusion_jax.core.parts import Part


class ElboTerms(NamedTuple):
  """Parts of the negative ELBO, in nats per example.

  Attributes:
    reconstruction: -E_q[log p(x|z)], from one z.
    kl: KL(q(z|x) || p(z)) of each latent dimension, exact.
  """

  reconstruction: Float[Array, "B"]
  kl: Float[Array, "B D"]

  @property
  def negative_elbo(self) -> Float[Array, "B"]:
    return self.reconstruction + jnp.sum(self.kl, axis=-1)


def elbo_terms(
  log_prob: Float[Array, "B"], mean: Float[Array, "B D"], log_var: Float[Array, "B D"]
) -> ElboTerms:
  """Return the terms for log p(x|z) of one z ~ N(mean, exp(log_var)) per example."""
  return ElboTerms(-log_prob, distributions.gaussian_kl(mean, log_var, 0.0, 0.0))


@runtime_checkable
class VAELoss(Protocol):
  """The loss of a VAE, computed from the two terms of its ELBO."""

  @property
  def needs_mean_kl(self) -> bool:
    """True if an example's loss depends on the KL of the other examples in its batch."""
    ...

  def __call__(
    self, terms: ElboTerms, mask: Float[Array, "B"], mean_kl: Float[Array, "D"] | None = None
  ) -> Float[Array, "B"]:
    """A method: (terms, mask [B], mean KL [D] or None) -> loss of each example in nats."""
    ...


@dataclasses.dataclass(frozen=True)
class ELBO(Part):
  """The negative ELBO with a weight on the KL and free bits.

  Attributes:
    beta: weight of the KL (Higgins et al. 2017); 1 is the bound itself.
    free_bits: nats per latent dimension without cost: its KL, averaged over the batch, counts as at
      least this value (Kingma et al. 2016, arXiv 1606.04934, equation 15).
  """

  beta: float = 1.0
  free_bits: float = 0.0

  def __post_init__(self):
    if self.beta < 0 or self.free_bits < 0:
      raise ValueError(f"beta={self.beta}, free_bits={self.free_bits} must not be negative")

  @property
  def needs_mean_kl(self) -> bool:
    """True if free bits make an example's loss depend on the other examples in its batch."""
    return self.free_bits > 0

  def __call__(
    self, terms: ElboTerms, mask: Float[Array, "B"], mean_kl: Float[Array, "D"] | None = None
  ) -> Float[Array, "B"]:
    """Return the loss of each example in nats; its mean over the masked batch is the objective.

    Args:
      terms: ELBO terms of the examples.
      mask: 1 for an example, 0 for padding.
      mean_kl: mean KL of each latent dimension over the whole batch, if these examples are a part
        of it; None: they are the whole batch.
    """
    average = mean_kl
    if average is None:
      average = jnp.sum(terms.kl * mask[:, None], axis=0) / jnp.maximum(jnp.sum(mask), 1.0)
    kl = jnp.where(average > self.free_bits, terms.kl, self.free_bits)
    return terms.reconstruction + self.beta * jnp.sum(kl, axis=-1)
