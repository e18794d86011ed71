"""Bits/dim estimators, the loss by log-SNR, and baselines to compare with.

An estimator is a config dataclass in the section of its name, see `base.Likelihood`; a VAE's "elbo"
needs no options and is always present.
"""

from diffusion_jax.core.registry import Registry
from diffusion_jax.core.settings import Facts
from diffusion_jax.likelihood.base import (
  DescribedBase,
  DescribedLikelihood,
  Likelihood,
  LikelihoodBase,
  VAELikelihood,
)
from diffusion_jax.likelihood.baseline import (
  independent_binary_bits,
  independent_pixel_bits,
  pixel_histogram,
)
from diffusion_jax.likelihood.continuous_bound import ContinuousBound
from diffusion_jax.likelihood.importance import ImportanceWeighted
from diffusion_jax.likelihood.loss_by_log_snr import Spectrum
from diffusion_jax.likelihood.probability_flow import ProbabilityFlow
from diffusion_jax.likelihood.variational_bound import VariationalBound

DIFFUSION_LIKELIHOODS = Registry(
  "likelihood",
  Likelihood,
  {
    "vlb": VariationalBound,
    "continuous_vlb": ContinuousBound,
    "probability_flow": ProbabilityFlow,
  },
  setting_facts=Facts(may_change=True, affects_samples=False),
  base=LikelihoodBase,
)
"""Likelihoods of diffusion models by the name of their config section."""
VAE_LIKELIHOODS = Registry(
  "vae_likelihood",
  VAELikelihood,
  {"iwae": ImportanceWeighted},
  setting_facts=Facts(may_change=True, affects_samples=False),
  base=DescribedBase,
)
"""Likelihoods of VAEs by the name of their config section."""

__all__ = [
  "DIFFUSION_LIKELIHOODS",
  "VAE_LIKELIHOODS",
  "ContinuousBound",
  "DescribedBase",
  "DescribedLikelihood",
  "ImportanceWeighted",
  "Likelihood",
  "LikelihoodBase",
  "ProbabilityFlow",
  "Spectrum",
  "VAELikelihood",
  "VariationalBound",
  "independent_binary_bits",
  "independent_pixel_bits",
  "pixel_histogram",
]


def __dir__() -> list[str]:
  """Return the public names, for completion."""
  return sorted(__all__)
