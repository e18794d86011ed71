"""Coefficients and reductions for examples of any shape."""

import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.core.broadcasting import expand, mean_dims, sum_dims


@pytest.mark.parametrize("shape", [(), (2,), (4, 4, 3), (2, 3, 4, 5)])
def test_numbers_of_examples_meet_data_of_any_shape(shape):
  x = np.random.default_rng(0).normal(size=(3, *shape)).astype(np.float32)
  scaled = expand(np.float32([1, 10, 100]), x) * x
  for i, factor in enumerate((1, 10, 100)):
    np.testing.assert_array_equal(scaled[i], np.float32(factor) * x[i])
  np.testing.assert_allclose(sum_dims(jnp.asarray(x)), [v.sum() for v in x], atol=1e-5)
  np.testing.assert_allclose(mean_dims(jnp.asarray(x)), [v.mean() for v in x], atol=1e-5)
