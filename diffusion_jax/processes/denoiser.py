"""A network bound to a process: noised examples, and x0 estimates from its outputs.

All conversions between predictions go through x0. With x_t = alpha x0 + sigma eps, s = sigma /
alpha:
  eps                  x0 = (x_t - sigma eps) / alpha
  v = alpha eps - sigma x0                        x0 = (alpha x_t - sigma v) / (alpha^2 + sigma^2)
  score = -eps / sigma                            x0 = (x_t + sigma^2 score) / alpha
  velocity = eps - x0, dx_t/dt of straight paths  x0 = (x_t - sigma velocity) / (alpha + sigma)
  edm = (x0 - c_skip x_t / alpha) / c_out         x0 = c_skip x_t / alpha + c_out edm
Sources: v: Salimans and Ho 2022 (arXiv 2202.00512); edm, with c_skip = d^2 / (s^2 + d^2) and
c_out = s d / sqrt(s^2 + d^2), d the standard deviation of the data: Karras et al. 2022 (arXiv
2206.00364), table 1. Its network gets c_in x_t / alpha with c_in = 1 / sqrt(s^2 + d^2); the others
get x_t. In edm alpha and sigma are multiplied out, so that it has a finite limit where alpha is 0;
eps and score do not determine x0 there.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.core import rng
from diffusion_jax.core.broadcasting import expand
from diffusion_jax.core.shapes import describe_value, float_array
from diffusion_jax.processes.base import Data, Process, check_bindable
from diffusion_jax.types import UNCONDITIONAL, Condition, Examples, Key

Coefficient = Any
"""One number per example, [B 1 ...], with the rank of the data."""


class Prediction(NamedTuple):
  """One meaning of a network's output.

  Attributes:
    target: (x0, eps, alpha, sigma) -> training target of the network's output.
    to_x0: (output, xt, alpha, sigma) -> x0 estimate.
    input: (xt, alpha, sigma) -> input of the network.
  """

  target: Callable[[Data, Data, Coefficient, Coefficient], Data]
  to_x0: Callable[[Data, Data, Coefficient, Coefficient], Data]
  input: Callable[[Data, Coefficient, Coefficient], Data] = lambda xt, alpha, sigma: xt


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
  """Return EDM's preconditioning for data with standard deviation `sigma_data`."""

  def scale(alpha, sigma):
    """Return alpha sqrt(s^2 + d^2), the standard deviation of x_t."""
    return jnp.sqrt(jnp.square(sigma) + jnp.square(sigma_data * alpha))

  def target(x0, eps, alpha, sigma):
    return (sigma * x0 / sigma_data - sigma_data * alpha * eps) / scale(alpha, sigma)

  def to_x0(output, xt, alpha, sigma):
    std = scale(alpha, sigma)
    return (sigma_data**2 * alpha * xt / std + sigma_data * sigma * output) / std

  return Prediction(target, to_x0, lambda xt, alpha, sigma: xt / scale(alpha, sigma))


PredictionName = Literal["eps", "x0", "v", "score", "velocity", "edm"]
"""Name of a prediction."""

PREDICTIONS = {"eps": EPS, "x0": X0, "v": V, "score": SCORE, "velocity": VELOCITY, "edm": edm(0.5)}
"""Meanings of a network's output by name: the values of `generative.prediction`."""

UNDEFINED_AT_PURE_NOISE = ("eps", "score")
"""Predictions that do not determine x0 where alpha is 0."""


class State(NamedTuple):
  """Noised data with unknown x0, e.g. in a sampler.

  Attributes:
    t: times in [0, 1].
    alpha, sigma: coefficients at these times, [B 1 ...].
    xt: noised data, alpha x0 + sigma eps.
  """

  t: Float[Array, "B"]
  alpha: Coefficient
  sigma: Coefficient
  xt: Data


class Noised(NamedTuple):
  """Examples with the noise that was added to them.

  Attributes:
    t: times in [0, 1].
    alpha, sigma: coefficients at these times, [B 1 ...].
    x0: the examples.
    eps: standard normal noise.
    xt: noised data, alpha x0 + sigma eps.
  """

  t: Float[Array, "B"]
  alpha: Coefficient
  sigma: Coefficient
  x0: Data
  eps: Data
  xt: Data


class Predicted(NamedTuple):
  """Result of one network evaluation.

  Attributes:
    output: raw output in float32, to compare with `Denoiser.target`.
    x0: x0 estimate, not clipped.
    variance_logits: variance logits of a network with learned variances, else None.
  """

  output: Data
  x0: Data
  variance_logits: Data | None = None


