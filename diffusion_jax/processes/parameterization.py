"""What a network's output means, and the conversions between all of them through x0.

With x_t = alpha x0 + sigma eps, s = sigma / alpha:
  eps                  x0 = (x_t - sigma eps) / alpha
  v = alpha eps - sigma x0                        x0 = (alpha x_t - sigma v) / (alpha^2 + sigma^2)
  score = -eps / sigma                            x0 = (x_t + sigma^2 score) / alpha
  velocity = eps - x0, dx_t/dt of straight paths  x0 = (x_t - sigma velocity) / (alpha + sigma)
  edm = (x0 - c_skip x_t / alpha) / c_out         x0 = c_skip x_t / alpha + c_out edm
Sources: v: Salimans and Ho 2022 (arXiv 2202.00512); edm, with c_skip = d^2 / (s^2 + d^2) and
c_out = s d / sqrt(s^2 + d^2), d the standard deviation of the data: Karras et al. 2022 (arXiv
2206.00364), table 1. Its network sees c_in x_t / alpha with c_in = 1 / sqrt(s^2 + d^2); the others
see x_t. In edm alpha and sigma are multiplied out, so that it keeps its limit where alpha is 0;
eps and score say nothing of x0 there.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.core.broadcasting import expand
from diffusion_jax.processes.base import Process

Images = Float[Array, "B H W C"]
Coefficient = Float[Array, "B 1 1 1"]


class Prediction(NamedTuple):
  """One meaning of a network's output.

  Attributes:
    target: (x0, eps, alpha, sigma) -> the value that the network should output.
    to_x0: (output, xt, alpha, sigma) -> the x0 that the output stands for.
    input: (xt, alpha, sigma) -> what the network is shown.
  """

  target: Callable[[Images, Images, Coefficient, Coefficient], Images]
  to_x0: Callable[[Images, Images, Coefficient, Coefficient], Images]
  input: Callable[[Images, Coefficient, Coefficient], Images] = lambda xt, alpha, sigma: xt


EPS = Prediction(
  target=lambda x0, eps, alpha, sigma: eps,
  to_x0=lambda output, xt, alpha, sigma: (xt - sigma * output) / alpha,
)
X0 = Prediction(
  target=lambda x0, eps, alpha, sigma: x0,
  to_x0=lambda output, xt, alpha, sigma: output,
)
V = Prediction(
  target=lambda x0, eps, alpha, sigma: alpha * eps - sigma * x0,
  to_x0=lambda output, xt, alpha, sigma: (
    (alpha * xt - sigma * output) / (jnp.square(alpha) + jnp.square(sigma))
  ),
)
SCORE = Prediction(
  target=lambda x0, eps, alpha, sigma: -eps / sigma,
  to_x0=lambda output, xt, alpha, sigma: (xt + jnp.square(sigma) * output) / alpha,
)
VELOCITY = Prediction(
  target=lambda x0, eps, alpha, sigma: eps - x0,
  to_x0=lambda output, xt, alpha, sigma: (xt - sigma * output) / (alpha + sigma),
)


def edm(sigma_data: float) -> Prediction:
  """EDM's preconditioning for data of this standard deviation."""

  def scale(alpha, sigma):
    """Return alpha sqrt(s^2 + d^2), the standard deviation of x_t."""
    return jnp.sqrt(jnp.square(sigma) + jnp.square(sigma_data * alpha))

  def target(x0, eps, alpha, sigma):
    return (sigma * x0 / sigma_data - sigma_data * alpha * eps) / scale(alpha, sigma)

  def to_x0(output, xt, alpha, sigma):
    std = scale(alpha, sigma)
    return (sigma_data**2 * alpha * xt / std + sigma_data * sigma * output) / std

  return Prediction(target, to_x0, lambda xt, alpha, sigma: xt / scale(alpha, sigma))


UNDEFINED_AT_PURE_NOISE = ("eps", "score")
"""Predictions that say nothing of x0 where alpha is 0."""

PREDICTIONS = {"eps": EPS, "x0": X0, "v": V, "score": SCORE, "velocity": VELOCITY, "edm": edm(0.5)}


class Preconditioned(NamedTuple):
  """A network wrapped once: everything that losses and samplers need of it.

  Attributes:
    output: (params, xt, t, labels, dropout_key) -> raw output [B H W C], float32. A dropout key
      of None means evaluation.
    target: (x0, eps, t) -> what `output` should be.
    denoise: (params, xt, t, labels, dropout_key=None) -> x0 estimate, not clipped.
    denoise_and_variance: the same -> (x0 estimate, variance logits), both [B H W C]; None of a
      network that gives no variances.
  """

  output: Callable[..., Images]
  target: Callable[[Images, Images, Float[Array, "B"]], Images]
  denoise: Callable[..., Images]
  denoise_and_variance: Callable[..., tuple[Images, Images]] | None = None


def precondition(
  network: Callable[..., Float[Array, "B H W D"]],
  process: Process,
  name: str,
  sigma_data: float = 0.5,
  learned_variance: bool = False,
) -> Preconditioned:
  """Wraps `network(params, xt, network_time, labels, dropout_key)` for a process.

  Args:
    network: the pure apply function of a model.
    process: maps t to alpha, sigma and the network's own time.
    name: what the output means, a key of PREDICTIONS.
    sigma_data: standard deviation of the data, for "edm".
    learned_variance: D is 2 C, and the second half of the output are variance logits.
  """
  prediction = edm(sigma_data) if name == "edm" else PREDICTIONS[name]

  def coefficients(t, like):
    alpha, sigma = process.alpha_sigma(t)
    return expand(alpha, like), expand(sigma, like)

  def both(params, xt, t, labels, dropout_key=None):
    shown = prediction.input(xt, *coefficients(t, xt))
    raw = network(params, shown, process.network_time(t), labels, dropout_key).astype(jnp.float32)
    return jnp.split(raw, 2, axis=-1) if learned_variance else (raw, None)

  def output(*args, **options):
    return both(*args, **options)[0]

  def denoise_and_variance(params, xt, t, labels, dropout_key=None):
    raw, logits = both(params, xt, t, labels, dropout_key)
    return prediction.to_x0(raw, xt, *coefficients(t, xt)), logits

  def denoise(*args, **options):
    return denoise_and_variance(*args, **options)[0]

  def target(x0, eps, t):
    return prediction.target(x0, eps, *coefficients(t, x0))

  pair: Any = denoise_and_variance if learned_variance else None
  return Preconditioned(output, target, denoise, pair)
