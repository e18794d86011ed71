"""Contract of denoising losses, and base classes with its defaults.

Call a loss in your own training loop as follows:

  loss = FlowMatching()
  model = Denoiser(functools.partial(apply, params), Flow(), "velocity")
  loss(model, Examples(x0), keys).values.mean()

The shortest custom loss is a subclass of `DenoisingLoss` with the method `error`, or of
`WeightedLoss` with the method `weight`. A loss that needs more (averaged parameters, a state, own
parameters, several evaluations) is a subclass of `LossBase` with `__call__`.
"""

import abc
import dataclasses
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from diffusion_jax.core import rng
from diffusion_jax.core.broadcasting import mean_dims
from diffusion_jax.core.parts import Part
from diffusion_jax.core.rng import Stream
from diffusion_jax.core.shapes import per_example
from diffusion_jax.processes import Denoiser, Noised, Predicted, Process, check_inputs
from diffusion_jax.types import EMPTY, Examples, Key, Keys, LossOutput, Params

Values = Float[Array, "B"]

LossState = Any
"""Arrays that a loss carries from step to step; {} for most losses."""

SMALLEST = 2.0**-24
"""Distance of quantiles from 0 and 1, where those of a normal distribution are infinite."""


@runtime_checkable
class Loss(Protocol):
  """A denoising loss; `LossBase` has defaults for all members but `__call__`."""

  @property
  def needs_derivative(self) -> bool:
    """True if it differentiates the log-SNR in time, and so needs a continuous process."""
    ...

  @property
  def needs_variance(self) -> bool:
    """True if it trains step variances; needs a process with steps, model.learned_variance."""
    ...

  @property
  def needs_levels(self) -> bool:
    """True if it counts pixel levels, so that images must not be between levels."""
    ...

  @property
  def trains_schedule(self) -> bool:
    """True if it can train a learned noise schedule: removing the noise does not minimise it."""
    ...

  @property
  def needs_average(self) -> bool:
    """True if it takes `average`, the model with averaged parameters."""
    ...

  @property
  def gives_end_time(self) -> bool:
    """True if it gives the network a second time, `Condition.end_time`, at each evaluation."""
    ...

  @property
  def minimised_by_mean(self) -> bool:
    """True if the exact denoiser E[x0 | x_t] minimises it, which the audit then measures."""
    ...

  def init(self, key: Key) -> Params:
    """A method: key -> initial parameters of the loss itself, {} for none."""
    ...

  def initial_state(self, process: Process) -> LossState:
    """A method: process -> state before the first step, {} for none."""
    ...

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
    """A method: the loss of each example.

    Args:
      model: denoiser with the parameters to train.
      examples: data with conditions.
      keys: one per example; its time, its noise and all its other draws derive only from it.
      average: the same model with averaged parameters, as a teacher or target network without
        gradients. None unless `needs_average`.
      state: state from `initial_state` or the previous step.
      loss_params: parameters from `init`, trained with the network's.
      dropout_key: key for the whole batch. None: the loss is measured, not trained, so there is no
        dropout and the state does not change.
    """
    ...


@dataclasses.dataclass(frozen=True)
class LossBase(Part):
  """Defaults of a loss: it needs nothing, and has neither a state nor parameters."""

  needs_derivative = False
  needs_variance = False
  needs_levels = False
  trains_schedule = False
  needs_average = False
  gives_end_time = False
  minimised_by_mean = True

  def init(self, key: Key) -> Params:
    """Return no parameters."""
    del key
    return {}

  def initial_state(self, process: Process) -> LossState:
    """Return no state."""
    del process
    return {}

  def training_times(self, process: Process, quantile: Values) -> Values:
    """Return the training times at quantiles in (0, 1), those of the process."""
    return process.time_at(quantile)

  def noised(self, model: Denoiser, x0: Float[Array, "B ..."], keys: Keys) -> Noised:
    """Return each example at its own time and noise, drawn from its key."""
    quantile = jnp.clip(rng.uniform(rng.stream(keys, Stream.TIME)), SMALLEST, 1.0 - SMALLEST)
    eps = rng.normal(rng.stream(keys, Stream.NOISE), x0.shape[1:])
    return model.noised(x0, self.training_times(model.process, quantile), eps)


@dataclasses.dataclass(frozen=True)
class DenoisingLoss(LossBase, abc.ABC):
  """The error of one network evaluation per example; a subclass defines `error`."""

  @abc.abstractmethod
  def error(self, model: Denoiser, noised: Noised, predicted: Predicted) -> Values:
    """A method: (model, noised examples, prediction) -> loss of each example."""

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
    """Return the error of each example; arguments as in `Loss`."""
    del average, loss_params
    return LossOutput(self._values(model, examples, keys, dropout_key)[0], state=state)

  def _values(
    self, model: Denoiser, examples: Examples, keys: Keys, dropout_key: Key | None
  ) -> tuple[Values, Noised]:
    """Return the error of each example, and the example at its time and noise.

    Raises:
      ValueError: `error` returned something else than one number per example.
    """
    check_inputs(model, examples, keys)
    noised = self.noised(model, examples.x0, keys)
    predicted = model.predict(noised, examples.condition, dropout_key)
    values = self.error(model, noised, predicted)
    per_example(values, len(examples.x0), f"{type(self).__name__}.error")
    return values, noised


@dataclasses.dataclass(frozen=True)
class WeightedLoss(DenoisingLoss):
  """The squared x0 error with a weight per noise level; a subclass defines `weight`.

  weight(t) |x0 - x0_hat|^2 / num_dims: the same for every prediction and, with a weight in terms of
  the log-SNR lambda (SNR = e^lambda), for every process, since
    |eps - eps_hat|^2 = SNR |x0 - x0_hat|^2
    |velocity error|^2 = (1 + alpha / sigma)^2 |x0 - x0_hat|^2
  """

  @abc.abstractmethod
  def weight(self, process: Process, t: Values) -> Values:
    """A method: (process, times) -> weight of the x0 error at each time."""

  def error(self, model: Denoiser, noised: Noised, predicted: Predicted) -> Values:
    """Return the weighted error of each example."""
    weight = self.weight(model.process, noised.t)
    return weight * mean_dims(jnp.square(noised.x0 - predicted.x0))


def require_continuous(process: Process) -> None:
  """Raise a ValueError for a process with steps, whose log-SNR has no derivative in time."""
  if process.num_timesteps is not None:
    raise ValueError(
      f"process={process}: this loss differentiates the log-SNR in time; use a process in "
      "continuous time, such as ContinuousLinearVP or Flow"
    )


class BatchPosition(NamedTuple):
  """The position of a batch, or of a microbatch of it, in the run.

  Attributes:
    key: key of the step; the same for all its microbatches, different for every step.
    index: global number of each example: step * batch_size + position.
  """

  key: Key
  index: Integer[Array, "B"]  # pyright: ignore[reportIncompatibleMethodOverride]


def batch_position(examples: Examples, keys: Keys) -> BatchPosition:
  """Return the position in the examples, or else a new batch counted from 0."""
  index = jnp.arange(len(keys)) if examples.index is None else jnp.asarray(examples.index)
  return BatchPosition(keys[0] if examples.step_key is None else examples.step_key, index)
