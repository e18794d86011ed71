"""The loss of variational diffusion models: their bound in continuous time, a time an example."""

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from diffusion_jax.core import rng
from diffusion_jax.losses.base import Objective, Place
from diffusion_jax.processes import (
  Preconditioned,
  Process,
  end_kl,
  expand,
  first_time,
  reconstruction,
)
from diffusion_jax.types import Key, Keys, Params

Images = Float[Array, "B H W C"]
Values = Float[Array, "B"]
SHARED_OFFSET = 3
"""Which number the step's key is folded with for u0; 0 to 2 are folded into examples' keys."""


@dataclasses.dataclass(frozen=True)
class VDM:
  """gamma'(t) / 2 |eps - eps_hat|^2 + reconstruction + KL at t = 1, in bits/dim.

  gamma = -log-SNR. It is an unbiased estimate of the bound `continuous_vlb`, and its gradient
  trains the ends of a learned schedule as it trains the network. The bound does not depend on what
  lies between the ends, which follows another gradient: of the mean square of the middle term, so
  that its variance is least (appendix I.2). Its times are those of `even_quantiles`.
  Source: Kingma et al. 2021 (arXiv 2107.00630), equations 11 to 17.
  """

  needs_derivative: ClassVar[bool] = True
  needs_variance: ClassVar[bool] = False
  needs_levels: ClassVar[bool] = True
  trains_schedule: ClassVar[bool] = True
  """Whether a learned schedule may be trained by it: least for a good model, not for no noise."""

  def objective(self, process: Process, num_levels: int | None = None) -> Objective:
    """The loss of grey levels, L of them, or of a density."""
    del process

    def measured(network, process, params, own, memory, place, keys, x0, labels, dropout_key):
      del own
      known = keys, x0, labels, dropout_key
      terms, calmer = _terms(network, process, params, even_quantiles(place), *known, num_levels)
      return sum(terms.values(), start=calmer), terms, memory

    return Objective(lambda key: {}, {}, measured)


def even_quantiles(place: Place) -> Values:
  """(u0 + v_i) mod 1 with u0 of the step and v_i the bits of i mirrored at the point.

  The first B, or any aligned B, of the v_i are 0, 1 / B, ... (B - 1) / B in another order where B
  is a power of two, so that the batch's times are the paper's (u0 + i / B) mod 1; for other B they
  are as even to a factor of log B. No example needs to know B: the times are the same on any
  number of devices, hosts and microbatches. Sources: Kingma et al. 2021, appendix I.1; van der
  Corput 1935 for the sequence.
  """
  offset = jax.random.uniform(jax.random.fold_in(place.key, SHARED_OFFSET))
  sum_ = offset + mirrored(place.index)
  return sum_ - jnp.floor(sum_)


def mirrored(index: Integer[Array | np.ndarray, "B"]) -> Values:
  """The binary digits of an index behind the point in reversed order: 1, 2, 3 are 1/2, 1/4, 3/4."""
  bits = jnp.asarray(index).astype(jnp.uint32)
  for shift, mask in ((1, 0x55555555), (2, 0x33333333), (4, 0x0F0F0F0F), (8, 0x00FF00FF)):
    low = jnp.uint32(mask)
    bits = ((bits >> shift) & low) | ((bits & low) << shift)
  bits = (bits >> 16) | (bits << 16)
  return (bits >> 8).astype(jnp.float32) * 2.0**-24


def _terms(
  network: Preconditioned,
  process: Process,
  params: Params,
  quantile: Values,
  keys: Keys,
  x0: Images,
  labels: Any,
  dropout_key: Key | None,
  num_levels: int | None,
) -> tuple[dict[str, Values], Values]:
  """The three terms of the bound in bits/dim, and what trains the interior of the schedule."""
  first, in_bits = first_time(process), 1.0 / (math.prod(x0.shape[1:]) * math.log(2.0))
  t, share = first + (1.0 - first) * quantile, (1.0 - first) * in_bits
  eps = rng.normal(rng.fold_in(keys, 1), x0.shape[1:])

  def error(t: Values) -> Values:
    """SNR / 2 |x0 - x0_hat|^2: half the error of the noise."""
    alpha, sigma = (expand(c, x0) for c in process.alpha_sigma(t))
    away = x0 - network.denoise(params, alpha * x0 + sigma * eps, t, labels, dropout_key)
    return 0.5 * share * jnp.exp(process.log_snr(t)) * jnp.sum(jnp.square(away), axis=(1, 2, 3))

  interior, one = process.interior, jnp.ones_like(t)
  trains = interior is not None and dropout_key is not None
  errors, rise = jax.jvp(error, (t,), (one,)) if trains else (error(t), 0.0 * t)
  diffusion = -jax.jvp(process.log_snr, (t,), (one,))[1] * errors
  terms = {
    "prior": in_bits * end_kl(process, x0),
    "diffusion": diffusion,
    "reconstruction": in_bits * reconstruction(process, keys, x0, num_levels),
  }
  if not trains:
    return terms, jnp.zeros(len(x0))
  return terms, _calmer(interior, t, diffusion, errors, rise)


def _calmer(interior: Any, t: Values, diffusion: Values, errors: Values, rise: Values) -> Values:
  """0, with the gradient of the square of gamma'(t) error in the schedule's interior.

  The error depends on the schedule through gamma(t) alone: its derivative in gamma, times gamma',
  is that in t.

  Args:
    interior: gamma.
    t: times.
    diffusion: gamma'(t) error.
    errors, rise: the error and its derivative in t.
  """
  gamma, slope = jax.jvp(interior, (t,), (jnp.ones_like(t),))
  diffusion, errors, rise = jax.lax.stop_gradient((diffusion, errors, rise))
  change = rise * (gamma - jax.lax.stop_gradient(gamma))
  return 2.0 * diffusion * (change + errors * (slope - jax.lax.stop_gradient(slope)))
