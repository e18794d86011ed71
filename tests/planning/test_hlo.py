"""Reading compiled programs: shapes, call graphs and the lengths of loops."""

import jax
import jax.numpy as jnp
import pytest

from diffusion_jax.planning import hlo

LOOP = """HloModule jit_f, is_scheduled=true, num_partitions=4

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%body (state: (s32[], f32[8])) -> (s32[], f32[8]) {
  %state = (s32[]{:T(128)}, f32[8]{0:T(256)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%state), index=0
  %v = f32[8]{0:T(256)} get-tuple-element(%state), index=1
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  %all = f32[8]{0} all-reduce(%v), channel_id=1, replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %out = (s32[], f32[8]) tuple(%next, %all)
}

%test (state.1: (s32[], f32[8])) -> pred[] {
  %state.1 = (s32[]{:T(128)}, f32[8]{0:T(256)}) parameter(0)
  %last = s32[]{:T(128)} constant(12)
  %j = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  ROOT %lt = pred[]{:T(512)} compare(%j, %last), direction=LT
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %p = f32[8]{0:T(256)} parameter(0)
  %begin = s32[] constant(2)
  %copied = s32[] copy(%begin)
  %start = (s32[], f32[8]) tuple(%copied, %p)
  %loop = (s32[], f32[8]) while(%start), condition=%test, body=%body
  ROOT %result = f32[8] get-tuple-element(%loop), index=1
}
"""


def times(text):
  runs, unknown = hlo.count_runs(hlo.parse_hlo(text))
  return {name: run.times for name, run in runs.items()}, unknown


@pytest.mark.parametrize(
  ("shape", "size"),
  [
    ("f32[3,3,64,128]{3,2,1,0:T(8,128)}", 3 * 3 * 64 * 128 * 4),
    ("bf16[16]{0:T(256)(128)(2,1)S(1)}", 32),
    ("pred[]", 1),
    ("(f32[2]{0}, /*index=1*/u8[3]{0}, (s64[], token[]))", 8 + 3 + 8),
    ("f8e4m3fn[10]", 10),
    ("s4[10]", 5),
    ("c64[2]", 16),
    ("f32[<=5,2]", 40),
  ],
)
def test_the_bytes_of_a_shape(shape, size):
  assert hlo.num_bytes(shape) == size


def test_on_chip_memory_is_told_apart():
  first, second = hlo.arrays("(bf16[4,2]{1,0:T(8,128)(2,1)S(1)}, bf16[4,2]{1,0:T(8,128)(2,1)})")
  assert (first.on_chip, second.on_chip) == (True, False)
  assert first.dims == (4, 2)


def test_an_instruction_is_taken_apart():
  module = hlo.parse_hlo(LOOP)
  assert module.entry == "main"
  assert module.num_devices == 4
  reduced = module.computations["body"]["all"]
  assert (reduced.opcode, reduced.shape, reduced.operands) == ("all-reduce", "f32[8]{0}", ("v",))
  assert hlo.callees(reduced) == ["add"]
  assert module.computations["test"]["last"].value == "12"


def test_a_loop_runs_from_its_start_to_its_test():
  """No backend_config, as the TPU compiler leaves it: from 2 up to, not including, 12."""
  assert times(LOOP) == ({"main": 1, "body": 10, "test": 10, "add": 10}, 0)


def test_a_loop_runs_as_often_as_the_compiler_noted():
  noted = LOOP.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"7"}}')
  assert times(noted)[0]["body"] == 7


def test_a_loop_of_unknown_length_counts_once_and_is_told():
  counts, unknown = times(LOOP.replace("direction=LT", "direction=NE"))
  assert (counts["body"], unknown) == (1, 1)


def test_loops_of_a_compiled_program_multiply():
  def inner(x, _):
    return jnp.sin(x), None

  def outer(x, _):
    return jax.lax.scan(inner, x, length=5)[0] * 2, None

  compiled = jax.jit(lambda x: jax.lax.scan(outer, x, length=3)[0]).lower(jnp.ones(4)).compile()
  module = hlo.parse_hlo(compiled.as_text())
  runs, unknown = hlo.count_runs(module)
  sines = [
    runs[name].times
    for name, lines in module.computations.items()
    if any(i.opcode == "sine" for i in lines.values())
  ]
  assert (sines, unknown) == ([15], 0)


def test_what_runs_inside_a_fusion_moves_nothing():
  compiled = jax.jit(lambda x: jnp.sin(x) + jnp.cos(x)).lower(jnp.ones(4096)).compile()
  module = hlo.parse_hlo(compiled.as_text())
  runs, _ = hlo.count_runs(module)
  fused = [n for n in module.computations if n != module.entry]
  assert fused
  assert [n for n, run in runs.items() if run.moves] == [module.entry]
