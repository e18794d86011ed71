"""Losses of one's own, and losses in a training loop of one's own, on points in the plane."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffusion_jax.auditing.loss_rows import audit_losses
from diffusion_jax.core import rng
from diffusion_jax.core.broadcasting import expand, mean_dims
from diffusion_jax.core.registry import broken_contract
from diffusion_jax.losses import (
  DENOISING_LOSSES,
  VDM,
  DenoisingLoss,
  EDMLoss,
  FlowMatching,
  FullBound,
  Hybrid,
  Loss,
  LossBase,
  Simple,
  WeightedLoss,
)
from diffusion_jax.processes import ContinuousLinearVP, Denoiser, Flow, LinearVP
from diffusion_jax.types import EMPTY, Examples, LossOutput

MEANS = np.float32([[1.0, 0.5], [-1.0, -0.5]])
STD = 0.3
NUM = 4096


def points(num, seed=0):
  """A mixture of two Gaussians in the plane."""
  draws = np.random.default_rng(seed)
  return np.float32(MEANS[draws.integers(0, 2, num)] + STD * draws.normal(size=(num, 2)))


def keys(num=NUM, seed=0):
  return rng.example_keys(jax.random.key(seed), jnp.arange(num))


def affine(params, x, time, condition, dropout_key):
  """A network that is linear in the point, at each of eight times of the process."""
  row = jnp.minimum((8 * time / 999).astype(jnp.int32), 7)
  return jnp.einsum("bij,bj->bi", params["slope"][row], x) + params["shift"][row]


START = {"slope": jnp.zeros((8, 2, 2)), "shift": jnp.zeros((8, 2))}


def test_flow_matching_in_an_own_loop_finds_the_closed_form():
  """Least squares: E[v x'] E[x x']^-1 over each eighth of the times, in closed form."""
  loss, optimizer, x0 = FlowMatching(), optax.adam(0.05), points(NUM)

  def objective(params, keys):
    model = Denoiser(functools.partial(affine, params), Flow(), "velocity")
    return loss(model, Examples(x0), keys).values.mean()

  @jax.jit
  def step(params, state, key):
    grads = jax.grad(objective)(params, rng.example_keys(key, jnp.arange(NUM)))
    updates, state = optimizer.update(grads, state)
    return optax.apply_updates(params, updates), state

  params, state = START, optimizer.init(START)
  for number in range(300):
    params, state = step(params, state, jax.random.key(number))
  second = np.float64(x0).T @ np.float64(x0) / NUM
  covariance = second - np.outer(x0.mean(0), x0.mean(0))
  t = (np.arange(8)[:, None] + (np.arange(100) + 0.5) / 100) / 8
  for row in range(8):
    own = np.mean([(1 - s) ** 2 * covariance + s**2 * np.eye(2) for s in t[row]], axis=0)
    mixed = np.mean([s * np.eye(2) - (1 - s) * covariance for s in t[row]], axis=0)
    np.testing.assert_allclose(params["slope"][row], mixed @ np.linalg.inv(own), atol=0.15)


def test_the_gradient_of_simple_is_the_closed_form():
  """d/da mean |a x_t - eps|^2 / 2 dimensions at a = 0 is -2 E[sigma] for every process."""
  process, x0 = ContinuousLinearVP(), points(NUM)

  @jax.jit
  @jax.grad
  def gradient(scale):
    model = Denoiser(lambda x, *_: scale * x, process)
    return Simple()(model, Examples(x0), keys()).values.mean()

  t = (np.arange(20_000) + 0.5) / 20_000
  expected = -2 * np.mean(process.alpha_sigma(t)[1])
  # E[2 x_t eps] of a dimension; its spread is below 2.
  assert abs(float(gradient(0.0)) - expected) < 4 * 2 / math.sqrt(2 * NUM)


@pytest.mark.costly
@pytest.mark.parametrize("name", DENOISING_LOSSES)
def test_every_loss_takes_points(name):
  """Values, metrics and state of any loss; as for images with the same numbers."""
  loss = DENOISING_LOSSES[name]()
  process = LinearVP(10) if loss.needs_variance else Flow()

  @functools.partial(jax.jit, static_argnums=0)
  def run(shape, keys):
    def network(x, *_):
      twice = jnp.concatenate([0.3 * x, 0.1 * x], axis=-1)
      return twice if loss.needs_variance else 0.3 * x

    prediction = "x0" if loss.needs_variance else "velocity"
    model = Denoiser(network, process, prediction, learned_variance=loss.needs_variance)
    loss_params, state = loss.init(jax.random.key(0)), loss.initial_state(process)
    few = Examples(points(6).reshape(6, *shape))
    return loss(model, few, keys, loss_params=loss_params, state=state).values

  values = np.asarray(run((2,), keys(6)))
  assert values.shape == (6,)
  assert np.isfinite(values).all()
  np.testing.assert_allclose(run((1, 1, 2), keys(6)), values, rtol=1e-5)


# ---- From outside --------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class PseudoHuber(DenoisingLoss):
  """sqrt(|output - target|^2 + c^2) - c (Song and Dhariwal 2023)."""

  c: float = 0.03

  def error(self, model, noised, predicted):
    square = mean_dims(jnp.square(predicted.output - model.target(noised)))
    return jnp.sqrt(square + self.c**2) - self.c


@dataclasses.dataclass(frozen=True)
class Truncated(WeightedLoss):
  """Weight max(SNR, 1) of the x0 error (Salimans and Ho 2022)."""

  def weight(self, process, t):
    return jnp.maximum(jnp.exp(process.log_snr(t)), 1.0)


@dataclasses.dataclass(frozen=True)
class Distillation(LossBase):
  """The teacher's estimate one step nearer to the data as the target, at the same noise."""

  step: float = 0.1

  needs_average = True
  minimised_by_mean = False

  def __call__(self, model, examples, keys, *, average=None, dropout_key=None, **_):
    noised = self.noised(model, examples.x0, keys)
    nearer = model.noised(examples.x0, jnp.maximum(noised.t - self.step, 0.0), noised.eps)
    target = average.predict(nearer, examples.condition).x0
    own = model.predict(noised, examples.condition, dropout_key).x0
    return LossOutput(mean_dims(jnp.square(own - target)))


