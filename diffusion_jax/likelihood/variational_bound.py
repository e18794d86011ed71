"""The variational bound of a discrete diffusion model, every one of its T terms.

-log p(x0) <= KL(q(x_T | x0) || N(0, I))                                           prior
              + sum_{t=2..T} KL(q(x_{t-1} | x_t, x0) || p(x_{t-1} | x_t))          denoising
              - log p(x0 | x_1)                                                    reconstruction

Source: Ho et al. 2020 (arXiv 2006.11239), equations 5 to 8.
"""

import dataclasses
import math
from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from diffusion_jax import distributions, randomness
from diffusion_jax.processes import DiscreteVP, Preconditioned, Process
from diffusion_jax.types import Estimate, Keys, Params

Images = Float[Array, "B H W C"]


class BoundSteps(NamedTuple):
  """What the bound needs of the steps t = 1..T, one row each, float64 on the host.

  Both Gaussians of a KL have the same x_t coefficient, so their means differ by gain (x0 - x0_hat)
  and the KL is offset + weight (x0 - x0_hat)^2 a dimension.

  Attributes:
    alpha, sigma: of q(x_t | x0).
    offset: (e^r - 1 - r) / 2 with r = log(posterior variance / model variance).
    weight: gain^2 / (2 model variance).
    variance: of p(x_{t-1} | x_t); the decoder's at t = 1.
  """

  alpha: Float[np.ndarray, "T"]
  sigma: Float[np.ndarray, "T"]
  offset: Float[np.ndarray, "T"]
  weight: Float[np.ndarray, "T"]
  variance: Float[np.ndarray, "T"]


