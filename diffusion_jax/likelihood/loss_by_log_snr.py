"""The loss by log-SNR: the error of the noise prediction at each noise level.

The continuous-time variational bound is half the integral of this curve over the log-SNR, up to its
endpoints (Kingma et al. 2021, arXiv 2107.00630, equation 18). The curve therefore shows where the
bits are spent; a gap between training and held-out images shows where a model has memorised.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffusion_jax.core import rng
from diffusion_jax.core.broadcasting import mean_dims
from diffusion_jax.core.parts import Part
from diffusion_jax.core.rng import Stream
from diffusion_jax.core.settings import Facts
from diffusion_jax.processes import Denoiser, Process, check_inputs, namespace
from diffusion_jax.types import Examples, Keys, SpectrumEstimate

Points = Float[Array | np.ndarray, "M"]
MAX_LOG_SNR = 20.0
"""Largest |log-SNR|: beyond it, to float32, nothing or everything of the image is visible."""


@dataclasses.dataclass(frozen=True)
class Spectrum(Part):
  """Mean squared error of the predicted noise per dimension, as a function of log-SNR.

  Attributes:
    num_points: number of points, evenly spaced in log-SNR over the process, within +-MAX_LOG_SNR.
      On a process with steps each point moves to the nearest step, and points on the same step
      count once.
  """

  num_points: int = 24

  setting_facts: ClassVar[Facts] = Facts(may_change=True, affects_samples=False)

  def __post_init__(self):
    if self.num_points < 2:
      raise ValueError(f"num_points={self.num_points} must be at least 2")

  def points(self, process: Process) -> tuple[Points, Points]:
    """Return times, noisiest first, and their log-SNR: float64, or JAX for a learned schedule."""
    range_of_log_snr = process.log_snr(np.asarray([1.0, max(process.min_time, 1e-9)]))
    xp = namespace(range_of_log_snr)
    low, high = xp.clip(range_of_log_snr, -MAX_LOG_SNR, MAX_LOG_SNR)
    t = process.time_of(xp.linspace(low, high, self.num_points))
    t = np.unique(t)[::-1] if xp is np else t
    return t, process.log_snr(t)

  def __call__(self, model: Denoiser, examples: Examples, keys: Keys) -> SpectrumEstimate:
    """Return the error of each example at each point, without clipping and guidance.

    Args:
      model: model with any prediction; the error is always that of the noise,
        |eps - eps_hat|^2 = SNR |x0 - x0_hat|^2.
      examples: data with their condition.
      keys: one per example; the noise at point m uses the m-th key of its stream TERMS. The same
        keys for two sets of examples compare them under the same noise.
    """
    check_inputs(model, examples, keys)
    times, log_snr = self.points(model.process)
    x0, terms = examples.x0, rng.stream(keys, Stream.TERMS)

    def point(_, row):
      i, time, snr = row
      eps = rng.normal(rng.numbered(terms, i), x0.shape[1:])
      noised = model.noised(x0, jnp.full(len(x0), time), eps)
      error = x0 - model.predict(noised, examples.condition).x0
      return None, snr * mean_dims(jnp.square(error))

    floats = (times, namespace(log_snr).exp(log_snr))
    per_level = (jnp.arange(len(times)), *(jnp.asarray(c, jnp.float32) for c in floats))
    _, errors = jax.lax.scan(point, None, per_level)
    return SpectrumEstimate(jnp.asarray(log_snr, jnp.float32), errors.T)
