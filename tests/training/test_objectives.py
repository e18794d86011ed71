"""Steps with several objectives: each trains its own parameters, with its own optimizer."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from steps import begin

from diffusion_jax.checkpoints.leaves import named_leaves
from diffusion_jax.generative import ModelBase
from diffusion_jax.training.ema import EMA
from diffusion_jax.training.objectives import trained_objectives
from diffusion_jax.training.optimizers import Adam
from diffusion_jax.training.step import Training
from diffusion_jax.types import Batch, LossOutput, Objective

LIMIT = 0.01
OPTIMIZERS = {
  "optimizer": Adam(learning_rate=0.1, clip_norm=None),
  "critic_optimizer": Adam(learning_rate=0.01, clip_norm=LIMIT),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Adversaries(ModelBase):
  """An encoder and a decoder that fit the data, and a critic that fits their output."""

  @property
  def objectives(self):
    return (
      Objective("reconstruction", self.loss, ("encoder", "decoder")),
      Objective("critic", self.critic_loss, ("critic",), "critic_optimizer"),
    )

  def init(self, key):
    params = {"encoder": {"a": jnp.float32(1)}, "decoder": {"b": jnp.float32(2)}}
    return {**params, "critic": {"c": jnp.float32(3)}}, {
      "reconstruction": {},
      "critic": jnp.int32(0),
    }

  def _made(self, params, batch):
    return params["encoder"]["a"] * params["decoder"]["b"] * batch.image[:, 0, 0, 0]

  def loss(self, params, loss_state, key, batch, **_):
    error = self._made(params, batch) - batch.image[:, 0, 0, 0] + params["critic"]["c"]
    return LossOutput(0.5 * error**2, {"error": error}, loss_state)

  def critic_loss(self, params, loss_state, key, batch, **_):
    error = params["critic"]["c"] - self._made(params, batch)
    return LossOutput(0.5 * error**2, {}, loss_state + 1)


class Averaging(Adversaries):
  """One objective that pulls its parameter towards its average's negative."""

  needs_average = True

  @property
  def objectives(self):
    return (Objective("loss", self.loss),)

  def init(self, key):
    return {"w": jnp.float32(1.0)}, {}

  def loss(self, params, loss_state, key, batch, *, average, **_):
    values = params["w"] * average["w"] + 0 * batch.image[:, 0, 0, 0]
    return LossOutput(values, {"average": values * 0 + average["w"]}, loss_state)


def batch(values):
  image = np.asarray(values, np.float32).reshape(-1, 1, 1, 1)
  num = len(image)
  return Batch(image, np.zeros(num, np.int32), np.ones(num, np.float32),
               np.arange(num, dtype=np.uint32))  # fmt: skip


@functools.cache
def two_steps(accumulation_steps=1):
  training = Training(num_steps=10, batch_size=4, accumulation_steps=accumulation_steps)
  state, step = begin(Adversaries(), OPTIMIZERS, training, ema=EMA(0.5))
  before = jax.device_get(state)
  state, scalars = step(state, batch([1, 2, 3, 4]))
  return before, jax.device_get(state), jax.device_get(scalars)


def test_each_objective_moves_its_own_parameters_by_its_own_rate():
  """Adam's first step is the learning rate, against the gradient's sign."""
  _, after, scalars = two_steps()
  np.testing.assert_allclose(after.params["encoder"]["a"], 1 - 0.1, rtol=1e-5)
  np.testing.assert_allclose(after.params["decoder"]["b"], 2 - 0.1, rtol=1e-5)
  made = 2 * np.arange(1, 5)
  np.testing.assert_allclose(after.params["critic"]["c"], 3 + 0.01, rtol=1e-5)
  assert scalars["learning_rate"] == np.float32(0.1)
  assert scalars["critic/learning_rate"] == np.float32(0.01)
  np.testing.assert_allclose(scalars["critic/loss"], np.mean(0.5 * (3 - made) ** 2), rtol=1e-6)
  np.testing.assert_allclose(scalars["error"], np.mean(made - made / 2 + 3), rtol=1e-6)


