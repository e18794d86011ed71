"""Denoising losses by the weight that they give to each noise level.

Whatever the network predicts, the error is that of the x0 estimate, and the weight is a function of
the log-SNR lambda (SNR = e^lambda), so that one loss is the same for every prediction and process:
  |eps - eps_hat|^2 = SNR |x0 - x0_hat|^2
  |velocity error|^2 = (1 + alpha / sigma)^2 |x0 - x0_hat|^2
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri
from jaxtyping import Array, Float, Int

from diffusion_jax.core import rng
from diffusion_jax.losses.base import plain
from diffusion_jax.processes import Preconditioned, Process, expand
from diffusion_jax.types import Key, Keys, Params

Values = Float[Array, "B"]
SMALLEST = 2.0**-24
"""Quantiles stay so far from 0 and 1, where a normal distribution's are infinite."""


def weighted_error(
  weight: Callable[[Process, Values], Values],
  times: Callable[[Process, Values], Values],
  network: Preconditioned,
  process: Process,
  params: Params,
  keys: Keys,
  x0: Float[Array, "B H W C"],
  labels: Int[Array, "B"] | None,
  dropout_key: Key | None,
) -> Values:
  """weight(t) |x0 - x0_hat|^2 / num_dims of each example at its own time and noise.

  Args:
    weight: (process, t) -> weight of the x0 error.
    times: (process, quantiles in [0, 1)) -> training times.
    network, process, params, keys, x0, labels, dropout_key: as of `Simple`.
  """
  t = drawn_times(times, process, keys)
  eps = rng.normal(rng.fold_in(keys, 1), x0.shape[1:])
  alpha, sigma = (expand(c, x0) for c in process.alpha_sigma(t))
  estimate = network.denoise(params, alpha * x0 + sigma * eps, t, labels, dropout_key)
  return weight(process, t) * jnp.mean(jnp.square(x0 - estimate), axis=(1, 2, 3))


def drawn_times(times: Callable[[Process, Values], Values], process: Process, keys: Keys) -> Values:
  """The training time of each example, from its own key."""
  quantile = rng.uniform(rng.fold_in(keys, 0))
  return times(process, jnp.clip(quantile, SMALLEST, 1.0 - SMALLEST))


def uniform_times(process: Process, quantile: Values) -> Values:
  """As often as the process says, mostly all times alike."""
  return process.time_at(quantile)


def normal_log_sigma(mean: float, std: float) -> Callable[[Process, Values], Values]:
  """Times at which log(sigma / alpha) is normal, as far as the process has them."""

  def times(process: Process, quantile: Values) -> Values:
    t = process.time_of(-2.0 * (mean + std * ndtri(quantile)))
    return jnp.clip(t, process.min_time, 1.0)

  return times


@dataclasses.dataclass(frozen=True)
class MinSNR:
  """Weight min(SNR, gamma) of the x0 error, min(1, gamma / SNR) of the eps error.

  Source: Hang et al. 2023 (arXiv 2303.09556), section 3.4.

  Attributes:
    gamma: largest weight.
  """

  gamma: float = 5.0

  needs_derivative: ClassVar[bool] = False
  needs_variance: ClassVar[bool] = False
  objective = plain

  def __post_init__(self):
    if self.gamma <= 0:
      raise ValueError(f"gamma={self.gamma} must be positive")

  def weight(self, process: Process, t: Values) -> Values:
    return jnp.minimum(jnp.exp(process.log_snr(t)), self.gamma)

  def __call__(self, *args: Any) -> Values:
    """The loss of each example; arguments as of `Simple`."""
    return weighted_error(self.weight, uniform_times, *args)


@dataclasses.dataclass(frozen=True)
class P2:
  """Weight 1 / (k + SNR)^gamma of the eps error: less where noise hides nothing.

  Source: Choi et al. 2022 (arXiv 2204.00227), equation 6.

  Attributes:
    gamma, k: of the formula; gamma 0 is the eps error itself.
  """

  gamma: float = 1.0
  k: float = 1.0

  needs_derivative: ClassVar[bool] = False
  needs_variance: ClassVar[bool] = False
  objective = plain

  def __post_init__(self):
    if self.gamma < 0 or self.k <= 0:
      raise ValueError(f"gamma={self.gamma} must not be negative, k={self.k} must be positive")

  def weight(self, process: Process, t: Values) -> Values:
    log_snr = process.log_snr(t)
    return jnp.exp(log_snr - self.gamma * jnp.logaddexp(jnp.log(self.k), log_snr))

  def __call__(self, *args: Any) -> Values:
    """The loss of each example; arguments as of `Simple`."""
    return weighted_error(self.weight, uniform_times, *args)


