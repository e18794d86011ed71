"""The multilayer perceptron: its arithmetic, what it is told, and what it refuses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_draws import moved, normal

from diffusion_jax.models import MLP, NETWORKS
from diffusion_jax.types import Condition, ImageSpec

SPEC = ImageSpec(2, 3, 2, 256, 3)
TINY = MLP(hidden=8, depth=2, dropout=0.3)
X, TIME, LABELS = normal(5, 3, 2, 3, 2), np.float32([100, 500, 900]), np.asarray([0, 1, 3])


@pytest.fixture(scope="module")
def tiny():
  network = TINY.create(SPEC, 4)
  return jax.jit(network.apply), jax.jit(network.init)(jax.random.key(0))


def test_it_is_in_the_registry_and_starts_at_zero(tiny):
  apply, params = tiny
  assert NETWORKS["mlp"] is MLP
  out = apply(params, X, TIME, Condition(LABELS))
  assert out.shape == X.shape
  assert not out.any()


def test_the_output_is_that_of_its_products_written_down(tiny):
  apply, params = tiny
  p = jax.tree.map(np.float64, moved(params, 0.3))
  swish = lambda x: x / (1 + np.exp(-x))  # noqa: E731
  dense = lambda name, x: x @ p[name]["kernel"] + p[name]["bias"]  # noqa: E731
  angle = TIME[:, None] * np.exp(-np.log(1e4) * np.arange(4) / 3)
  condition = swish(dense("time", np.concatenate([np.sin(angle), np.cos(angle)], 1)))
  condition = condition + p["label"]["embedding"][LABELS]
  h = dense("in", X.reshape(3, -1))
  for i in range(2):
    branch = swish(dense(f"block{i}_in", h) + dense(f"block{i}_condition", condition))
    h = h + dense(f"block{i}_out", branch)
  exact = dense("out", swish(h)).reshape(X.shape)
  assert np.abs(exact).min() > 0
  np.testing.assert_allclose(
    apply(moved(params, 0.3), X, TIME, Condition(LABELS)), exact, atol=2e-4
  )


def test_time_and_label_matter_and_examples_do_not_mix(tiny):
  apply, params = tiny
  params = moved(params)
  out = np.asarray(apply(params, X, TIME, Condition(LABELS)))
  for other in (
    apply(params, X, np.float32([100, 550, 900]), Condition(LABELS)),
    apply(params, X, TIME, Condition(np.asarray([0, 2, 3]))),
    apply(params, X * np.float32([1, 2, 1])[:, None, None, None], TIME, Condition(LABELS)),
  ):
    changed = np.abs(np.asarray(other) - out).max((1, 2, 3)) > 1e-4
    assert changed.tolist() == [False, True, False]


def test_dropout_acts_only_with_a_key_and_bfloat16_is_near(tiny):
  apply, params = tiny
  params = moved(params)
  out = apply(params, X, TIME, Condition(LABELS))
  assert np.abs(apply(params, X, TIME, Condition(LABELS), jax.random.key(1)) - out).max() > 1e-3
  half = jax.jit(dataclasses.replace(TINY, dtype="bfloat16").create(SPEC, 4).apply)
  rough = half(params, X, TIME, Condition(LABELS))
  assert rough.dtype == jnp.float32
  assert 1e-5 < np.abs(rough - out).max() / np.abs(out).max() < 0.1


def test_learned_variances_double_the_channels():
  network = MLP(hidden=8, depth=1, learned_variance=True).create(SPEC, 0)
  params = jax.eval_shape(network.init, jax.random.key(0))
  assert jax.eval_shape(network.apply, params, X, TIME).shape == (3, 2, 3, 4)


@pytest.mark.parametrize("fields", [{"hidden": 5}, {"depth": 0}, {"dropout": 1.0}])
def test_impossible_networks_are_refused(fields):
  with pytest.raises(ValueError, match=next(iter(fields))):
    MLP(**fields)
