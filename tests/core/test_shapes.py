"""What a function of the caller returned is said with what was needed."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.core import rng
from diffusion_jax.core.shapes import describe_value, float_array, per_example


@pytest.mark.parametrize(
  ("value", "words"),
  [
    (np.zeros((8, 2), np.float32), "float32[8,2]"),
    (jnp.zeros((), jnp.bfloat16), "bfloat16[]"),
    ((jnp.zeros(3), None), "tuple (float32[3], None)"),
    (None, "None"),
    (1.5, "float"),
    (jax.random.key(0), "key[]"),
  ],
)
def test_a_value_is_described_by_its_shape_and_type(value, words):
  assert describe_value(value) == words


def test_half_precision_becomes_float32_and_wider_floats_stay():
  assert float_array(jnp.ones((8, 2), jnp.bfloat16), (8, 2), "denoise").dtype == jnp.float32
  assert float_array(np.ones((8, 2)), (8, 2), "denoise").dtype == np.float64
  assert float_array(np.ones((8, 2)), (8, 2), "network", jnp.float32).dtype == np.float32


@pytest.mark.parametrize(
  "value", [np.ones((8, 1), np.float32), np.ones(2, np.float32), np.ones((8, 2), int), None, 1.0]
)
def test_what_broadcasting_would_hide_is_refused(value):
  line = f"network returned {describe_value(value)}; needed float32[8,2]"
  with pytest.raises(ValueError, match=re.escape(line)):
    float_array(value, (8, 2), "network")


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.int32, bool])
def test_values_per_example_are_single_precision(dtype):
  per_example(jnp.zeros(8), 8, "loss")
  with pytest.raises(ValueError, match=r"needed float32\[8\], one value per example"):
    per_example(jnp.zeros(8, dtype), 8, "loss")


@pytest.mark.parametrize(
  ("key", "line"),
  [
    (
      jax.random.PRNGKey(0),
      r"key=uint32\[2\], an old-style key: it must be made by jax.random.key",
    ),
    (0, r"key=0: it must be made by jax.random.key\(0\)"),
    (None, "key=None"),
  ],
)
def test_a_key_of_another_kind_says_how_to_make_one(key, line):
  with pytest.raises(ValueError, match=line):
    rng.check_typed(key)


@pytest.mark.parametrize(
  ("keys", "line"),
  [
    (jax.random.key(0), "keys: one key for 8 examples; give one per example"),
    (jax.random.split(jax.random.key(0), 3), r"keys of shape \(3,\) for 8 examples"),
  ],
)
def test_another_number_of_keys_is_said(keys, line):
  with pytest.raises(ValueError, match=line):
    rng.check_one_per_example(keys, 8)
