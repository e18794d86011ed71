"""The four small convolutions against the doubled image, in values and in every derivative."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_draws import normal

from diffusion_jax.kernels.upsampled_conv import plain_upsampled_conv, upsampled_conv


def random(shape, seed, dtype=jnp.float64):
  return jnp.asarray(np.asarray(normal(seed, *shape), dtype))


@pytest.mark.parametrize("shape", [(2, 4, 4, 3), (1, 1, 1, 2), (3, 5, 2, 4)])
def test_equal_to_the_plain_form(shape):
  with jax.enable_x64(True):
    x, kernel = random(shape, 0), random((3, 3, shape[-1], 5), 1)
    made, expected = (jax.jit(c)(x, kernel) for c in (upsampled_conv, plain_upsampled_conv))
    assert made.shape == (shape[0], 2 * shape[1], 2 * shape[2], 5)
    np.testing.assert_allclose(made, expected, rtol=1e-12, atol=1e-12)


def test_derivatives_of_both_modes_and_the_second_order():
  with jax.enable_x64(True):
    x, kernel = random((2, 3, 4, 3), 0), random((3, 3, 3, 2), 1)
    tangents = random(x.shape, 2), random(kernel.shape, 3)

    @functools.partial(jax.jit, static_argnums=0)
    def results(conv, x, kernel, tangents):
      loss = lambda x, k: jnp.sum(jnp.sin(conv(x, k)))  # noqa: E731
      gradient = jax.grad(loss, argnums=(0, 1))
      return gradient(x, kernel), jax.jvp(conv, (x, kernel), tangents), \
        jax.jvp(gradient, (x, kernel), tangents)  # fmt: skip

    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11),
      *(results(c, x, kernel, tangents) for c in (upsampled_conv, plain_upsampled_conv)),
    )  # fmt: skip


def test_bfloat16_errs_as_the_plain_form_does():
  x, kernel = random((2, 8, 8, 32), 0, jnp.bfloat16), random((3, 3, 32, 32), 1, jnp.bfloat16)
  conv, plain = jax.jit(upsampled_conv), jax.jit(plain_upsampled_conv)
  exact = np.asarray(plain(*(np.asarray(a, np.float32) for a in (x, kernel))))
  made = [c(x, kernel) for c in (conv, plain)]
  errors = [np.std(np.asarray(y, np.float32) - exact) for y in made]
  assert made[0].dtype == jnp.bfloat16
  assert errors[0] < 2 * errors[1]
