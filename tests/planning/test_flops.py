"""FLOPs of traced functions against closed forms; nothing is compiled.

A multiplication with its addition is 2 FLOPs, as in the counter; published figures of networks are
in multiplications (1 each) and include products with the zeros of a border.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import pallas as pl
from jax.sharding import AxisType, PartitionSpec

from diffusion_jax.kernels import attention
from diffusion_jax.kernels.attention import attend
from diffusion_jax.planning.flops import Count, count_flops, without_recomputation


def shaped(*shapes):
  return [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]


def counted(function, *shapes):
  return count_flops(jax.make_jaxpr(function)(*shaped(*shapes)))


def flops(function, *shapes):
  count = counted(function, *shapes)
  assert count.unknown == ()
  return count.flops


def total(function):
  """The sum of a function's squares, whose gradient depends on every result."""
  return lambda *args: jnp.sum(function(*args) ** 2)


def real_taps(size, kernel, stride, padding, spread, dilation):
  """Multiply a row of ones, with the zeros that are put around and between them, by ones."""
  row = np.zeros((size - 1) * spread + 1)
  row[::spread] = 1
  cut = slice(max(-padding[0], 0), len(row) - max(-padding[1], 0))
  row = np.pad(row[cut], [max(side, 0) for side in padding])
  reach = (kernel - 1) * dilation + 1
  starts = range(0, len(row) - reach + 1, stride)
  return int(sum(row[start : start + reach : dilation].sum() for start in starts))


