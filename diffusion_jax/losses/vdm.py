"""Loss of variational diffusion models: the continuous-time bound, one time per example."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Integer

from diffusion_jax.core import rng
from diffusion_jax.core.broadcasting import sum_dims
from diffusion_jax.core.rng import Stream
from diffusion_jax.kernels.attention import plain_only
from diffusion_jax.losses.base import (
  BatchPosition,
  LossBase,
  LossState,
  Values,
  batch_position,
  require_continuous,
)
from diffusion_jax.processes import Denoiser, check_inputs, end_kl, first_time, reconstruction
from diffusion_jax.types import EMPTY, Examples, Key, Keys, LossOutput, Params


@dataclasses.dataclass(frozen=True)
class VDM(LossBase):
  """gamma'(t) / 2 |eps - eps_hat|^2 + reconstruction + KL at t = 1, in bits/dim.

  gamma = -log-SNR. It is an unbiased estimate of the bound `continuous_vlb`, and its gradient
  trains the network and the endpoints of a learned schedule. The bound does not depend on the
  schedule between the endpoints, which gets another gradient: that of the mean square of the middle
  term, to minimise its variance (appendix I.2). Its times are those of `even_quantiles`.
  Source: Kingma et al. 2021 (arXiv 2107.00630), equations 11 to 17.
  """

  needs_derivative = True
  needs_levels = True
  trains_schedule = True

  def __call__(
    self,
    model: Denoiser,
    examples: Examples,
    keys: Keys,
    *,
    average: Denoiser | None = None,
    state: LossState = EMPTY,
    loss_params: Params = EMPTY,
    dropout_key: Key | None = None,
  ) -> LossOutput:
    """Return the bound of each example; its metrics are the three terms."""
    del average, loss_params
    check_inputs(model, examples, keys)
    require_continuous(model.process)
    quantile = even_quantiles(batch_position(examples, keys))
    terms, calmer = _terms(model, examples, keys, quantile, dropout_key)
    return LossOutput(sum(terms.values(), start=calmer), terms, state)


def even_quantiles(position: BatchPosition) -> Values:
  """Return (u0 + v_i) mod 1 with u0 from the step's key and v_i the mirrored bits of i.

  The first B (or any aligned B) of the v_i are 0, 1 / B, ... (B - 1) / B in another order if B is a
  power of two, so that the batch's times are the paper's (u0 + i / B) mod 1. For other B they are
  equally even up to a factor of log B. No example needs to know B: the times are the same for any
  number of devices, hosts and microbatches. Sources: Kingma et al. 2021, appendix I.1; van der
  Corput 1935 for the sequence.
  """
  offset = jax.random.uniform(rng.stream(position.key, Stream.SHARED_TIMES))
  sum_ = offset + mirrored(position.index)
  return sum_ - jnp.floor(sum_)


def mirrored(index: Integer[Array | np.ndarray, "B"]) -> Values:
  """Return an index's binary digits mirrored at the point: 1, 2, 3 become 1/2, 1/4, 3/4."""
  bits = jnp.asarray(index).astype(jnp.uint32)
  for shift, mask in ((1, 0x55555555), (2, 0x33333333), (4, 0x0F0F0F0F), (8, 0x00FF00FF)):
    low = jnp.uint32(mask)
    bits = ((bits >> shift) & low) | ((bits & low) << shift)
  bits = (bits >> 16) | (bits << 16)
  return (bits >> 8).astype(jnp.float32) * 2.0**-24


def _terms(
  model: Denoiser, examples: Examples, keys: Keys, quantile: Values, dropout_key: Key | None
) -> tuple[dict[str, Values], Values]:
  """Return the terms of the bound in bits/dim, and the loss of the schedule's interior."""
  process, x0 = model.process, examples.x0
  first, in_bits = first_time(process), 1.0 / (math.prod(x0.shape[1:]) * math.log(2.0))
  t, width = first + (1.0 - first) * quantile, (1.0 - first) * in_bits
  eps = rng.normal(rng.stream(keys, Stream.NOISE), x0.shape[1:])

  def error(t: Values) -> Values:
    """Return SNR / 2 |x0 - x0_hat|^2, half the squared error of the noise."""
    noised = model.noised(x0, t, eps)
    estimate = model.predict(noised, examples.condition, dropout_key).x0
    return 0.5 * width * jnp.exp(process.log_snr(t)) * sum_dims(jnp.square(x0 - estimate))

  interior, one = process.interior, jnp.ones_like(t)
  trains = interior is not None and dropout_key is not None
  if trains:
    with plain_only():  # a fused attention has no forward-mode derivative
      errors, rise = jax.jvp(error, (t,), (one,))
  else:
    errors, rise = error(t), 0.0 * t
  diffusion = -jax.jvp(process.log_snr, (t,), (one,))[1] * errors
  terms = {
    "prior": in_bits * end_kl(process, x0),
    "diffusion": diffusion,
    "reconstruction": in_bits * reconstruction(process, keys, x0, examples.num_levels),
  }
  if not trains:
    return terms, jnp.zeros(len(x0))
  return terms, _calmer(interior, t, diffusion, errors, rise)


def _calmer(interior: Any, t: Values, diffusion: Values, errors: Values, rise: Values) -> Values:
  """Return 0, with the gradient of the square of gamma'(t) error in the schedule's interior.

  The error depends on the schedule only through gamma(t): its derivative in gamma, times gamma', is
  its derivative in t.

  Args:
    interior: function gamma.
    t: times.
    diffusion: gamma'(t) error.
    errors, rise: the error and its derivative in t.
  """
  gamma, slope = jax.jvp(interior, (t,), (jnp.ones_like(t),))
  diffusion, errors, rise = jax.lax.stop_gradient((diffusion, errors, rise))
  change = rise * (gamma - jax.lax.stop_gradient(gamma))
  return 2.0 * diffusion * (change + errors * (slope - jax.lax.stop_gradient(slope)))