@dataclasses.dataclass(frozen=True)
class Denoiser:
  """A network with its parameters on a process, as losses and samplers use it.

  Attributes:
    network: (x [B ...], network_time [B], condition, dropout_key or None) -> output [B ...]. A
      dropout key of None means evaluation mode.
    process: process q(x_t | x0), which maps t to alpha, sigma and the network's time.
    prediction: meaning of the output, a key of PREDICTIONS.
    sigma_data: standard deviation of the data, for "edm".
    learned_variance: True if the output has twice the data's channels (the last axis), with
      variance logits in the second half.

  Raises:
    ValueError: an unknown prediction, a network or process that is none, or a sigma_data of 0 or
      less.
  """

  network: Callable[[Data, Float[Array, "B"], Condition, Key | None], Data]
  process: Process
  prediction: PredictionName = "eps"
  sigma_data: float = 0.5
  learned_variance: bool = False

  def __post_init__(self):
    if self.prediction not in get_args(PredictionName):
      allowed = ", ".join(get_args(PredictionName))
      raise ValueError(f"prediction={self.prediction!r} must be one of {allowed}")
    if not callable(self.network):
      raise ValueError(
        f"network={self.network!r}: it must be a function (x, network_time, condition, "
        "dropout_key) -> output"
      )
    check_bindable(self.process)
    if not self.sigma_data > 0:
      raise ValueError(f"sigma_data={self.sigma_data} must be positive")

  @property
  def formulas(self) -> Prediction:
    """Return the conversions of this model's prediction."""
    return edm(self.sigma_data) if self.prediction == "edm" else PREDICTIONS[self.prediction]

  def state(self, xt: Data, t: Float[Array, "B"]) -> State:
    """Return noised data with the coefficients of their times."""
    check_times(t, xt)
    alpha, sigma = self.process.alpha_sigma(t)
    return State(t, expand(alpha, xt), expand(sigma, xt), xt)

  def noised(self, x0: Data, t: Float[Array, "B"], eps: Data) -> Noised:
    """Return examples with noise added, x_t = alpha x0 + sigma eps."""
    alpha, sigma = (expand(c, x0) for c in self.process.alpha_sigma(t))
    return Noised(t, alpha, sigma, x0, eps, alpha * x0 + sigma * eps)

  def target(self, noised: Noised) -> Data:
    """Return the training target of the network's output."""
    return self.formulas.target(noised.x0, noised.eps, noised.alpha, noised.sigma)

  def predict(
    self,
    at: Noised | State,
    condition: Condition = UNCONDITIONAL,
    dropout_key: Key | None = None,
  ) -> Predicted:
    """Evaluate the network once.

    Args:
      at: noised data, from `noised` or `state`.
      condition: condition of the examples.
      dropout_key: key for the whole batch; None: evaluation mode.

    Raises:
      ValueError: the network's output has another shape than the data; broadcasting would hide it.
    """
    shown = self.formulas.input(at.xt, at.alpha, at.sigma)
    raw = self.network(shown, self.process.network_time(at.t), condition, dropout_key)
    shape = at.xt.shape
    if self.learned_variance:
      shape = *shape[:-1], 2 * shape[-1]
    output, logits = float_array(raw, shape, "network", jnp.float32), None
    if self.learned_variance:
      output, logits = jnp.split(output, 2, axis=-1)
    return Predicted(output, self.formulas.to_x0(output, at.xt, at.alpha, at.sigma), logits)

  def denoise(
    self,
    xt: Data,
    t: Float[Array, "B"],
    condition: Condition = UNCONDITIONAL,
    end_time: Float[Array, "B"] | None = None,
  ) -> Data:
    """Return the x0 estimate, not clipped; samplers take this method as their denoiser."""
    if end_time is not None:
      condition = condition._replace(end_time=end_time)
    return self.predict(self.state(xt, t), condition).x0


def check_times(t: Any, xt: Any) -> None:
  """Raise a ValueError unless there is one time, or one per example."""
  if jnp.shape(t) not in ((), (1,), jnp.shape(xt)[:1]):
    raise ValueError(f"t of shape {jnp.shape(t)}: must be one time per example, [{len(xt)}]")


def check_inputs(model: Any, examples: Any, keys: Any) -> None:
  """Check the arguments of a loss or a likelihood.

  Raises:
    ValueError: the model is no `Denoiser`, the data are no `Examples`, or there is not one key per
      example.
  """
  if not isinstance(model, Denoiser):
    raise ValueError(f"model={model!r}: give Denoiser(network, process)")
  if not isinstance(examples, Examples):
    raise ValueError(f"examples is {describe_value(examples)}; give Examples(x0)")
  rng.check_one_per_example(keys, len(examples.x0))
