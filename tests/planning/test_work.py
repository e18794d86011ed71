"""Bytes of compiled programs whose answers are known, and calls to libraries in them."""

import jax
import jax.numpy as jnp
import pytest

from diffusion_jax.planning import hlo
from diffusion_jax.planning.compiled import memory_of, take_apart
from diffusion_jax.planning.work import _moved, _moved_outside, work

ON_CHIP = """HloModule jit_f

ENTRY %main (a: f32[100]) -> f32[100] {
  %a = f32[100]{0:T(256)} parameter(0)
  %cs = (f32[100]{0:T(256)S(1)}, f32[100]{0:T(256)}, u32[]{:S(2)}) copy-start(%a)
  %cd = f32[100]{0:T(256)S(1)} copy-done(%cs)
  %n = f32[100]{0:T(256)S(1)} negate(%cd)
  ROOT %out = f32[100]{0:T(256)} exponential(%n)
}
"""


ON_A_GPU = """HloModule jit_f

%body (p: (s32[], f32[8,8])) -> (s32[], f32[8,8]) {
  %p = (s32[], f32[8,8]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[8,8]{1,0} get-tuple-element(%p), index=1
  %two = (f32[8,8]{1,0}, s8[33554432]{0}) custom-call(%x, %x), custom_call_target="__cublas$lt$matmul", backend_config={"gemm_backend_config":{"alpha_real":1}}
  %y = f32[8,8]{1,0} get-tuple-element(%two), index=0
  ROOT %out = (s32[], f32[8,8]{1,0}) tuple(%i, %y)
}

%test (q: (s32[], f32[8,8])) -> pred[] {
  %q = (s32[], f32[8,8]) parameter(0)
  %j = s32[] get-tuple-element(%q), index=0
  %end = s32[] constant(5)
  ROOT %less = pred[] compare(%j, %end), direction=LT
}

ENTRY %main (a: f32[1,10,10,6], k: f32[3,3,6,10], s: (s32[], f32[8,8])) -> (f32[200], f32[8,8]) {
  %a = f32[600]{0} parameter(0)
  %k = f32[90]{0} parameter(1)
  %s = (s32[], f32[8,8]) parameter(2)
  %c = (f32[200]{0}, u8[4096]{0}) custom-call(%a, %k), window={size=3x3}, custom_call_target="__cudnn$convForward"
  %g = f32[200]{0} get-tuple-element(%c), index=0
  %w = (s32[], f32[8,8]) while(%s), condition=%test, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %v = f32[8,8]{1,0} get-tuple-element(%w), index=1
  ROOT %o = (f32[200]{0}, f32[8,8]{1,0}) tuple(%g, %v)
}
"""  # noqa: E501


IN_PARTS = """HloModule jit_f

%cut (p: f32[5,100], j: s32[]) -> f32[100] {
  %p = f32[5,100]{1,0} parameter(0)
  %j = s32[] parameter(1)
  %z = s32[] constant(0)
  %d = f32[1,100]{1,0} dynamic-slice(%p, %j, %z), dynamic_slice_sizes={1,100}
  ROOT %b = f32[100]{0} bitcast(%d)
}

%both (k: s32[], s: f32[5,100], w: f32[5,100], v: f32[100]) -> (f32[5,100], f32[100]) {
  %k = s32[] parameter(0)
  %s = f32[5,100]{1,0} parameter(1)
  %w = f32[5,100]{1,0} parameter(2)
  %v = f32[100]{0} parameter(3)
  %n = f32[100]{0} fusion(%w, %k), kind=kLoop, calls=%cut
  %m = f32[100]{0} multiply(%n, %v)
  %r = f32[1,100]{1,0} bitcast(%m)
  %y = s32[] constant(0)
  %u = f32[5,100]{1,0} dynamic-update-slice(%s, %r, %k, %y)
  ROOT %o = (f32[5,100]{1,0}, f32[100]{0}) tuple(%u, %m)
}

%all (a: f32[5,100]) -> f32[5,100] {
  %a = f32[5,100]{1,0} parameter(0)
  ROOT %e = f32[5,100]{1,0} negate(%a)
}

ENTRY %main (i: s32[], s: f32[5,100], w: f32[5,100], v: f32[100]) -> (f32[5,100], f32[100]) {
  %i = s32[] parameter(0)
  %t = f32[5,100]{1,0} parameter(1)
  %q = f32[5,100]{1,0} parameter(2)
  %x = f32[100]{0} parameter(3)
  %c = ((f32[100]{0}), f32[25]{0:S(1)}, s32[]{:S(2)}) slice-start(%x), slice={[0:25]}
  %f = (f32[5,100]{1,0}, f32[100]{0}) fusion(%i, %t, %q, %x), kind=kLoop, calls=%both
  %g = f32[5,100]{1,0} get-tuple-element(%f), index=0
  ROOT %h = f32[5,100]{1,0} fusion(%g), kind=kLoop, calls=%all
}
"""


