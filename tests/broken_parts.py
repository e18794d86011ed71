"""Parts of an outside package that have every name of their contract and still cannot be used."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from diffusion_jax.data import DataSetBase
from diffusion_jax.losses import DenoisingLoss, Loss, LossBase
from diffusion_jax.metrics import MetricBase
from diffusion_jax.models import Network, NetworkBase
from diffusion_jax.processes import Flow
from diffusion_jax.samplers import Sampler, SamplerBase
from diffusion_jax.training.optimizers import ScheduledOptimizer
from diffusion_jax.types import ImageSpec, Samples


def part(cls):
  return dataclasses.dataclass(frozen=True)(cls)


@part
class ErrorTakesOne(DenoisingLoss):
  def error(self, model):
    return jnp.zeros(2)


@part
class ErrorIsAField(DenoisingLoss):
  error: float = 1.0


@part
class OnlyStubs(Loss):
  """A class of the Protocol itself, whose stubs return None."""


@part
class ScalarLoss(DenoisingLoss):
  def error(self, model, noised, predicted):
    return jnp.mean(jnp.square(predicted.x0 - noised.x0))


@part
class LossOfPixels(DenoisingLoss):
  def error(self, model, noised, predicted):
    return jnp.square(predicted.x0 - noised.x0)


@part
class IntegerLoss(DenoisingLoss):
  def error(self, model, noised, predicted):
    return jnp.zeros(len(noised.x0), int)


@part
class BareLoss(LossBase):
  def __call__(
    self, model, examples, keys, *, average=None, state=None, loss_params=None, dropout_key=None
  ):
    return jnp.zeros(len(examples.x0))


@part
class LossRaises(DenoisingLoss):
  def error(self, model, noised, predicted):
    return noised.nothing


@part
class AssertsItsField(DenoisingLoss):
  scale: float = 1.0

  def __post_init__(self):
    assert self.scale < 0, "scale is not negative"

  def error(self, model, noised, predicted):
    return jnp.zeros(len(noised.x0))


@part
class UnknownAnnotation(DenoisingLoss):
  scale: "Nowhere" = None  # pyright: ignore[reportUndefinedVariable]

  def error(self, model, noised, predicted):
    return jnp.zeros(len(noised.x0))


class OwnSampler(SamplerBase):
  order = 1
  stochastic = False

  def num_evaluations(self, process):
    return 1


@part
class PropertyOfASampler(OwnSampler):
  @property
  def order(self):
    raise RuntimeError("boom\nin two lines")

  def sample(self, denoise, process, key, shape, keep_estimates=False):
    return Samples(jnp.zeros(shape), 1)


@part
class NoSamples(OwnSampler):
  def sample(self, denoise, process, key, shape, keep_estimates=False):
    return jnp.zeros(shape)


@part
class OneSample(OwnSampler):
  def sample(self, denoise, process, key, shape, keep_estimates=False):
    return Samples(jnp.zeros((1, *shape[1:])), 1)


@part
class KeepsNothing(OwnSampler):
  def sample(self, denoise, process, key, shape):
    return Samples(jnp.zeros(shape), 1)


@part
class SamplerStubs(Sampler):
  """A class of the Protocol itself."""


class OwnNetwork(NetworkBase):
  def create(self, spec, num_labels):
    return Network(self.init, self.apply)

  def init(self, key):
    return {"w": jnp.ones(3)}

  def apply(self, params, x, time, condition, dropout_key=None):
    return x * params["w"][0]


@part
class CroppingNetwork(OwnNetwork):
  def apply(self, params, x, time, condition, dropout_key=None):
    return x[:, :1] * params["w"][0]


@part
class NetworkTakesTwo(OwnNetwork):
  def apply(self, params, x):
    return x


@part
class NetworkOfOtherNames(OwnNetwork):
  def apply(self, params, x, time, condition, dropout_key=None):
    return x * params["weight"]


@part
class HalfParameters(OwnNetwork):
  def init(self, key):
    return {"w": jnp.ones(3, jnp.bfloat16)}


@part
class NoParameters(OwnNetwork):
  def init(self, key):
    return {}

  def apply(self, params, x, time, condition, dropout_key=None):
    return x


@part
class NoNetwork(OwnNetwork):
  def create(self, spec, num_labels):
    return None


@part
class NetworkRaises(OwnNetwork):
  def create(self, spec, num_labels):
    raise KeyError("width")


@part
class OneCoefficient(Flow):
  def alpha_sigma(self, t):
    return t


@part
class NegativeNoise(Flow):
  def alpha_sigma(self, t):
    return 1.0 - t, -t


@part
class FixedNumber(Flow):
  def network_time(self, t):
    return jnp.zeros(3)


@part
class UpdatesNothing(ScheduledOptimizer):
  def create(self, num_steps, rates=None):
    return None


@part
class OptimizerRaises(ScheduledOptimizer):
  def create(self, num_steps, rates=None):
    raise RuntimeError("boom")


@part
class NoRates(ScheduledOptimizer):
  def create(self, num_steps):
    return None


@part
class DataAreGone(DataSetBase):
  def load(self, split):
    raise FileNotFoundError("no such folder: /data/x")


@part
class LengthRaises(DataSetBase):
  def load(self, split):
    class Lost:
      name, about, gather, gather_fields = "lost", None, None, None
      spec = ImageSpec(8, 8, 1, 256, 0)

      def __len__(self):
        raise KeyError("length")

    return Lost()


@part
class Divides(MetricBase):
  """A metric whose own code fails when all samples are drawn."""

  name = "divides"
  description = "a division by zero"
  higher_is_better = False

  def compute(self, samples, reference):
    return np.float64(1) if samples is None else 1 / 0
