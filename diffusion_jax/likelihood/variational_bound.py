"""The variational bound of a discrete diffusion model, with all of its T terms.

-log p(x0) <= KL(q(x_T | x0) || N(0, I))                                           prior
              + sum_{t=2..T} KL(q(x_{t-1} | x_t, x0) || p(x_{t-1} | x_t))          denoising
              - log p(x0 | x_1)                                                    reconstruction

Source: Ho et al. 2020 (arXiv 2006.11239), equations 5 to 8; the terms are in `processes.posterior`.
"""

import dataclasses
import math
from typing import Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffusion_jax.core import distributions, rng
from diffusion_jax.core.broadcasting import sum_dims
from diffusion_jax.core.rng import Stream
from diffusion_jax.likelihood.base import LikelihoodBase
from diffusion_jax.processes import (
  Data,
  Denoiser,
  DiscreteVP,
  Process,
  ReverseSteps,
  State,
  decoder_log_prob,
  divergence,
  log_ratio,
  prior_kl,
  reverse_steps,
)
from diffusion_jax.types import Estimate, Examples, Keys

Variance = Literal["fixed_large", "fixed_small", "learned"]


class _Scanned(NamedTuple):
  """Result of the scan over the steps: the last estimate and log variance, and the KLs."""

  estimate: Data
  log_var: Data
  divergences: Float[Array, "B T"]


@dataclasses.dataclass(frozen=True)
class VariationalBound(LikelihoodBase):
  """The bound with one noise draw per term, for the network without guidance.

  The last step has no posterior variance to copy. For t = 1, the fixed variances and the small one
  of `learned` use the posterior variance of t = 2 (Nichol and Dhariwal 2021, arXiv 2102.09672,
  their code).

  Attributes:
    variance: variance of p(x_{t-1} | x_t): beta_t (fixed_large); the smaller one of q(x_{t-1} |
      x_t, x0) (fixed_small); between the two by the network's output, per dimension (learned);
      auto: learned if the network gives variances, else fixed_large.
    clip: clip each x0 estimate to [-1, 1], as for the published values.
    cdf: integral of a Gaussian over a pixel level in the decoder at t = 1: exact, or the tanh
      approximation with a floor of 1e-12, as for the published values. With the floor the value is
      below the bound if a pixel is predicted very badly.
  """

  variance: Literal["auto", "fixed_large", "fixed_small", "learned"] = "auto"
  clip: bool = True
  cdf: Literal["exact", "tanh"] = "exact"

  description = "variational bound of the diffusion model"

  @property
  def figure_name(self) -> str:
    """Return "vlb"."""
    return "vlb"

  def serves(self, process: Process) -> bool:
    """Return True for processes with steps."""
    return process.num_timesteps is not None

  def variance_of(self, model: Denoiser) -> Variance:
    """Return the kind of variance for a model, with `auto` resolved by its network.

    Raises:
      ValueError: learned variances, but the network gives none.
    """
    if self.variance == "auto":
      return "learned" if model.learned_variance else "fixed_large"
    if self.variance == "learned" and not model.learned_variance:
      raise ValueError("variance='learned' needs a model with learned_variance=True")
    return self.variance

  def variances(self, process: DiscreteVP) -> Float[np.ndarray, "T"]:
    """Return the fixed variance of p(x_{t-1} | x_t) for t = 1..T, float64."""
    steps = reverse_steps(process)
    small = np.exp(steps.log_small)
    if self.variance == "fixed_small":
      return small
    return np.append(small[0], np.exp(steps.log_small + steps.width)[1:])

  def steps(self, process: DiscreteVP) -> ReverseSteps:
    """Return the coefficients of every term, float64."""
    return reverse_steps(process)

  def estimate(self, model: Denoiser, examples: Examples, keys: Keys) -> Estimate:
    """Return the bound of each example in bits/dim, from T network evaluations.

    Args:
      model, examples: as in `Likelihood`, on a process with steps.
      keys: one per example; the noise of term t uses the t-th key of its stream TERMS.

    Returns:
      bits_per_dim [B] and its terms "prior", "denoising" and "reconstruction" [B]; and "curve"
      [B T], whose entry t - 1 is the term of step t: the reconstruction, then the KLs.

    Raises:
      ValueError: learned variances, but the network gives none.
    """
    self.check(model, examples, keys, "a process with steps; use ContinuousBound")
    x0, num_dims = examples.x0, math.prod(examples.x0.shape[1:])
    last = self._scan(model, examples, keys)
    decoded = decoder_log_prob(x0, last.estimate, last.log_var, examples.num_levels, self.cdf)
    reconstruction = -sum_dims(decoded)
    divergences = last.divergences[:, 1:]
    nats = {
      "prior": prior_kl(cast(DiscreteVP, model.process), x0),
      "denoising": jnp.sum(divergences, axis=1),
      "reconstruction": reconstruction,
    }
    total = sum(nats.values(), start=jnp.zeros(len(x0)))
    nats["curve"] = jnp.concatenate([reconstruction[:, None], divergences], axis=1)
    bits = {n: distributions.nats_to_bits_per_dim(v, num_dims) for n, v in nats.items()}
    return Estimate(distributions.nats_to_bits_per_dim(total, num_dims), bits)

  def _scan(self, model: Denoiser, examples: Examples, keys: Keys) -> _Scanned:
    """Run one scan from T down to 1, whose last carry is that of t = 1."""
    process, x0 = cast(DiscreteVP, model.process), examples.x0
    steps, num_steps = self.steps(process), process.num_timesteps
    learned = self.variance_of(model) == "learned"
    # log(variance / small) of each step, if it is fixed
    ratios = np.zeros(num_steps) if learned else np.log(self.variances(process)) - steps.log_small
    terms = rng.stream(keys, Stream.TERMS)

    def step(_, row):
      t_index, at, ratio = row
      z = rng.normal(rng.numbered(terms, t_index), x0.shape[1:])
      t = jnp.full(len(x0), t_index / num_steps)
      noised = State(t, at.alpha, at.sigma, at.alpha * x0 + at.sigma * z)
      predicted = model.predict(noised, examples.condition)
      if learned:
        ratio = log_ratio(predicted.variance_logits, at.width)
      estimate = jnp.clip(predicted.x0, -1.0, 1.0) if self.clip else predicted.x0
      nats = sum_dims(divergence(at, ratio, x0, estimate))
      return (estimate, jnp.broadcast_to(at.log_small + ratio, x0.shape)), nats

    per_step = jax.tree.map(lambda c: jnp.asarray(c, jnp.float32), (steps, ratios))
    start = jnp.zeros_like(x0), jnp.zeros_like(x0)
    (estimate, log_var), nats = jax.lax.scan(
      step, start, (jnp.arange(1, num_steps + 1), *per_step), reverse=True
    )
    return _Scanned(estimate, log_var, nats.T)
