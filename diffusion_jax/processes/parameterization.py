"""What a network's output means: eps, x0 or v, and the conversions between them.

With x_t = alpha x0 + sigma eps:
  v = alpha eps - sigma x0                 (Salimans and Ho 2022, arXiv 2202.00512)
  x0 = (x_t - sigma eps) / alpha           = (alpha x_t - sigma v) / (alpha^2 + sigma^2)
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.processes.discrete_vp import DiscreteVP

Images = Float[Array, "B H W C"]
Coefficient = Float[Array, "B 1 1 1"]


class Prediction(NamedTuple):
  """One meaning of a network's output.

  Attributes:
    target: (x0, eps, alpha, sigma) -> the value that the network should output.
    to_x0: (output, xt, alpha, sigma) -> the x0 that the output stands for.
  """

  target: Callable[[Images, Images, Coefficient, Coefficient], Images]
  to_x0: Callable[[Images, Images, Coefficient, Coefficient], Images]


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

PREDICTIONS = {"eps": EPS, "x0": X0, "v": V}


class Preconditioned(NamedTuple):
  """A network wrapped once: everything that losses and samplers need of it.

  Attributes:
    output: (params, xt, t, labels, dropout_key) -> raw output [B H W C], float32. A dropout key
      of None means evaluation.
    target: (x0, eps, t) -> what `output` should be.
    denoise: (params, xt, t, labels) -> x0 estimate, without dropout and without clipping.
  """

  output: Callable[..., Images]
  target: Callable[[Images, Images, Float[Array, "B"]], Images]
  denoise: Callable[..., Images]


def expand(coefficient: Float[Array, "B"]) -> Coefficient:
  """Shapes one number an image for arithmetic with images."""
  return coefficient[:, None, None, None]


def precondition(network: Callable[..., Images], process: DiscreteVP, name: str) -> Preconditioned:
  """Wraps `network(params, xt, network_time, labels, dropout_key)` for a process.

  Args:
    network: the pure apply function of a model.
    process: maps t to alpha, sigma and the network's own time.
    name: what the output means, a key of PREDICTIONS.
  """
  prediction = PREDICTIONS[name]

  def coefficients(t):
    alpha, sigma = process.alpha_sigma(t)
    return expand(alpha), expand(sigma)

  def output(params, xt, t, labels, dropout_key=None):
    raw = network(params, xt, process.network_time(t), labels, dropout_key)
    return raw.astype(jnp.float32)

  def denoise(params, xt, t, labels):
    return prediction.to_x0(output(params, xt, t, labels), xt, *coefficients(t))

  def target(x0, eps, t):
    return prediction.target(x0, eps, *coefficients(t))

  return Preconditioned(output, target, denoise)