@pytest.mark.parametrize(
  ("stride", "padding", "spread", "dilation", "groups"),
  [
    ((1, 1), ((1, 1), (1, 1)), (1, 1), (1, 1), 1),
    ((1, 1), ((0, 0), (0, 0)), (1, 1), (1, 1), 1),
    ((2, 2), ((0, 1), (0, 1)), (1, 1), (1, 1), 1),
    ((3, 2), ((1, 1), (2, 0)), (1, 1), (1, 1), 1),
    ((1, 1), ((2, 2), (3, 3)), (1, 1), (2, 3), 1),
    ((1, 1), ((2, 1), (1, 2)), (2, 3), (1, 1), 1),
    ((2, 1), ((2, 2), (1, 1)), (3, 1), (1, 2), 1),
    ((1, 1), ((1, 1), (1, 1)), (1, 1), (1, 1), 2),
    ((2, 2), ((1, 0), (0, 1)), (1, 1), (2, 1), 6),
    ((1, 1), ((-1, 2), (2, -1)), (1, 1), (1, 1), 1),
  ],
)
def test_a_convolution_and_each_of_its_gradients(stride, padding, spread, dilation, groups):
  """All three multiply the same pairs: an input and a kernel's element, for one output."""
  image, kernel = (4, 13, 10, 6), (3, 2, 6 // groups, 12)

  def convolution(x, w):
    return lax.conv_general_dilated(
      x, w, stride, padding, spread, dilation, ("NHWC", "HWIO", "NHWC"), groups
    )

  rows = zip(image[1:3], kernel[:2], stride, padding, spread, dilation, strict=True)
  products = math.prod(real_taps(*row) for row in rows) * 4 * 6 * 12 // groups
  assert flops(convolution, image, kernel) == 2 * products
  for argument in (0, 1):
    gradient = jax.grad(total(convolution), argument)
    assert flops(gradient, image, kernel) == 2 * 2 * products  # the value and one gradient


def test_a_convolution_in_closed_form():
  """Of 3 taps along 32 pixels the two at the ends miss; 2x2 blocks meet each pixel once."""

  def convolution(stride, padding, x, w):
    return lax.conv_general_dilated(
      x, w, stride, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )

  same, blocks = (
    functools.partial(convolution, *case) for case in (((1, 1), "SAME"), ((2, 2), "VALID"))
  )
  assert flops(same, (8, 32, 32, 5), (3, 3, 5, 7)) == 2 * 8 * (3 * 32 - 2) ** 2 * 5 * 7
  assert flops(blocks, (8, 32, 32, 5), (2, 2, 5, 7)) == 2 * 8 * 32**2 * 5 * 7


def test_a_kernel_for_each_example_is_a_convolution_for_each_example():
  def convolution(x, w):
    return lax.conv_general_dilated(
      x[None], w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )

  one = flops(convolution, (9, 9, 4), (3, 3, 4, 6))
  many, shapes = jax.vmap(convolution), ((5, 9, 9, 4), (5, 3, 3, 4, 6))
  assert flops(many, *shapes) == 5 * one
  assert flops(jax.grad(total(many), (0, 1)), *shapes) == 3 * 5 * one


def test_matrix_products_and_their_gradients():
  assert flops(jnp.matmul, (3, 4), (4, 5)) == 2 * 3 * 4 * 5
  product = functools.partial(jnp.einsum, "bij,bkj->bik")
  assert flops(product, (7, 3, 4), (7, 5, 4)) == 2 * 7 * 3 * 5 * 4
  gradient = jax.grad(total(product), (0, 1))
  assert flops(gradient, (7, 3, 4), (7, 5, 4)) == 3 * 2 * 7 * 3 * 5 * 4
  assert flops(lambda x: jnp.sin(x) + x.sum(), (9, 9)) == 0


@pytest.mark.parametrize("heads", [1, 4])
def test_attention_has_two_products_of_all_pairs_of_tokens(heads):
  attention = functools.partial(attend, num_heads=heads)
  shapes = [(2, 11, 8)] * 3
  assert flops(attention, *shapes) == 2 * 2 * 2 * 11**2 * 8
  assert flops(jax.grad(total(attention), (0, 1, 2)), *shapes) == 3 * 2 * 2 * 2 * 11**2 * 8


@pytest.mark.parametrize("kernel", ["splash", "cudnn"])
def test_fused_attention_counts_the_scores_that_its_backward_pass_computes_again(
  kernel, monkeypatch
):
  """Two products forwards; backwards five in cuDNN, and in splash seven and a sum of each row."""
  import jax._src.cudnn.fused_attention_stablehlo as cudnn

  monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91100)
  monkeypatch.setattr(cudnn, "check_compute_capability", lambda _: True)
  monkeypatch.setattr(cudnn, "is_cuda_compute_capability_equal", lambda _: False)
  fused = {
    "cudnn": attention._cudnn,
    "splash": lambda *heads: attention._splash_local(*heads, interpret=True),
  }[kernel]
  heads = [jax.ShapeDtypeStruct((2, 256, 3, 16), jnp.bfloat16)] * 3
  product = 2 * 2 * 3 * 256 * 256 * 16
  assert count_flops(jax.make_jaxpr(fused)(*heads)) == Count(2.0 * product)
  gradient = jax.value_and_grad(total(fused), argnums=(0, 1, 2))
  rows = 2 * 2 * 3 * 256 * 16  # of the output times its cotangent
  backwards = {"cudnn": 5 * product, "splash": 7 * product + rows}[kernel]
  assert count_flops(jax.make_jaxpr(gradient)(*heads)) == Count(2.0 * product + backwards)


def test_products_by_groups_of_rows():
  sizes = jnp.array([3, 5], jnp.int32)
  product = lambda x, w: lax.ragged_dot(x, w, sizes)  # noqa: E731
  assert flops(product, (8, 4), (2, 4, 3)) == 2 * 8 * 4 * 3
  assert flops(jax.grad(total(product), (0, 1)), (8, 4), (2, 4, 3)) == 3 * 2 * 8 * 4 * 3


def looped(x, w):
  return lax.scan(lambda c, _: (jnp.tanh(c @ w), None), x, length=7)[0]


