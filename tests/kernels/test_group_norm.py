"""One factor and offset a channel against the textbook form, in values and in every derivative."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from numpy_draws import normal

from diffusion_jax.kernels.group_norm import Modulation, group_norm, plain_group_norm

SHAPE, GROUPS, EPSILON = (2, 3, 4, 12), 3, 1e-5


def arguments(dtype=jnp.float64, modulated=True):
  x = np.asarray(3.0 + 2.0 * normal(0, *SHAPE), dtype)
  scale, bias = np.float32([1.0, 1.0])[:, None] + np.float32(0.3) * normal(1, 2, SHAPE[-1])
  vectors = np.asarray(0.5 * normal(2, 2, SHAPE[0], SHAPE[-1]), dtype)
  modulation = Modulation(*vectors) if modulated else None
  return jax.tree.map(jnp.asarray, (x, scale, bias, modulation))


FORMS = [jax.jit(form, static_argnums=(3, 4, 6)) for form in (group_norm, plain_group_norm)]


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("swish", [False, True])
def test_equal_to_the_plain_form(modulated, swish):
  with jax.enable_x64(True):
    x, scale, bias, modulation = arguments(modulated=modulated)
    made, expected = (form(x, scale, bias, GROUPS, EPSILON, modulation, swish) for form in FORMS)
    np.testing.assert_allclose(made, expected, rtol=1e-11, atol=1e-11)


def test_derivatives_of_both_modes_and_the_second_order():
  with jax.enable_x64(True):
    args = arguments()
    tangents = jax.tree.map(lambda a: jnp.asarray(np.cos(3 * np.asarray(a))), args)

    @functools.partial(jax.jit, static_argnums=0)
    def results(form, args, tangents):
      apply = lambda x, s, b, m: form(x, s, b, GROUPS, EPSILON, m, True)  # noqa: E731
      gradient = jax.grad(lambda *a: jnp.sum(jnp.sin(apply(*a))), argnums=(0, 1, 2, 3))
      return gradient(*args), jax.jvp(apply, args, tangents), jax.jvp(gradient, args, tangents)

    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9),
      results(group_norm, args, tangents), results(plain_group_norm, args, tangents),
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["one mean", "a mean a channel", "an outlier in the first row"])
def test_a_mean_of_a_thousand_deviations_costs_no_accuracy(kind):
  """Value and gradients in float32 against float64 of the same numbers; without an anchor 5%."""
  x = np.float32(0.1) * normal(1, 2, 16, 16, 32)
  x += np.float32(100) * (1 if kind == "one mean" else np.sign(normal(2, 32)) * np.arange(1, 33))
  x[:, 0, 0] += np.float32(5 if kind == "an outlier in the first row" else 0)
  scale, bias = 1 + np.float32(0.3) * normal(3, 32), normal(4, 32)
  vectors = Modulation(*(np.float32(0.3) * normal(5, 2, 2, 32)))

  @functools.partial(jax.jit, static_argnums=0)
  def results(form, args, cotangent):
    value, pull = jax.vjp(lambda *a: form(*a[:3], 32, 1e-6, a[3], True), *args)
    return value, pull(cotangent)

  args, cotangent = (x, scale, bias, vectors), normal(6, *x.shape)
  found = results(group_norm, args, cotangent)
  with jax.enable_x64(True):
    exact = results(plain_group_norm, *jax.tree.map(np.float64, (args, cotangent)))
    exact = jax.tree.map(np.asarray, exact)
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True):
    error = np.sqrt(np.square(np.float64(a) - b).mean() / np.square(b).mean())
    assert error < 2e-6, error


def test_channels_of_a_group_with_other_means_share_its_variance():
  """Groups of four channels 100 apart, with a deviation of 0.1 each."""
  x = 100 * np.arange(32, dtype=np.float32) + np.float32(0.1) * normal(1, 2, 8, 8, 32)
  ones, zeros = np.ones(32, np.float32), np.zeros(32, np.float32)
  with jax.enable_x64(True):
    exact = np.asarray(FORMS[1](x.astype(np.float64), ones, zeros, 8, 1e-6))
  np.testing.assert_allclose(FORMS[0](x, ones, zeros, 8, 1e-6), exact, atol=2e-6)


def test_the_error_in_float32_is_that_of_flax():
  """Where a group's mean is forty times its deviation, as after a large embedding was added."""
  x = 40.0 + normal(1, 2, 16, 16, 32)
  ones, zeros = np.ones(32, np.float32), np.zeros(32, np.float32)
  with jax.enable_x64(True):
    exact = np.asarray(FORMS[1](x.astype(np.float64), ones, zeros, 8, 1e-6))
  flax = nn.GroupNorm(8, epsilon=1e-6)
  theirs = jax.jit(flax.apply)({"params": {"scale": ones, "bias": zeros}}, x)
  ours = FORMS[0](x, ones, zeros, 8, 1e-6)
  errors = [np.abs(np.asarray(y, np.float64) - exact).max() for y in (ours, theirs)]
  assert errors[0] < 2 * errors[1] < 1e-2


def test_bfloat16_is_rounded_once():
  x, scale, bias, modulation = arguments(jnp.bfloat16)
  made = FORMS[0](x, scale, bias, GROUPS, EPSILON, modulation, True)
  high = jax.tree.map(lambda v: np.asarray(v, np.float32), (x, scale, bias, modulation))
  exact = FORMS[1](*high[:3], GROUPS, EPSILON, high[3], True)
  assert made.dtype == jnp.bfloat16
  np.testing.assert_allclose(np.asarray(made, np.float32), exact, rtol=2**-8, atol=1e-5)


def test_the_backward_pass_keeps_the_input_and_what_a_channel_has():
  x, scale, bias, modulation = arguments(jnp.float32)
  apply = lambda x: group_norm(x, scale, bias, GROUPS, EPSILON, modulation, True)  # noqa: E731
  _, pullback = jax.jit(lambda x: jax.vjp(apply, x))(x)
  kept = [leaf.shape for leaf in jax.tree.leaves(pullback) if leaf.size >= x.size]
  assert len(kept) <= 2, kept  # the input, for the statistics and for the activation


@pytest.mark.parametrize("swish", [False, True])
def test_constant_images_stay_finite(swish):
  x, scale, bias, _ = arguments(jnp.float32)
  loss = lambda x: group_norm(x, scale, bias, GROUPS, EPSILON, None, swish).sum()  # noqa: E731
  assert np.isfinite(np.asarray(jax.jit(jax.grad(loss))(np.full(x.shape, 7.0, np.float32)))).all()
