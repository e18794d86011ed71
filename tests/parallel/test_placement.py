"""The table of `parallel.platforms` decides which form of a kernel is traced, by its devices."""

import types
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from numpy_draws import normal

from diffusion_jax.kernels import attention, group_norm, pointwise, upsampled_conv
from diffusion_jax.parallel import placement, platforms

VECTORS = group_norm.Modulation(*(np.float32(0.3) * normal(5, 2, 1, 4)))
IMAGE = normal(0, 1, 2, 2, 4)
CASES = {
  "group_norm": (
    lambda form: lambda x, scale: form(x, scale, scale, 2, 1e-5, VECTORS, True),
    (group_norm.group_norm, group_norm.plain_group_norm),
    (IMAGE, normal(1, 4)),
  ),
  "upsampled_conv": (
    lambda form: lambda x, kernel: form(x, kernel),  # JAX keeps the trace of a known function
    (upsampled_conv.upsampled_conv, upsampled_conv.plain_upsampled_conv),
    (IMAGE, normal(1, 3, 3, 4, 2)),
  ),
  "pointwise": (
    lambda form: lambda x, kernel: form(x, kernel),  # JAX keeps the trace of a known function
    (pointwise.pointwise, pointwise.plain_pointwise),
    (IMAGE, normal(1, 4, 3)),
  ),
}


def placed(platform):
  """A mesh of one device, of which only the platform is asked."""
  device = types.SimpleNamespace(platform=platform)
  return placement.placed_on(mock.Mock(spec=Mesh, devices=np.array([device], object)))


def traced(kernel, number):
  called, forms, arrays = CASES[kernel]
  return str(jax.make_jaxpr(called(forms[number]))(*arrays))


def test_every_kernel_with_two_forms_is_in_the_table():
  assert set(platforms.PLAIN_FORM_ON) == set(CASES)
  assert set().union(*platforms.PLAIN_FORM_ON.values()) <= {"cpu", "gpu", "tpu"}


@pytest.mark.parametrize("kernel", CASES)
def test_a_form_that_is_off_on_a_platform_is_plain_there_only(kernel, monkeypatch):
  faster, plain = traced(kernel, 0), traced(kernel, 1)
  monkeypatch.setitem(platforms.PLAIN_FORM_ON, kernel, frozenset({"gpu"}))
  assert traced(kernel, 0) == faster != plain
  with placed("cuda"):
    assert traced(kernel, 0) == plain
  with placed("tpu"):
    assert traced(kernel, 0) == faster


@pytest.mark.parametrize("kernel", CASES)
def test_both_forms_agree_in_value_and_gradient(kernel, monkeypatch):
  called, forms, arrays = CASES[kernel]
  apply = called(forms[0])
  both = jax.value_and_grad(lambda *a: jnp.sin(apply(*a)).sum(), argnums=(0, 1))
  found = both(*arrays)
  monkeypatch.setitem(platforms.PLAIN_FORM_ON, kernel, frozenset({"cpu"}))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, both(*arrays)
  )


def test_the_plain_norm_computes_in_float32_and_keeps_the_type():
  x, scale = (jnp.asarray(a, jnp.bfloat16) for a in (100 + IMAGE, normal(1, 4)))
  made = group_norm.plain_group_norm(x, scale, scale, 2, 1e-5)
  exact = group_norm.plain_group_norm(x.astype(jnp.float32), scale, scale, 2, 1e-5)
  assert made.dtype == jnp.bfloat16
  np.testing.assert_allclose(made.astype(jnp.float32), exact, rtol=2**-8, atol=1e-5)


def test_attention_asks_the_same_platform():
  query = jnp.zeros((1, 8, 8))
  with placed("tpu"), pytest.raises(attention.UserError, match="of 'tpu'"):
    attention.attend(query, query, query, 1, "cudnn")