def test_one_groups_gradient_does_not_touch_the_other():
  """The critic is in the first loss and the autoencoder in the second: neither is in the moments,
  which are those of each loss's derivative in its own parameters, clipped for each by itself."""
  _, after, scalars = two_steps()
  moments = {n: v for n, v in named_leaves(after.opt_state).items() if "/mu/" in n}
  assert set(moments) == {
    "reconstruction/0/mu/encoder/a", "reconstruction/0/mu/decoder/b", "critic/0/mu/critic/c",
  }  # fmt: skip
  x = np.arange(1.0, 5.0)
  error = 2 * x - x + 3
  np.testing.assert_allclose(moments["reconstruction/0/mu/encoder/a"], 0.1 * np.mean(error * 2 * x))
  np.testing.assert_allclose(moments["reconstruction/0/mu/decoder/b"], 0.1 * np.mean(error * x))
  np.testing.assert_allclose(scalars["critic/grad_norm"], abs(np.mean(3 - 2 * x)), rtol=1e-6)
  np.testing.assert_allclose(moments["critic/0/mu/critic/c"], -0.1 * LIMIT, rtol=1e-5)


def test_averages_hold_all_groups_and_each_loss_has_its_state():
  before, after, _ = two_steps()
  for name, start in (("encoder", 1.0), ("critic", 3.0)):
    (new,) = after.params[name].values()
    (mean,) = after.ema[name].values()
    np.testing.assert_allclose(mean, 0.5 * start + 0.5 * new, rtol=1e-6)
  assert before.aux["critic"] == 0
  assert after.aux["critic"] == 1


def test_accumulation_has_the_gradients_of_the_whole_batch():
  whole, parts = two_steps(), two_steps(2)
  for a, b in zip(jax.tree.leaves(whole[1].params), jax.tree.leaves(parts[1].params), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-6)
  np.testing.assert_allclose(parts[2]["critic/grad_norm"], whole[2]["critic/grad_norm"], rtol=1e-6)


def test_where_one_objective_is_not_finite_neither_is_updated():
  """The critic's loss overflows at 1e25, the other group's gradient too: all stay as they are."""
  state, step = begin(Adversaries(), OPTIMIZERS, Training(num_steps=10, batch_size=4))
  before = jax.device_get(state)
  state, scalars = step(state, batch([1e25, 0, 0, 0]))
  after = jax.device_get(state)
  for name in ("params", "opt_state", "aux", "offsets"):
    same = jax.tree.map(np.array_equal, getattr(before, name), getattr(after, name))
    assert all(jax.tree.leaves(same)), name
  assert scalars["num_skipped"] == after.step == 1


def test_a_loss_that_asks_for_it_is_given_the_average():
  state, step = begin(Averaging(), Adam(0.1, clip_norm=None), Training(num_steps=5), ema=EMA(0.5))
  found = []
  for _ in range(3):
    found.append(float(state.ema["w"]))
    state, scalars = step(state, batch([0, 0]))
    assert scalars["average"] == np.float32(found[-1])
  assert found[0] > found[1] > found[2]


class Bad(Adversaries):
  def __init__(self, *objectives):
    object.__setattr__(self, "given", objectives)

  @property
  def objectives(self):
    return tuple(Objective(name, self.loss, group, *rest) for name, group, *rest in self.given)


@pytest.mark.parametrize(
  ("objectives", "words"),
  [
    ([("a", ("x",)), ("a", ("y",))], "need different names"),
    ([("a", ("x",)), ("b", ("x",))], "must train different parameters"),
    ([("a", ("x",)), ("b", ())], "must train different parameters"),
    ([("a", ("x",), "critic_optimizer")], "lacks critic_optimizer"),
  ],
)
def test_objectives_that_do_not_fit_are_refused(objectives, words):
  with pytest.raises(ValueError, match=words):
    trained_objectives(Bad(*objectives), Adam())
