"""One product of all pixels against the product over the last axis, in values and derivatives."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from numpy_draws import normal

from diffusion_jax.kernels.pointwise import plain_pointwise, pointwise


@pytest.mark.parametrize("shape", [(3,), (2, 5, 3), (2, 4, 5, 3)])
def test_equal_to_the_plain_form_in_values_and_every_derivative(shape):
  with jax.enable_x64(True):
    draw = lambda seed, *shape: jnp.asarray(np.float64(normal(seed, *shape)))  # noqa: E731
    primals, tangents = ((draw(i, *shape), draw(i + 1, 3, 4)) for i in (0, 2))

    @functools.partial(jax.jit, static_argnums=0)
    def results(product, primals, tangents):
      gradient = jax.grad(lambda x, k: jnp.sum(jnp.sin(product(x, k))), argnums=(0, 1))
      return (
        product(*primals), gradient(*primals),
        jax.jvp(product, primals, tangents), jax.jvp(gradient, primals, tangents),
      )  # fmt: skip

    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12),
      *(results(product, primals, tangents) for product in (pointwise, plain_pointwise)),
    )  # fmt: skip


def test_a_dense_layer_of_flax_is_the_same_with_it():
  x = np.asarray(normal(0, 2, 4, 4, 3), jnp.bfloat16)
  plain, flat = (nn.Dense(5, dtype=jnp.bfloat16, dot_general=p) for p in (None, pointwise))
  expected, params = jax.jit(plain.init_with_output)(jax.random.key(1), x)
  np.testing.assert_array_equal(expected, jax.jit(flat.apply)(params, x))


def test_its_kernel_gradient_transposes_nothing():
  """What it is there for: a transposition takes longer than a tenth of the product itself."""

  def transpositions(product):
    gradient = jax.grad(lambda k, x: jnp.sum(jnp.sin(product(x, k))))
    kernel, x = jnp.zeros((32, 64)), jnp.zeros((4, 8, 8, 32))
    text = jax.jit(gradient).lower(kernel, x).compile().as_text()
    return len(re.findall(r" = \S+ transpose\(", text))

  assert transpositions(plain_pointwise) > transpositions(pointwise) == 0