@dataclasses.dataclass(frozen=True)
class VariationalBound:
  """The bound with one noise draw a term; of the network itself, without guidance.

  The last step has no posterior to copy its variance from: t = 1 takes the posterior variance of
  t = 2 for either option (Nichol and Dhariwal 2021, arXiv 2102.09672, their code).

  Attributes:
    variance: of p(x_{t-1} | x_t): beta_t, or the smaller one of q(x_{t-1} | x_t, x0).
    clip: clip each x0 estimate to [-1, 1], as the published figures do.
    cdf: how the decoder at t = 1 integrates a Gaussian over a grey level: exactly, or by the tanh
      approximation with a floor of 1e-12 behind the published figures. The floor makes the
      figure smaller than the bound where a pixel is predicted very badly.
  """

  variance: Literal["fixed_large", "fixed_small"] = "fixed_large"
  clip: bool = True
  cdf: Literal["exact", "tanh"] = "exact"

  estimates: ClassVar[Literal["exact", "upper_bound"]] = "upper_bound"

  @property
  def figure_name(self) -> str:
    return "vlb"

  def serves(self, process: Process) -> bool:
    """Only processes with steps have this bound."""
    return process.num_timesteps is not None

  def variances(self, process: DiscreteVP) -> Float[np.ndarray, "T"]:
    """The variance of p(x_{t-1} | x_t) for t = 1..T, float64."""
    posterior = _posterior_variances(process)
    if self.variance == "fixed_small":
      return posterior
    return np.append(posterior[0], _betas(process)[1:])

  def steps(self, process: DiscreteVP) -> BoundSteps:
    """Coefficients of every term, float64."""
    now, before = process.alphas_cumprod[1:], process.alphas_cumprod[:-1]
    variance = self.variances(process)
    ratio = np.log(_posterior_variances(process) / variance)
    gain = np.sqrt(before) * _betas(process) / (1.0 - now)
    return BoundSteps(
      alpha=np.sqrt(now),
      sigma=np.sqrt(1.0 - now),
      offset=0.5 * (np.expm1(ratio) - ratio),
      weight=0.5 * gain**2 / variance,
      variance=variance,
    )

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
      network: gives the x0 estimate.
      process: q(x_t | x0).
      params: of the network.
      keys: one an example; the noise of term t is drawn from fold_in(key, t).
      x0: images in [-1, 1], levels k as 2 k / (L - 1) - 1.
      labels: class numbers: the bound is then that of -log p(x0 | label). None: unconditional.
      num_levels: L. None: x0 is not quantised and the bound is that of a density.

    Returns:
      bits_per_dim [B] and its terms "prior", "denoising" and "reconstruction" [B]; and "curve"
      [B T], whose entry t - 1 is the term of step t: the reconstruction, then the KLs.
    """
    steps, num_dims = self.steps(process), math.prod(x0.shape[1:])
    estimate, errors = self._estimates(steps, network, params, keys, x0, labels)
    decoded = self._log_prob(x0, estimate, 0.5 * math.log(steps.variance[0]), num_levels)
    offset, weight = (jnp.asarray(c, jnp.float32) for c in (steps.offset, steps.weight))
    reconstruction = -jnp.sum(decoded, axis=(1, 2, 3))
    divergences = (offset * num_dims + weight * errors)[:, 1:]
    nats = {
      "prior": prior_kl(process, x0),
      "denoising": jnp.sum(divergences, axis=1),
      "reconstruction": reconstruction,
    }
    total = sum(nats.values(), start=jnp.zeros(len(x0)))
    nats["curve"] = jnp.concatenate([reconstruction[:, None], divergences], axis=1)
    bits = {n: distributions.nats_to_bits_per_dim(v, num_dims) for n, v in nats.items()}
    return Estimate(distributions.nats_to_bits_per_dim(total, num_dims), bits)

  def _estimates(
    self, steps: BoundSteps, network: Preconditioned, params, keys: Keys, x0: Images, labels
  ) -> tuple[Images, Float[Array, "B T"]]:
    """The x0 estimate at t = 1 and |x0 - x0_hat|^2 of every t = 1..T, from one scan."""
    num = len(steps.alpha)

    def step(_, row):
      number, alpha, sigma = row
      xt = alpha * x0 + sigma * randomness.normal(randomness.fold_in(keys, number), x0.shape[1:])
      estimate = network.denoise(params, xt, jnp.full(len(x0), number / num), labels)
      estimate = jnp.clip(estimate, -1.0, 1.0) if self.clip else estimate
      return estimate, jnp.sum(jnp.square(x0 - estimate), axis=(1, 2, 3))

    coefficients = (jnp.asarray(c, jnp.float32) for c in (steps.alpha, steps.sigma))
    rows = (jnp.arange(1, num + 1), *coefficients)
    # From T down, so that the last carry is the estimate at t = 1.
    estimate, errors = jax.lax.scan(step, jnp.zeros_like(x0), rows, reverse=True)
    return estimate, errors.T

  def _log_prob(self, x0: Images, mean: Images, log_std: float, num_levels: int | None) -> Images:
    """log p(x0 | x_1) of each dimension."""
    scale = jnp.full_like(x0, log_std)
    if num_levels is None:
      return distributions.gaussian_log_prob(x0, mean, scale)
    if self.cdf == "exact":
      return distributions.discretized_gaussian_log_prob(x0, mean, scale, num_levels)
    return distributions.approximate_discretized_gaussian_log_prob(x0, mean, scale, num_levels)


def prior_kl(process: DiscreteVP, x0: Images) -> Float[Array, "B"]:
  """KL(q(x_T | x0) || N(0, I)) in nats an example: what the noisiest x_T still tells of x0."""
  alpha_bar = float(process.alphas_cumprod[-1])
  constant = math.prod(x0.shape[1:]) * (alpha_bar + math.log1p(-alpha_bar))
  return 0.5 * (alpha_bar * jnp.sum(jnp.square(x0), axis=(1, 2, 3)) - constant)


def _betas(process: DiscreteVP) -> Float[np.ndarray, "T"]:
  """beta_t = 1 - alpha_bar_t / alpha_bar_{t-1}, t = 1..T."""
  return 1.0 - process.alphas_cumprod[1:] / process.alphas_cumprod[:-1]


def _posterior_variances(process: DiscreteVP) -> Float[np.ndarray, "T"]:
  """Of q(x_{t-1} | x_t, x0), t = 1..T; the 0 at t = 1 is replaced by its neighbour.

  A process of one step has no neighbour: beta_1 takes its place.
  """
  left = 1.0 - process.alphas_cumprod
  variances = _betas(process) * left[:-1] / left[1:]
  variances[0] = variances[1] if process.num_timesteps > 1 else _betas(process)[0]
  return variances
