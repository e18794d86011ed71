"""One factor and offset a channel against the textbook form, in values and in every derivative."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from diffusion_jax.kernels.group_norm import Modulation, group_norm, plain_group_norm

SHAPE, GROUPS, EPSILON = (2, 3, 4, 12), 3, 1e-5


def arguments(dtype=jnp.float64, modulated=True):
  keys = jax.random.split(jax.random.key(0), 5)
  x = 3.0 + 2.0 * jax.random.normal(keys[0], SHAPE)
  scale, bias = 1 + 0.3 * jax.random.normal(keys[1], (2, SHAPE[-1]))
  vectors = 0.5 * jax.random.normal(keys[2], (2, SHAPE[0], SHAPE[-1]))
  modulation = Modulation(*vectors.astype(dtype)) if modulated else None
  return x.astype(dtype), scale, bias, modulation


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("swish", [False, True])
def test_equal_to_the_plain_form(modulated, swish):
  with jax.enable_x64(True):
    x, scale, bias, modulation = arguments(modulated=modulated)
    made, expected = (
      form(x, scale, bias, GROUPS, EPSILON, modulation, swish)
      for form in (group_norm, plain_group_norm)
    )
    np.testing.assert_allclose(made, expected, rtol=1e-11, atol=1e-11)


def test_derivatives_of_both_modes_and_the_second_order():
  with jax.enable_x64(True):
    args = arguments()
    tangents = jax.tree.map(lambda a: jnp.cos(3 * a), args)

    def results(form):
      apply = lambda x, s, b, m: form(x, s, b, GROUPS, EPSILON, m, True)  # noqa: E731
      gradient = jax.grad(lambda *a: jnp.sum(jnp.sin(apply(*a))), argnums=(0, 1, 2, 3))
      return gradient(*args), jax.jvp(apply, args, tangents), jax.jvp(gradient, args, tangents)

    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9),
      results(group_norm), results(plain_group_norm),
    )  # fmt: skip


def test_the_error_in_float32_is_that_of_flax():
  """Where a group's mean is forty times its deviation, as after a large embedding was added."""
  x = 40.0 + jax.random.normal(jax.random.key(1), (2, 16, 16, 32))
  ones, zeros = jnp.ones(32), jnp.zeros(32)
  with jax.enable_x64(True):
    exact = np.asarray(plain_group_norm(x.astype(jnp.float64), ones, zeros, 8, 1e-6))
  flax = nn.GroupNorm(8, epsilon=1e-6)
  theirs = flax.apply({"params": {"scale": ones, "bias": zeros}}, x)
  ours = group_norm(x, ones, zeros, 8, 1e-6)
  errors = [np.abs(np.asarray(y, np.float64) - exact).max() for y in (ours, theirs)]
  assert errors[0] < 2 * errors[1] < 1e-2


def test_bfloat16_is_rounded_once():
  x, scale, bias, modulation = arguments(jnp.bfloat16)
  made = group_norm(x, scale, bias, GROUPS, EPSILON, modulation, True)
  high = x.astype(jnp.float32), scale, bias, jax.tree.map(lambda v: v.astype("float32"), modulation)
  exact = plain_group_norm(*high[:3], GROUPS, EPSILON, high[3], True)
  assert made.dtype == jnp.bfloat16
  np.testing.assert_allclose(made.astype(jnp.float32), exact, rtol=2**-8, atol=1e-5)


def test_the_backward_pass_keeps_the_input_and_what_a_channel_has():
  x, scale, bias, modulation = arguments(jnp.float32)
  apply = lambda x: group_norm(x, scale, bias, GROUPS, EPSILON, modulation, True)  # noqa: E731
  _, pullback = jax.vjp(apply, x)
  kept = [leaf.shape for leaf in jax.tree.leaves(pullback) if leaf.size >= x.size]
  assert len(kept) <= 2, kept  # the input, for the statistics and for the activation


@pytest.mark.parametrize("swish", [False, True])
def test_constant_images_stay_finite(swish):
  x, scale, bias, _ = arguments(jnp.float32)
  loss = lambda x: group_norm(x, scale, bias, GROUPS, EPSILON, None, swish).sum()  # noqa: E731
  assert np.isfinite(jax.grad(loss)(jnp.full_like(x, 7.0))).all()
