"""The loss spectrum: how well the noise is predicted at each noise level.

The variational bound in continuous time is half the integral of this curve over the log-SNR, up to
its end points (Kingma et al. 2021, arXiv 2107.00630, equation 18), so the curve shows where the
bits are spent; the gap between training and held-out images shows where a model has memorised.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from diffusion_jax.core import rng
from diffusion_jax.processes import Preconditioned, Process, expand, namespace
from diffusion_jax.types import Keys, Params, SpectrumEstimate

Points = Float[Array | np.ndarray, "M"]
MAX_LOG_SNR = 20.0
"""Beyond it a process has drowned the image, or hides nothing of it, to float32."""


@dataclasses.dataclass(frozen=True)
class Spectrum:
  """Mean squared error of the predicted noise a dimension, as a function of log-SNR.

  Attributes:
    num_points: M, evenly spaced in log-SNR over the process, within +-MAX_LOG_SNR. Of a process
      with steps each is moved to the nearest one, and points that meet there count once.
  """

  num_points: int = 24

  def __post_init__(self):
    if self.num_points < 2:
      raise ValueError(f"num_points={self.num_points} must be at least 2")

  def points(self, process: Process) -> tuple[Points, Points]:
    """Times, noisiest first, and their log-SNR: float64, or JAX's of a learned schedule."""
    ends = process.log_snr(np.asarray([1.0, max(process.min_time, 1e-9)]))
    xp = namespace(ends)
    low, high = xp.clip(ends, -MAX_LOG_SNR, MAX_LOG_SNR)
    t = process.time_of(xp.linspace(low, high, self.num_points))
    t = np.unique(t)[::-1] if xp is np else t
    return t, process.log_snr(t)

  def __call__(
    self,
    network: Preconditioned,
    process: Process,
    params: Params,
    keys: Keys,
    x0: Float[Array, "B H W C"],
    labels: Int[Array | np.ndarray, "B"] | None,
  ) -> SpectrumEstimate:
    """The error of each example at each point, without clipping and guidance.

    Args:
      network: gives the x0 estimate; whatever it predicts, the error is that of the noise,
        |eps - eps_hat|^2 = SNR |x0 - x0_hat|^2.
      process: q(x_t | x0).
      params: of the network.
      keys: one an example; the noise at point m is drawn from fold_in(key, m). The same keys for
        two sets of images compare them under the same noise.
      x0: images in [-1, 1].
      labels: class numbers or None.
    """
    times, log_snr = self.points(process)

    def point(_, row):
      number, time, snr = row
      t = jnp.full(len(x0), time)
      eps = rng.normal(rng.fold_in(keys, number), x0.shape[1:])
      alpha, sigma = (expand(c, x0) for c in process.alpha_sigma(t))
      error = x0 - network.denoise(params, alpha * x0 + sigma * eps, t, labels)
      return None, snr * jnp.mean(jnp.square(error), axis=(1, 2, 3))

    floats = (times, namespace(log_snr).exp(log_snr))
    rows = (jnp.arange(len(times)), *(jnp.asarray(c, jnp.float32) for c in floats))
    _, errors = jax.lax.scan(point, None, rows)
    return SpectrumEstimate(jnp.asarray(log_snr, jnp.float32), errors.T)
