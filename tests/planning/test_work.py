"""FLOPs and bytes of compiled programs whose answers are known."""

import jax
import jax.numpy as jnp
import pytest

from diffusion_jax.planning import hlo
from diffusion_jax.planning.compiled import memory_of, take_apart
from diffusion_jax.planning.work import work

ON_CHIP = """HloModule jit_f

ENTRY %main (a: f32[100]) -> f32[100] {
  %a = f32[100]{0:T(256)} parameter(0)
  %cs = (f32[100]{0:T(256)S(1)}, f32[100]{0:T(256)}, u32[]{:S(2)}) copy-start(%a)
  %cd = f32[100]{0:T(256)S(1)} copy-done(%cs)
  %n = f32[100]{0:T(256)S(1)} negate(%cd)
  ROOT %out = f32[100]{0:T(256)} exponential(%n)
}
"""


def compiled(function, *shapes):
  args = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
  return jax.jit(function).lower(*args).compile()


def test_a_matrix_product_costs_two_flops_a_term():
  done, sent = take_apart(compiled(jnp.matmul, (64, 128), (128, 256)))
  assert done.flops == 2 * 64 * 128 * 256
  assert sent == []


def test_a_loop_of_products_costs_each_of_them():
  def function(x, w):
    return jax.lax.scan(lambda c, _: (c @ w, None), x, length=7)[0]

  program = compiled(function, (64, 64), (64, 64))
  assert program.cost_analysis()["flops"] < 1.1 * 2 * 64**3  # XLA counts the body once
  assert take_apart(program)[0].flops == pytest.approx(7 * 2 * 64**3, rel=0.01)


def test_products_outside_the_loop_are_not_multiplied():
  def function(x, w):
    return jax.lax.scan(lambda c, _: (c @ w, None), x @ w @ w @ w, length=5)[0]

  done, _ = take_apart(compiled(function, (64, 64), (64, 64)))
  assert done.flops == pytest.approx((3 + 5) * 2 * 64**3, rel=0.01)


def test_a_convolution_in_a_loop():
  def function(x, kernel):
    def step(c, _):
      out = jax.lax.conv_general_dilated(
        c, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
      )
      return jnp.pad(out, ((0, 0), (1, 1), (1, 1), (0, 0))), None

    return jax.lax.scan(step, x, length=4)[0]

  done, _ = take_apart(compiled(function, (2, 16, 16, 8), (3, 3, 8, 8)))
  assert done.flops == pytest.approx(4 * 2 * (2 * 14 * 14 * 8) * (3 * 3 * 8), rel=0.02)


def test_bytes_of_a_loop_are_counted_each_time():
  def function(x):
    return jax.lax.scan(lambda c, _: (jnp.sin(c), None), x, length=10)[0]

  program = compiled(function, (100_000,))
  done, _ = take_apart(program)
  assert done.accessed_bytes >= 10 * 2 * 400_000
  assert done.accessed_bytes < 14 * 2 * 400_000  # the loop, and copies around it


def test_on_chip_memory_is_no_memory_traffic():
  """Of 400 bytes read and written by each of three instructions, three lie on the chip."""
  module = hlo.parse_hlo(ON_CHIP)
  runs, unknown = hlo.count_runs(module)
  done = work(module, runs, unknown, 0.0, 2404.0)
  assert done.accessed_bytes == 2404
  assert done.memory_bytes == pytest.approx(2404 * 804 / 2404)


def test_the_peak_counts_what_is_written_over_once():
  shape = (1000, 1000)
  step = jax.jit(lambda x: x + 1, donate_argnums=0)
  memory = memory_of(step.lower(jax.ShapeDtypeStruct(shape, jnp.float32)).compile())
  assert (memory.arguments, memory.outputs, memory.aliased) == (4_000_000,) * 3
  assert memory.peak == 4_000_000 + memory.temporaries + memory.code