def test_a_scan_counts_every_iteration():
  assert flops(looped, (4, 6), (6, 6)) == 7 * 2 * 4 * 6 * 6
  assert flops(jax.grad(total(looped), (0, 1)), (4, 6), (6, 6)) == 3 * 7 * 2 * 4 * 6 * 6
  twice = lambda x, w: lax.scan(lambda c, _: (looped(c, w), None), x, length=5)[0]  # noqa: E731
  assert flops(twice, (4, 6), (6, 6)) == 5 * 7 * 2 * 4 * 6 * 6


def test_a_while_loop_whose_length_is_written_down():
  step = lambda _, x: x @ x  # noqa: E731
  assert flops(lambda x: lax.fori_loop(0, 5, step, x), (4, 4)) == 5 * 2 * 4**3
  assert flops(lambda x: lax.fori_loop(np.int32(2), jnp.int32(5), step, x), (4, 4)) == 3 * 2 * 4**3
  more = lambda c: (c[0] + 1, c[1] @ c[1])  # noqa: E731
  assert flops(lambda x: lax.while_loop(lambda c: c[0] < 6, more, (0, x)), (4, 4)) == 6 * 2 * 4**3


@pytest.mark.parametrize(
  ("keep", "change"),
  [
    (lambda c: c[1].sum() < 5, lambda c: (c[0] + 1, c[1] @ c[1])),
    (lambda c: c[0] < 5, lambda c: (c[0] + 2, c[1] @ c[1])),
    (lambda c: c[0] < 5, lambda c: (c[0] * 1, c[1] @ c[1])),
    (lambda c: c[0] <= 5, lambda c: (c[0] + 1, c[1] @ c[1])),
    (lambda c: c[0] < c[1].shape[0] + c[1].sum().astype(int), lambda c: (c[0] + 1, c[1] @ c[1])),
  ],
)
def test_a_while_loop_of_unknown_length_is_named_not_counted_once(keep, change):
  found = counted(lambda x: lax.while_loop(keep, change, (0, x)), (4, 4))
  assert found == Count(0.0, ("a while loop of unknown length",))


def test_a_while_loop_without_products_may_have_any_length():
  assert flops(lambda x: lax.while_loop(lambda c: c.sum() < 5, lambda c: c + 1, x), (4, 4)) == 0


def test_a_conditional_counts_as_its_dearest_branch():
  branches = [lambda x: x, lambda x: x @ x, lambda x: x @ x @ x]
  found = flops(lambda x: lax.switch(x.sum().astype(int), branches, x), (4, 4))
  assert found == 2 * 2 * 4**3


def mlp(x, first, second):
  return jnp.sin(x @ first) @ second


MLP_SHAPES, FIRST, SECOND = ((8, 3), (3, 16), (16, 5)), 2 * 8 * 3 * 16, 2 * 8 * 16 * 5


@pytest.mark.parametrize(
  ("policy", "again"), [(None, FIRST), (jax.checkpoint_policies.dots_saveable, 0)]
)
def test_model_flops_have_nothing_that_rematerialisation_computes_again(policy, again):
  """The second product's result is not needed by the backward pass, so only the first returns."""
  arguments = (0, 1, 2)
  rematted = total(jax.checkpoint(mlp, policy=policy))
  plain = flops(jax.grad(total(mlp), arguments), *MLP_SHAPES)
  assert plain == 3 * (FIRST + SECOND)
  assert flops(jax.grad(rematted, arguments), *MLP_SHAPES) == plain + again
  kept = jax.grad(without_recomputation(rematted), arguments)
  assert flops(kept, *MLP_SHAPES) == plain


def test_rematerialised_blocks_in_a_loop_a_jit_and_a_conditional():
  def deep(x, w):
    block = jax.checkpoint(lambda c: jnp.tanh(jnp.tanh(c @ w) @ w))
    inside = jax.jit(lambda c: lax.cond(c.sum() > 0, block, lambda c: c, c))
    return lax.scan(lambda c, _: (inside(c), None), x, length=3)[0]

  shapes, one = ((4, 6), (6, 6)), 2 * 4 * 6 * 6
  again = flops(jax.grad(total(deep), (0, 1)), *shapes)
  assert flops(jax.grad(without_recomputation(total(deep)), (0, 1)), *shapes) == 3 * 3 * 2 * one
  assert again == (3 * 2 + 2) * 3 * one


