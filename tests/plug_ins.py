"""Parts of an outside package, each as small as its contract allows."""

import contextlib
import dataclasses
import importlib.metadata
import types
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffusion_jax.core import entry_points
from diffusion_jax.data import ArraySource, DataSetBase
from diffusion_jax.likelihood import LikelihoodBase
from diffusion_jax.metrics import MetricBase
from diffusion_jax.training.optimizers import ScheduledOptimizer
from diffusion_jax.types import Estimate


@contextlib.contextmanager
def declared(**packages):
  """Let packages of these names declare entry points {"KIND.NAME": "module:Class"}."""
  points = []
  for package, values in packages.items():
    for name, value in values.items():
      point = importlib.metadata.EntryPoint(name, value, entry_points.GROUP)
      vars(point)["dist"] = types.SimpleNamespace(name=package)
      points.append(point)
  cached = (entry_points._all_of_the_group, entry_points.entry_points_of, entry_points.warn)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(importlib.metadata, "entry_points", lambda group: points)
    for function in cached:
      function.cache_clear()
    yield
  for function in cached:
    function.cache_clear()


@dataclasses.dataclass(frozen=True)
class MeanGap(MetricBase):
  """Distance of the mean features."""

  name: ClassVar[str] = "mean_gap"
  description: ClassVar[str] = "distance of the mean features"
  higher_is_better: ClassVar[bool] = False
  card: ClassVar[float] = 1.5
  full_num_samples: ClassVar[int] = 300

  def compute(self, samples, reference):
    return float(np.linalg.norm(samples.moments.mean - reference.moments.mean))


@dataclasses.dataclass(frozen=True)
class Bare(MetricBase):
  """A metric that has no name yet."""

  def compute(self, samples, reference):
    return 0.0


@dataclasses.dataclass(frozen=True)
class Constant(LikelihoodBase):
  """The same number for every image."""

  bits: float = 8.0

  figure_name = "constant"
  description = "one number for all images"

  def estimate(self, model, examples, keys):
    return Estimate(jnp.full(len(keys), self.bits), {})


@dataclasses.dataclass(frozen=True)
class SignDescent(ScheduledOptimizer):
  """Steps of the learning rate along the gradient's sign."""

  def create(self, num_steps, rates=None):
    rate = optax.scale_by_learning_rate(self.rate(num_steps, rates))
    return optax.chain(optax.scale_by_sign(), rate)


@dataclasses.dataclass(frozen=True)
class Shrink(ScheduledOptimizer):
  """Gradient descent that lets every parameter decay, also those that are never trained."""

  def create(self, num_steps, rates=None):
    rate = optax.scale_by_learning_rate(self.rate(num_steps, rates))
    return optax.chain(optax.add_decayed_weights(0.5), rate)


@dataclasses.dataclass(frozen=True)
class NoRule(ScheduledOptimizer):
  """A schedule without an update rule."""


@dataclasses.dataclass(frozen=True)
class Stripes(DataSetBase):
  """Upright stripes; the brightness is the class."""

  num_images: int = 32

  def load(self, split):
    labels = np.arange(self.num_images) % 4
    images = np.zeros((self.num_images, 8, 8, 1), np.uint8)
    images[:, :, ::2] = 60 * (1 + labels[:, None, None, None])
    return ArraySource(f"stripes {split}", images, labels)


@dataclasses.dataclass(frozen=True)
class NoLoad(DataSetBase):
  """A data set that loads nothing."""


@dataclasses.dataclass(frozen=True)
class Pair(DataSetBase):
  """A data set that loads bare arrays."""

  def load(self, split):
    return np.zeros((4, 8, 8, 1), np.uint8), np.zeros(4, int)
