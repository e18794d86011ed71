"""The importance-weighted bound: K posterior samples give a tighter bound than one.

-log p(x) <= -E[log (1/K) sum_k p(x, z_k) / q(z_k | x)], z_k ~ q(z | x); it decreases with K, and
for K = 1 it is the ELBO. Source: Burda et al. 2016 (arXiv 1509.00519), equation 8 and theorem 1.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float

from diffusion_jax.core import rng
from diffusion_jax.core.distributions import nats_to_bits_per_dim
from diffusion_jax.core.rng import Stream
from diffusion_jax.likelihood.base import DescribedBase
from diffusion_jax.types import Estimate, Keys


@dataclasses.dataclass(frozen=True)
class ImportanceWeighted(DescribedBase):
  """IWAE_K for any K in bounded memory.

  Attributes:
    num_draws: number K of draws per image.
    chunk: number of draws that are decoded together. It changes memory and speed, but not the
      draws.
  """

  num_draws: int = 50
  chunk: int = 10

  description = "importance-weighted bound"

  def __post_init__(self):
    for name in ("num_draws", "chunk"):
      if getattr(self, name) < 1:
        raise ValueError(f"{name}={getattr(self, name)} must be at least 1")

  @property
  def figure_name(self) -> str:
    """Return "iwae_K"."""
    return f"iwae_{self.num_draws}"

  def estimate(
    self, log_weight: Callable[[Keys], Float[Array, "B"]], keys: Keys, num_dims: int
  ) -> Estimate:
    """Return the bound of each example in bits/dim.

    Args:
      log_weight: log p(x, z) - log q(z | x) in nats of each example, for one z ~ q(z | x) drawn
        from its key. It must work under `jax.vmap` over keys.
      keys: one per example; draw k = 0..K-1 uses the k-th key of its stream IMPORTANCE.
      num_dims: number of dimensions of an example.

    Returns:
      bits_per_dim [B]; there are no terms.
    """
    chunk, keys = min(self.chunk, self.num_draws), rng.stream(keys, Stream.IMPORTANCE)

    def step(log_sum, first):
      draws = first + jnp.arange(chunk)
      drawn = jax.vmap(lambda k: log_weight(rng.numbered(keys, k)))(draws)
      counted = jnp.where((draws < self.num_draws)[:, None], drawn, -jnp.inf)
      return jnp.logaddexp(log_sum, logsumexp(counted, axis=0)), None

    log_sum, _ = jax.lax.scan(
      step, jnp.full(keys.shape[0], -jnp.inf), jnp.arange(0, self.num_draws, chunk)
    )
    return Estimate(nats_to_bits_per_dim(jnp.log(self.num_draws) - log_sum, num_dims), {})