@dataclasses.dataclass(frozen=True)
class Scaled(EDMLoss):
  """With a learned factor s of the whole loss, L / s + log s, least where s is the mean of L."""

  def init(self, key):
    return {"log_scale": jnp.zeros(())}

  def __call__(self, model, examples, keys, *, loss_params=EMPTY, **options):
    values = super().__call__(model, examples, keys, **options).values
    log_scale = loss_params["log_scale"]
    return LossOutput(values * jnp.exp(-log_scale) + log_scale, {"edm": values})


@dataclasses.dataclass(frozen=True)
class Counting(Simple):
  """Counts the examples that it has seen."""

  def initial_state(self, process):
    return {"seen": jnp.zeros((), jnp.int32)}

  def __call__(self, model, examples, keys, *, state, **options):
    out = super().__call__(model, examples, keys, **options)
    return out._replace(state={"seen": state["seen"] + len(keys)})


OUTSIDE = (PseudoHuber, Truncated, Distillation, Scaled, Counting)


@pytest.mark.parametrize("cls", [*DENOISING_LOSSES.values(), *OUTSIDE])
def test_losses_keep_the_contract(cls):
  assert broken_contract(cls, Loss) is None


@dataclasses.dataclass(frozen=True)
class Weightless(WeightedLoss):
  """Forgets its one method."""


@dataclasses.dataclass(frozen=True)
class Silent:
  """Has nothing."""


@dataclasses.dataclass(frozen=True)
class OldStyle(LossBase):
  """Takes its arguments as losses did once."""

  def __call__(self, network, process, params, keys, x0, labels, dropout_key=None):
    return jnp.zeros(len(x0))


@pytest.mark.parametrize(
  ("cls", "words"),
  [
    (Weightless, r"weight is missing \(.*process, times.*\)"),
    (Silent, r"needs_derivative is missing .*; init is missing .*; __call__ is missing"),
    (OldStyle, r"__call__ must take \(self, model"),
  ],
)
def test_what_is_missing_is_said_when_the_registry_is_read(cls, words):
  found = broken_contract(cls, Loss)
  assert found is not None
  assert re.search(words, found), found
  (row,) = audit_losses({"own": cls})
  assert "does not declare" in row.quantity


