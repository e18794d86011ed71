"""EDM's loss, weighted at each noise level by a learned estimate of the model's error."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.losses.base import LossState, Values
from diffusion_jax.losses.weighted import EDMLoss
from diffusion_jax.processes import Denoiser
from diffusion_jax.types import EMPTY, Examples, Key, Keys, LossOutput, Params


@dataclasses.dataclass(frozen=True)
class Uncertainty(EDMLoss):
  """L(sigma) / exp(u(sigma)) + u(sigma), with EDM's L and a learned u of the noise level.

  For the best u, exp(u) is the mean of L at that noise level, and the gradients of all levels have
  equal weight. u = w . f(log(sigma) / 4) is linear in `num_features` random Fourier features, with
  sigma / alpha for sigma; w starts at 0, so that the loss starts as EDM's. The original also keeps
  the norm of w at 1. Source: Karras et al. 2024 (arXiv 2312.02696), section 2.2 and equation 20.

  Attributes:
    log_sigma_mean: mean of log(sigma / alpha) over the training examples; the paper has -0.4.
    log_sigma_std: standard deviation of log(sigma / alpha); the paper has 1.0.
    sigma_data: standard deviation of the data; the paper has 0.5.
    num_features: number of Fourier features of the noise level.
  """

  log_sigma_mean: float = -0.4
  log_sigma_std: float = 1.0
  sigma_data: float = 0.5
  num_features: int = 128

  def __post_init__(self):
    super().__post_init__()
    if self.num_features < 1:
      raise ValueError(f"num_features={self.num_features} must be at least 1")

  def init(self, key: Key) -> Params:
    """Return the weights of u, all zero."""
    del key
    return {"weight": jnp.zeros(self.num_features)}

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
    """Return the loss with u; its metrics are "edm", EDM's own loss, and "uncertainty", u.

    Raises:
      ValueError: `loss_params` are not from `init`.
    """
    del average
    if "weight" not in loss_params:
      raise ValueError("loss_params has no 'weight'; pass loss_params=loss.init(key)")
    edm, noised = self._values(model, examples, keys, dropout_key)
    u = uncertainty(loss_params, -0.5 * model.process.log_snr(noised.t))
    return LossOutput(edm * jnp.exp(-u) + u, {"edm": edm, "uncertainty": u}, state)


def uncertainty(loss_params: Params, log_sigma: Values) -> Values:
  """Return u at given noise levels, from its parameters."""
  weight = loss_params["weight"]
  return fourier_features(0.25 * log_sigma, len(weight)) @ weight


def fourier_features(x: Values, dim: int) -> Float[Array, "B D"]:
  """Return sqrt(2) cos(2 pi (f x + p)): mean square 1, with f ~ N(0, 1) and p ~ U(0, 1).

  The frequencies and phases are the same in every run and not trained. Source: Karras et al. 2024
  (arXiv 2312.02696), equation 75.
  """
  keys = jax.random.split(jax.random.key(0))
  frequency = jax.random.normal(keys[0], (dim,))
  phase = jax.random.uniform(keys[1], (dim,))
  angle = 2.0 * math.pi * (x[:, None] * frequency + phase)
  return math.sqrt(2.0) * jnp.cos(angle)
