"""A network with a second time: which losses and samplers serve it, decided when it is made."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_draws import moved

from diffusion_jax.auditing.sampler_rows import audit_samplers
from diffusion_jax.core import rng
from diffusion_jax.core.broadcasting import mean_dims
from diffusion_jax.generative import Diffusion
from diffusion_jax.likelihood import DIFFUSION_LIKELIHOODS, Spectrum
from diffusion_jax.losses import LossBase, Simple
from diffusion_jax.models import MLP, NetworkBase
from diffusion_jax.processes import Flow
from diffusion_jax.samplers import Euler, Guidance, SamplerBase, initial_states, keys_per_example
from diffusion_jax.types import Batch, Condition, ImageSpec, LossOutput, Samples

SPEC, NUM = ImageSpec(2, 2, 1, 17, 3), 6
IMAGES = np.random.default_rng(0).integers(0, 17, (NUM, 2, 2, 1)).astype(np.uint8)
BATCH = Batch(IMAGES, np.zeros(NUM, np.int32), np.ones(NUM, np.float32), np.arange(NUM, dtype="u4"))


@dataclasses.dataclass(frozen=True)
class HalfWay(LossBase):
  """The x0 error of a network that is told half of the time as its second."""

  gives_end_time = True

  def __call__(self, model, examples, keys, *, dropout_key=None, **_):
    noised = self.noised(model, examples.x0, keys)
    told = examples.condition._replace(end_time=0.5 * noised.t)
    error = noised.x0 - model.predict(noised, told, dropout_key).x0
    return LossOutput(mean_dims(jnp.square(error)))


@dataclasses.dataclass(frozen=True)
class OneStep(SamplerBase):
  """The x0 estimate of x_1, with one second time for all."""

  end: float = 0.0

  order = 1
  stochastic = False
  gives_end_time = True

  def num_evaluations(self, process):
    return 1

  def sample(self, denoise, process, key, shape, keep_estimates=False):
    x = initial_states(process, keys_per_example(key, shape[0]), shape[1:])
    ones = jnp.ones(shape[0])
    return Samples(denoise(x, ones, end_time=self.end * ones), 1)


class Ignorant(NetworkBase):
  """A network that takes nothing but the data and their time."""

  takes = frozenset()

  def create(self, spec, num_labels):
    raise NotImplementedError


def model(conditional=True, **changes):
  parts = {
    "process": Flow(), "model": MLP(hidden=8, depth=1, end_time=True), "loss": HalfWay(),
    "sampler": OneStep(), "guidance": Guidance(), "spectrum": Spectrum(),
    **{name: cls() for name, cls in DIFFUSION_LIKELIHOODS.items()}, **changes,
  }  # fmt: skip
  return Diffusion(prediction="velocity", conditional=conditional).create(parts, SPEC)


@pytest.mark.costly
def test_it_is_trained_and_sampled_with_the_times_that_loss_and_sampler_give():
  made = model()
  shapes = jax.eval_shape(made.init, jax.random.key(0))[0]
  params = moved(jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes))
  loss = made.loss(params, {}, jax.random.key(1), BATCH, train=True)
  assert np.isfinite(loss.values).all()
  keys, condition = rng.sample_keys(0, BATCH.index), Condition(BATCH.label)
  for guidance in (Guidance(), Guidance(2.0, interval_high=2.0)):
    draws = [
      np.asarray(model(sampler=OneStep(end), guidance=guidance).sample(params, keys, condition)[0])
      for end in (0.0, 0.5)
    ]
    assert np.abs(draws[0] - draws[1]).max() > 1e-4
  xt, t = jnp.ones((NUM, 2, 2, 1)), jnp.full(NUM, 0.5)
  assert made.denoise(params, xt, t, condition._replace(end_time=t)).shape == xt.shape


def test_estimators_of_one_time_are_left_out():
  assert not model().likelihoods
  assert "loss_by_log_snr" not in model().capabilities


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"loss": Simple()}, r"network MLP needs a second time .*, and the loss Simple gives none"),
    ({"sampler": Euler()}, "network MLP needs a second time .*, and the sampler Euler gives none"),
    ({"model": MLP()}, "the loss HalfWay gives a second time .*, and the network MLP takes none"),
    ({"model": MLP(), "loss": Simple()}, "the sampler OneStep gives a second time"),
    ({"model": Ignorant()}, "conditional=true` needs a network that takes label, and Ignorant ta"),
  ],
)
def test_what_does_not_fit_is_refused_when_the_model_is_made(changes, words):
  with pytest.raises(ValueError, match=words) as raised:
    model(**changes)
  assert "\n" not in str(raised.value)


def test_the_audit_serves_a_sampler_that_gives_a_second_time():
  rows = list(audit_samplers({"one_step": OneStep}))
  assert rows
  assert not any("raised" in row.quantity for row in rows)