def run(loss, scale, average_scale=None, **options):
  """Values where the network is a multiple of x_t, predicting x0 on Flow."""
  multiple = lambda s: Denoiser(lambda x, *_: s * x, Flow(), "x0")  # noqa: E731
  average = None if average_scale is None else multiple(average_scale)
  return loss(multiple(scale), Examples(points(NUM)), keys(), average=average, **options)


def test_pseudo_huber_lies_between_the_root_and_the_square():
  """Far above c it is the distance minus c, far below c half its square over c."""
  square = np.asarray(jax.jit(lambda: run(Simple(), 0.4).values)())
  for c, expected in ((1e-4, np.sqrt(square) - 1e-4), (1e3, square / 2e3)):
    found = jax.jit(lambda c=c: run(PseudoHuber(c), 0.4).values)()
    np.testing.assert_allclose(found, expected, rtol=2e-2, atol=1e-4)


def test_a_loss_is_given_the_averaged_parameters_and_no_gradient_reaches_them():
  """With the linear teacher b x_s its least mean is at a = b E[x_s x_t] / E[x_t^2]."""
  teacher = 0.7

  @jax.jit
  @jax.value_and_grad
  def mean(scales):
    return run(Distillation(), scales[0], jax.lax.stop_gradient(scales[1])).values.mean()

  _, slopes = mean(jnp.float32([0.0, teacher]))
  assert float(slopes[1]) == 0
  t = (np.arange(20_000) + 0.5) / 20_000
  s, second = np.maximum(t - 0.1, 0), np.mean(np.float64(points(NUM)) ** 2)
  shared = np.mean((1 - s) * (1 - t) * second + s * t)
  # at a = 0 the slope is -2 b E[x_s x_t]
  np.testing.assert_allclose(slopes[0], -2 * teacher * shared, rtol=0.05)


def test_parameters_and_state_of_its_own_are_trained_and_carried():
  loss, process = Scaled(), Flow()
  params = loss.init(jax.random.key(0))

  @jax.jit
  @jax.grad
  def slope(params):
    return run(loss, 0.4, loss_params=params).values.mean()

  mean = float(jax.jit(lambda: run(loss, 0.4, loss_params=params).metrics["edm"].mean())())
  np.testing.assert_allclose(slope(params)["log_scale"], 1 - mean, rtol=1e-4)
  np.testing.assert_allclose(slope({"log_scale": jnp.log(mean)})["log_scale"], 0, atol=1e-4)
  counting = Counting()
  state = counting.initial_state(process)
  for _ in range(3):
    state = run(counting, 0.4, state=state).state
  assert int(state["seen"]) == 3 * NUM


@pytest.mark.costly
def test_the_audit_serves_whatever_the_contract_allows():
  """A minimum elsewhere, a loss that is no parabola, parameters and a state of its own."""
  rows = list(audit_losses({cls.__name__: cls for cls in OUTSIDE}))
  assert len(rows) == 4 * len(OUTSIDE)
  assert all(row.passed for row in rows), [row for row in rows if not row.passed]


def test_needs_are_class_attributes_with_defaults():
  for cls, needs in (
    (Simple, set()), (VDM, {"needs_derivative", "needs_levels", "trains_schedule"}),
    (Hybrid, {"needs_variance", "needs_levels"}), (FullBound, {"needs_variance", "needs_levels"}),
    (Distillation, {"needs_average"}),
  ):  # fmt: skip
    names = ("needs_derivative", "needs_variance", "needs_levels", "trains_schedule",
             "needs_average")  # fmt: skip
    assert {name for name in names if getattr(cls, name)} == needs


def test_examples_may_be_arguments_of_a_compiled_step():
  """The number of levels is static, all else is traced; NumPy arrays are taken too."""
  few = Examples(points(3).astype(np.float64), num_levels=17)
  found = jax.jit(lambda examples: (examples.x0 * examples.num_levels, examples))(few)
  np.testing.assert_allclose(found[0], 17 * points(3), rtol=1e-6)
  assert found[1].num_levels == 17
  assert found[1].index is None
  assert expand(jnp.ones(3), few.x0).shape == (3, 1)