def compiled(function, *shapes):
  args = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
  return jax.jit(function).lower(*args).compile()


def test_a_matrix_product_reads_and_writes_each_matrix():
  done, sent = take_apart(compiled(jnp.matmul, (64, 128), (128, 256)))
  whole = 4 * (64 * 128 + 128 * 256 + 64 * 256)
  assert (done.accessed_bytes, done.memory_bytes) == (whole, whole)
  assert (sent, done.unknown_calls) == ([], ())


def test_bytes_of_a_loop_are_counted_each_time():
  def function(x):
    return jax.lax.scan(lambda c, _: (jnp.sin(c), None), x, length=10)[0]

  program = compiled(function, (100_000,))
  done, _ = take_apart(program)
  assert done.accessed_bytes >= 10 * 2 * 400_000
  assert done.accessed_bytes < 14 * 2 * 400_000  # the loop, and copies around it


def analysed(text, accessed):
  module = hlo.parse_hlo(text)
  runs, unknown = hlo.count_runs(module)
  return work(module, runs, unknown, accessed)


def test_what_a_fusion_cuts_out_or_updates_counts_without_the_rest():
  """Of stacked arrays a loop reads and writes one layer at a time, also in a fusion in a fusion."""
  module = hlo.parse_hlo(IN_PARTS)
  main = module.computations["main"]
  moved = {name: _moved(main[name], main, module) for name in ("c", "f", "h")}
  row, counter = 400, 4
  assert moved == {"c": 2 * 100, "f": 4 * row + counter, "h": 10 * row}
  assert _moved_outside(main["c"], main, module) == 100


def test_on_chip_memory_is_no_memory_traffic():
  """Of 400 bytes read and written by each of three instructions, three lie on the chip."""
  done = analysed(ON_CHIP, 2404.0)
  assert done.accessed_bytes == 2404
  assert done.memory_bytes == pytest.approx(2404 * 804 / 2404)


def test_calls_to_known_libraries_count_by_their_operands_and_results():
  """XLA's own count of a GPU's convolution and product is -1 each; here 20 bytes are the test's."""
  done = analysed(ON_A_GPU, 20.0 - 2.0)
  convolution, product = 4 * (600 + 90 + 200), 4 * (3 * 64)  # without their workspaces
  assert done.accessed_bytes == done.memory_bytes == 5 * 18 + convolution + 5 * product
  assert done.unknown_calls == ()
  assert analysed(ON_A_GPU, -2.0).memory_bytes == convolution + 5 * product


@pytest.mark.parametrize("accessed", [18.0, -1.0, None])
def test_a_call_that_is_not_known_is_named(accessed):
  """Also one that only a loop's body has."""
  text = ON_A_GPU.replace("__cublas$lt$matmul", "their_product")
  done = analysed(text, accessed)
  assert (done.accessed_bytes, done.memory_bytes) == (None, None)
  assert done.unknown_calls == ("their_product",)
  text = text.replace("__cudnn$convForward", "another")
  assert analysed(text, accessed).unknown_calls == ("another", "their_product")


def test_without_the_compilers_count_the_traffic_is_unknown():
  done = analysed(ON_CHIP, None)
  assert (done.accessed_bytes, done.memory_bytes, done.unknown_calls) == (None, None, ())


def test_the_peak_counts_what_is_written_over_once():
  shape = (1000, 1000)
  step = jax.jit(lambda x: x + 1, donate_argnums=0)
  memory = memory_of(step.lower(jax.ShapeDtypeStruct(shape, jnp.float32)).compile())
  assert (memory.arguments, memory.outputs, memory.aliased) == (4_000_000,) * 3
  assert memory.peak == 4_000_000 + memory.temporaries + memory.code