def test_the_value_and_gradient_stay_the_same_without_recomputation():
  args = [jnp.asarray(np.random.default_rng(0).normal(size=s), jnp.float32) for s in MLP_SHAPES]
  rematted = total(jax.checkpoint(mlp))
  found = jax.jit(jax.value_and_grad(without_recomputation(rematted)))(*args)
  for a, b in zip(found, jax.jit(jax.value_and_grad(rematted))(*args), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5)


def test_rules_of_custom_derivatives_are_followed():
  """A backward pass of its own that takes three products where the usual one takes two."""

  @jax.custom_vjp
  def product(x, w):
    return x @ w

  def backward(kept, given):
    x, w = kept
    return given @ w.T, x.T @ given @ jnp.eye(w.shape[1])

  product.defvjp(lambda x, w: (x @ w, (x, w)), backward)
  shapes, one = ((3, 4), (4, 5)), 2 * 3 * 4 * 5
  assert flops(product, *shapes) == one
  assert flops(jax.grad(total(product), (0, 1)), *shapes) == 3 * one + 2 * 4 * 5 * 5

  @jax.custom_jvp
  def square(x):
    return x @ x

  square.defjvp(lambda x, t: (square(*x), 2 * x[0] @ t[0]))
  assert flops(square, (4, 4)) == 2 * 4**3
  assert flops(lambda x: jax.jvp(square, (x,), (x,)), (4, 4)) == 2 * 2 * 4**3


def test_a_sharded_function_counts_each_shard():
  mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
  rows, whole = PartitionSpec("data"), PartitionSpec()
  split = jax.shard_map(jnp.matmul, mesh=mesh, in_specs=(rows, whole), out_specs=rows)
  assert flops(split, (16, 4), (4, 5)) == 2 * 16 * 4 * 5
  repeated = jax.shard_map(jnp.matmul, mesh=mesh, in_specs=(whole, whole), out_specs=whole)
  assert flops(repeated, (16, 4), (4, 5)) == 8 * 2 * 16 * 4 * 5


def kernel(estimate):
  def copy(x, out):
    out[...] = x[...]

  shape = jax.ShapeDtypeStruct((4, 4), jnp.float32)
  return pl.pallas_call(copy, out_shape=shape, cost_estimate=estimate, name="copy")


def test_a_pallas_kernel_counts_by_its_estimate():
  estimate = pl.CostEstimate(flops=70, transcendentals=0, bytes_accessed=1)
  many = lambda x: lax.scan(lambda c, _: (kernel(estimate)(c), None), x, length=3)[0]  # noqa: E731
  assert flops(many, (4, 4)) == 210


def foreign(x):
  return jax.ffi.ffi_call("their_product", jax.ShapeDtypeStruct(x.shape, x.dtype))(x)


def elsewhere(x):
  return jax.pure_callback(lambda y: y, jax.ShapeDtypeStruct(x.shape, x.dtype), x)


@pytest.mark.parametrize(
  ("function", "name"),
  [
    (kernel(None), "pallas_call 'copy' without cost_estimate"),
    (foreign, "ffi_call 'their_product'"),
    (elsewhere, "pure_callback"),
    (jnp.linalg.cholesky, "cholesky"),
    (jnp.fft.fft, "fft"),
  ],
)
def test_what_cannot_be_counted_is_named(function, name):
  def among_others(x):
    repeated = lax.scan(lambda c, _: (jnp.real(function(c)), None), x, length=3)[0]
    return lax.cond(x.sum() > 0, lambda c: c, lambda c: c @ repeated, x)

  assert counted(among_others, (4, 4)) == Count(2 * 4**3, (name,))
