"""What the metrics take for features: arrays and lists of numbers, and nothing else."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import metrics
from diffusion_jax.metrics.feature_arrays import feature_table

ROWS = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
GAUSSIAN = (np.zeros(3), np.eye(3))
CALLS = {
  "frechet_distance": lambda f, x: f(x, ROWS),
  "kernel_distance": lambda f, x: f(x, ROWS, 3, 20),
  "precision_recall": lambda f, x: f(ROWS, x),
  "density_coverage": lambda f, x: f(ROWS, x),
  "nearest": lambda f, x: f(x, ROWS),
  "copying": lambda f, x: f(x, ROWS, ROWS),
  "inception_score": lambda f, x: f(x, 5),
  "frechet_infinity": lambda f, x: f(x, *GAUSSIAN),
  "frechet_standard_error": lambda f, x: f(x, *GAUSSIAN),
}
"""Name -> call of a public function with one side given."""


def called(name, features):
  """Call a function as a user's program does, without the type checks of the tests."""
  return CALLS[name](inspect.unwrap(getattr(metrics, name)), features)


@pytest.mark.parametrize("name", CALLS)
def test_lists_and_other_arrays_are_the_same_features(name):
  expected = called(name, ROWS)
  for same in (ROWS.tolist(), jnp.asarray(ROWS), ROWS.astype(np.float64)):
    found = called(name, same)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, expected)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(
  "wrong", ["x", None, 3.0, [[1.0], [2.0, 3.0]], [["a", "b"]], {"x": 1}, 1j * ROWS, ROWS[:, 0]]
)
def test_what_is_no_table_of_numbers_is_one_sentence(name, wrong):
  with pytest.raises(ValueError, match=r"must be an? (array of real numbers|table)") as error:
    called(name, wrong)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("wrong", [ROWS * np.nan, ROWS[:0], ROWS[:, :2]])
def test_what_does_not_fit_is_one_sentence(name, wrong):
  if name == "inception_score" and wrong.shape == (40, 2):
    return  # logits have no other side
  with pytest.raises(ValueError, match=r"not finite|are too few|same extractor"):
    called(name, wrong)


def test_a_reference_of_lists_is_one_too():
  found = inspect.unwrap(metrics.frechet_standard_error)(ROWS, [0, 0, 0], np.eye(3).tolist())
  assert found == metrics.frechet_standard_error(ROWS, *GAUSSIAN)
  with pytest.raises(ValueError, match="reference covariance must be an array of real numbers"):
    inspect.unwrap(metrics.frechet_infinity)(ROWS, np.zeros(3), None)


def test_integers_and_short_floats_are_numbers():
  assert feature_table([[1, 2], [3, 4]], "samples").dtype == np.float64
  short = feature_table(jnp.ones((2, 2), jnp.bfloat16), "samples")
  assert short.dtype == np.float32


def test_sides_that_differ_are_named():
  with pytest.raises(ValueError, match=r"3 .*\(samples\) against 2 \(reference features\): both"):
    metrics.kernel_distance(ROWS, ROWS[:, :2])
  with pytest.raises(ValueError, match=r"3 .*\(samples\) against 2 \(training features\): both"):
    metrics.copying(ROWS, ROWS[:, :2], ROWS)
  with pytest.raises(ValueError, match=r"2 .*\(samples\) against 3 \(reference features\): both"):
    metrics.precision_recall(ROWS, ROWS[:, :2])
  with pytest.raises(ValueError, match="1 images of features2 are too few"):
    metrics.frechet_distance(ROWS, ROWS[:1])