@dataclasses.dataclass(frozen=True)
class EDMLoss:
  """Weight (s^2 + d^2) / (s d)^2 with s = sigma / alpha log-normal: 1 / c_out^2 of EDM.

  Source: Karras et al. 2022 (arXiv 2206.00364), table 1; the mean over dimensions, not their sum.

  Attributes:
    log_sigma_mean, log_sigma_std: of log(s).
    sigma_data: d, standard deviation of the data.
  """

  log_sigma_mean: float = -1.2
  log_sigma_std: float = 1.2
  sigma_data: float = 0.5

  needs_derivative: ClassVar[bool] = False
  needs_variance: ClassVar[bool] = False
  objective = plain

  def __post_init__(self):
    if self.log_sigma_std <= 0 or self.sigma_data <= 0:
      raise ValueError(
        f"log_sigma_std={self.log_sigma_std}, sigma_data={self.sigma_data} must be positive"
      )

  def weight(self, process: Process, t: Values) -> Values:
    return 1.0 / self.sigma_data**2 + jnp.exp(process.log_snr(t))

  def training_times(self, process: Process, keys: Keys) -> Values:
    """The time at which the loss takes each example."""
    return drawn_times(self._times, process, keys)

  def __call__(self, *args: Any) -> Values:
    """The loss of each example; arguments as of `Simple`."""
    return weighted_error(self.weight, self._times, *args)

  def _times(self, process: Process, quantile: Values) -> Values:
    return normal_log_sigma(self.log_sigma_mean, self.log_sigma_std)(process, quantile)


@dataclasses.dataclass(frozen=True)
class SigmoidLoss:
  """The bound's weight -d lambda / dt / 2 of the eps error times sigmoid(bias - lambda).

  Low noise, where the bound spends its bits on what nobody sees, counts less the lower the bias.
  Sources: Kingma and Gao 2023 (arXiv 2303.00848), section 4; Hoogeboom et al. 2024 (arXiv
  2410.19324), section 4.

  Attributes:
    bias: log-SNR at which the weight has halved.
  """

  bias: float = -1.0

  needs_derivative: ClassVar[bool] = True
  needs_variance: ClassVar[bool] = False
  objective = plain

  def weight(self, process: Process, t: Values) -> Values:
    log_snr, slope = jax.jvp(process.log_snr, (t,), (jnp.ones_like(t),))
    # sigmoid(bias - lambda) e^lambda = e^bias sigmoid(lambda - bias), which does not overflow
    return -0.5 * slope * jnp.exp(self.bias) * jax.nn.sigmoid(log_snr - self.bias)

  def __call__(self, *args: Any) -> Values:
    """The loss of each example; arguments as of `Simple`."""
    return weighted_error(self.weight, uniform_times, *args)


@dataclasses.dataclass(frozen=True)
class FlowMatching:
  """The squared error of the velocity eps - x0.

  Sources: Lipman et al. 2023 (arXiv 2210.02747); logit-normal times: Esser et al. 2024 (arXiv
  2403.03206), section 3.1.

  Attributes:
    times: `uniform`, or `logit_normal`: more often in the middle.
    logit_mean, logit_std: of log(t / (1 - t)).
  """

  times: Literal["uniform", "logit_normal"] = "uniform"
  logit_mean: float = 0.0
  logit_std: float = 1.0

  needs_derivative: ClassVar[bool] = False
  needs_variance: ClassVar[bool] = False
  objective = plain

  def __post_init__(self):
    if self.logit_std <= 0:
      raise ValueError(f"logit_std={self.logit_std} must be positive")

  def training_times(self, process: Process, quantile: Values) -> Values:
    if self.times == "uniform":
      return process.time_at(quantile)
    t = jax.nn.sigmoid(self.logit_mean + self.logit_std * ndtri(quantile))
    return jnp.clip(t, process.min_time, 1.0)

  def weight(self, process: Process, t: Values) -> Values:
    return jnp.square(1.0 + jnp.exp(0.5 * process.log_snr(t)))

  def __call__(self, *args: Any) -> Values:
    """The loss of each example; arguments as of `Simple`."""
    return weighted_error(self.weight, self.training_times, *args)
