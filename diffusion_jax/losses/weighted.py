"""Denoising losses defined by their weight of each noise level, see `base.WeightedLoss`."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri

from diffusion_jax.losses.base import Values, WeightedLoss, require_continuous
from diffusion_jax.processes import Process


@dataclasses.dataclass(frozen=True)
class MinSNR(WeightedLoss):
  """Weight min(SNR, gamma) of the x0 error, min(1, gamma / SNR) of the eps error.

  Source: Hang et al. 2023 (arXiv 2303.09556), section 3.4.

  Attributes:
    gamma: largest weight of the x0 error.
  """

  gamma: float = 5.0

  def __post_init__(self):
    if self.gamma <= 0:
      raise ValueError(f"gamma={self.gamma} must be positive")

  def weight(self, process: Process, t: Values) -> Values:
    """Return the weight of the x0 error."""
    return jnp.minimum(jnp.exp(process.log_snr(t)), self.gamma)


@dataclasses.dataclass(frozen=True)
class P2(WeightedLoss):
  """Weight 1 / (k + SNR)^gamma of the eps error: less weight at low noise.

  Source: Choi et al. 2022 (arXiv 2204.00227), equation 6.

  Attributes:
    gamma: exponent of the weight; 0 is the eps error itself.
    k: constant k of the weight, positive.
  """

  gamma: float = 1.0
  k: float = 1.0

  def __post_init__(self):
    if self.gamma < 0 or self.k <= 0:
      raise ValueError(f"gamma={self.gamma} must not be negative, k={self.k} must be positive")

  def weight(self, process: Process, t: Values) -> Values:
    """Return the weight of the x0 error."""
    log_snr = process.log_snr(t)
    return jnp.exp(log_snr - self.gamma * jnp.logaddexp(jnp.log(self.k), log_snr))


@dataclasses.dataclass(frozen=True)
class EDMLoss(WeightedLoss):
  """Weight (s^2 + d^2) / (s d)^2 with s = sigma / alpha log-normal: 1 / c_out^2 of EDM.

  Source: Karras et al. 2022 (arXiv 2206.00364), table 1; the mean over dimensions, not their sum.

  Attributes:
    log_sigma_mean: mean of log(s) over the training examples.
    log_sigma_std: standard deviation of log(s) over the training examples.
    sigma_data: standard deviation d of the data.
  """

  log_sigma_mean: float = -1.2
  log_sigma_std: float = 1.2
  sigma_data: float = 0.5

  def __post_init__(self):
    if self.log_sigma_std <= 0 or self.sigma_data <= 0:
      raise ValueError(
        f"log_sigma_std={self.log_sigma_std}, sigma_data={self.sigma_data} must be positive"
      )

  def weight(self, process: Process, t: Values) -> Values:
    """Return the weight of the x0 error."""
    return 1.0 / self.sigma_data**2 + jnp.exp(process.log_snr(t))

  def training_times(self, process: Process, quantile: Values) -> Values:
    """Return times with normal log(sigma / alpha), within the range of the process."""
    log_sigma = self.log_sigma_mean + self.log_sigma_std * ndtri(quantile)
    return jnp.clip(process.time_of(-2.0 * log_sigma), process.min_time, 1.0)


@dataclasses.dataclass(frozen=True)
class SigmoidLoss(WeightedLoss):
  """The bound's weight -d lambda / dt / 2 of the eps error times sigmoid(bias - lambda).

  A lower bias gives less weight to low noise, where the bound spends bits on invisible details.
  Sources: Kingma and Gao 2023 (arXiv 2303.00848), section 4; Hoogeboom et al. 2024 (arXiv
  2410.19324), section 4.

  Attributes:
    bias: log-SNR at which the weight has halved.
  """

  bias: float = -1.0

  needs_derivative = True

  def weight(self, process: Process, t: Values) -> Values:
    """Return the weight of the x0 error."""
    require_continuous(process)
    log_snr, slope = jax.jvp(process.log_snr, (t,), (jnp.ones_like(t),))
    # sigmoid(bias - lambda) e^lambda = e^bias sigmoid(lambda - bias), which does not overflow
    return -0.5 * slope * jnp.exp(self.bias) * jax.nn.sigmoid(log_snr - self.bias)


@dataclasses.dataclass(frozen=True)
class FlowMatching(WeightedLoss):
  """The squared error of the velocity eps - x0.

  Sources: Lipman et al. 2023 (arXiv 2210.02747); logit-normal times: Esser et al. 2024 (arXiv
  2403.03206), section 3.1.

  Attributes:
    times: distribution of times: `uniform`, or `logit_normal`, more often in the middle.
    logit_mean: mean of log(t / (1 - t)), for times=logit_normal.
    logit_std: standard deviation of log(t / (1 - t)), for times=logit_normal.
  """

  times: Literal["uniform", "logit_normal"] = "uniform"
  logit_mean: float = 0.0
  logit_std: float = 1.0

  def __post_init__(self):
    if self.logit_std <= 0:
      raise ValueError(f"logit_std={self.logit_std} must be positive")

  def training_times(self, process: Process, quantile: Values) -> Values:
    """Return times that are uniform or logit-normal."""
    if self.times == "uniform":
      return process.time_at(quantile)
    t = jax.nn.sigmoid(self.logit_mean + self.logit_std * ndtri(quantile))
    return jnp.clip(t, process.min_time, 1.0)

  def weight(self, process: Process, t: Values) -> Values:
    """Return the weight of the x0 error."""
    return jnp.square(1.0 + jnp.exp(0.5 * process.log_snr(t)))
