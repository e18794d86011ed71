"""The variational bound of a discrete diffusion model, every one of its T terms.

-log p(x0) <= KL(q(x_T | x0) || N(0, I))                                           prior
              + sum_{t=2..T} KL(q(x_{t-1} | x_t, x0) || p(x_{t-1} | x_t))          denoising
              - log p(x0 | x_1)                                                    reconstruction

Source: Ho et al. 2020 (arXiv 2006.11239), equations 5 to 8; the terms are in `processes.reverse`.
"""

import dataclasses
import math
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from diffusion_jax.core import distributions, rng
from diffusion_jax.processes import (
  DiscreteVP,
  Preconditioned,
  Process,
  ReverseSteps,
  decoder_log_prob,
  divergence,
  log_ratio,
  prior_kl,
  reverse_steps,
)
from diffusion_jax.types import Estimate, Keys, Params

Images = Float[Array, "B H W C"]
Variance = Literal["fixed_large", "fixed_small", "learned"]


class _Scanned(NamedTuple):
  """What the scan over the steps leaves: the last estimate and log variance, and the KLs."""

  estimate: Images
  log_var: Images
  divergences: Float[Array, "B T"]


@dataclasses.dataclass(frozen=True)
class VariationalBound:
  """The bound with one noise draw a term; of the network itself, without guidance.

  The last step has no posterior to copy its variance from: t = 1 takes the posterior variance of
  t = 2 for the fixed ones, and as the small one of `learned` (Nichol and Dhariwal 2021, arXiv
  2102.09672, their code).

  Attributes:
    variance: of p(x_{t-1} | x_t): beta_t (fixed_large); the smaller one of q(x_{t-1} | x_t, x0)
      (fixed_small); between the two as the network says, in each dimension (learned); auto:
      learned where the network gives variances, else fixed_large.
    clip: clip each x0 estimate to [-1, 1], as the published figures do.
    cdf: how the decoder at t = 1 integrates a Gaussian over a grey level: exactly, or by the tanh
      approximation with a floor of 1e-12 behind the published figures. The floor makes the
      figure smaller than the bound where a pixel is predicted very badly.
  """

  variance: Literal["auto", "fixed_large", "fixed_small", "learned"] = "auto"
  clip: bool = True
  cdf: Literal["exact", "tanh"] = "exact"

  estimates: ClassVar[Literal["exact", "upper_bound"]] = "upper_bound"

  @property
  def figure_name(self) -> str:
    return "vlb"

  def serves(self, process: Process) -> bool:
    """Only processes with steps have this bound."""
    return process.num_timesteps is not None

  def variance_of(self, network: Preconditioned) -> Variance:
    """What `auto` means for a network.

    Raises:
      ValueError: learned variances of a network that gives none.
    """
    gives = network.denoise_and_variance is not None
    if self.variance == "auto":
      return "learned" if gives else "fixed_large"
    if self.variance == "learned" and not gives:
      raise ValueError("vlb.variance=learned needs a network that gives variances")
    return self.variance

  def variances(self, process: DiscreteVP) -> Float[np.ndarray, "T"]:
    """The fixed variance of p(x_{t-1} | x_t) for t = 1..T, float64."""
    steps = reverse_steps(process)
    small = np.exp(steps.log_small)
    if self.variance == "fixed_small":
      return small
    return np.append(small[0], np.exp(steps.log_small + steps.width)[1:])

  def steps(self, process: DiscreteVP) -> ReverseSteps:
    """Coefficients of every term, float64."""
    return reverse_steps(process)

  def __call__(
    self,
    network: Preconditioned,
    process: DiscreteVP,
    params: Params,
    keys: Keys,
    x0: Images,
    labels: Int[Array | np.ndarray, "B"] | None,
    num_levels: int | None,
  ) -> Estimate:
    """The bound of each example in bits/dim, from T network evaluations.

    Args:
      network: gives the x0 estimate, and the variances if they are learned.
      process: q(x_t | x0).
      params: of the network.
      keys: one an example; the noise of term t is drawn from fold_in(key, t).
      x0: images in [-1, 1], levels k as 2 k / (L - 1) - 1.
      labels: class numbers: the bound is then that of -log p(x0 | label). None: unconditional.
      num_levels: L. None: x0 is not quantised and the bound is that of a density.

    Returns:
      bits_per_dim [B] and its terms "prior", "denoising" and "reconstruction" [B]; and "curve"
      [B T], whose entry t - 1 is the term of step t: the reconstruction, then the KLs.

    Raises:
      ValueError: learned variances of a network that gives none.
    """
    num_dims = math.prod(x0.shape[1:])
    found = self._scan(network, process, params, keys, x0, labels)
    decoded = decoder_log_prob(x0, found.estimate, found.log_var, num_levels, self.cdf)
    reconstruction = -jnp.sum(decoded, axis=(1, 2, 3))
    divergences = found.divergences[:, 1:]
    nats = {
      "prior": prior_kl(process, x0),
      "denoising": jnp.sum(divergences, axis=1),
      "reconstruction": reconstruction,
    }
    total = sum(nats.values(), start=jnp.zeros(len(x0)))
    nats["curve"] = jnp.concatenate([reconstruction[:, None], divergences], axis=1)
    bits = {n: distributions.nats_to_bits_per_dim(v, num_dims) for n, v in nats.items()}
    return Estimate(distributions.nats_to_bits_per_dim(total, num_dims), bits)

  def _scan(
    self, network: Preconditioned, process: DiscreteVP, params: Params, keys: Keys, x0: Images,
    labels: Any,
  ) -> _Scanned:  # fmt: skip
    """One scan from T down, so that the last carry is what t = 1 has."""
    steps, num = self.steps(process), process.num_timesteps
    learned = self.variance_of(network) == "learned"
    # log(variance / small) of each step, where it is fixed
    ratios = np.zeros(num) if learned else np.log(self.variances(process)) - steps.log_small
    ask: Any = network.denoise_and_variance if learned else network.denoise

    def step(_, row):
      number, at, ratio = row
      z = rng.normal(rng.fold_in(keys, number), x0.shape[1:])
      found = ask(params, at.alpha * x0 + at.sigma * z, jnp.full(len(x0), number / num), labels)
      if learned:
        found, ratio = found[0], log_ratio(found[1], at.width)
      estimate = jnp.clip(found, -1.0, 1.0) if self.clip else found
      nats = jnp.sum(divergence(at, ratio, x0, estimate), axis=(1, 2, 3))
      return (estimate, jnp.broadcast_to(at.log_small + ratio, x0.shape)), nats

    rows = jax.tree.map(lambda c: jnp.asarray(c, jnp.float32), (steps, ratios))
    start = jnp.zeros_like(x0), jnp.zeros_like(x0)
    (estimate, log_var), nats = jax.lax.scan(
      step, start, (jnp.arange(1, num + 1), *rows), reverse=True
    )
    return _Scanned(estimate, log_var, nats.T)
