"""Bytes on the wire: of programs whose traffic is known, and of each way groups are written."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from diffusion_jax.parallel.sharding import MeshShape, create_mesh
from diffusion_jax.planning import hlo, traffic
from diffusion_jax.planning.communication import (
  device_groups,
  group_size,
  sent_bytes,
  traffic_of_slices,
  wire_factor,
)

ASYNC = """HloModule jit_f, num_partitions=8

%wrapped (a.1: f32[10]) -> f32[40] {
  %a.1 = f32[10] parameter(0)
  ROOT %gathered = f32[40] all-gather(%a.1), replica_groups=[2,4]<=[8], dimensions={0}
}

ENTRY %main (a: f32[10], b: bf16[100]) -> f32[40] {
  %a = f32[10] parameter(0)
  %b = bf16[100] parameter(1)
  %r = (f32[10], bf16[100]) all-reduce(%a, /*index=1*/%b), replica_groups={{0,1,2,3,4,5,6,7}}
  %gs = (f32[10], f32[80]) all-gather-start(%a), replica_groups={}, dimensions={0}
  %gd = f32[80] all-gather-done(%gs)
  %ps = (bf16[100], bf16[100]) collective-permute-start(%b), source_target_pairs={{0,1},{1,0}}
  %pd = bf16[100] collective-permute-done(%ps)
  %s = ((f32[10]), f32[40], s32[]) async-start(%a), calls=%wrapped
  ROOT %d = f32[40] async-done(%s)
}
"""


def rows_of(text):
  module = hlo.parse_hlo(text)
  return {row.kind: tuple(row[1:]) for row in traffic(module, hlo.count_runs(module)[0])}


def compiled_rows(function, shape, in_spec, out_spec):
  """Traffic of a function mapped over 8 devices."""
  mesh = jax.make_mesh((8,), ("x",), (AxisType.Auto,))
  mapped = jax.shard_map(function, mesh=mesh, in_specs=in_spec, out_specs=out_spec, check_vma=False)
  return rows_of(jax.jit(mapped).lower(jax.ShapeDtypeStruct(shape, np.float32)).compile().as_text())


def test_async_and_grouped_forms():
  """By hand: 240 bytes x 2 x 7/8; 40 x 7 to all and 40 x 3 in fours; 200 bytes passed on once."""
  assert rows_of(ASYNC) == {
    "all-reduce": (1, 240, 420),
    "all-gather": (2, 80, 280 + 120),
    "collective-permute": (1, 200, 200),
  }


@pytest.mark.parametrize(
  ("written", "size"),
  [
    ("replica_groups={{0,1},{2,3},{4,5}}, x", 2),
    ("replica_groups=[2,8]<=[16], x", 8),
    ("replica_groups=[4,4]<=[4,4]T(1,0), x", 4),
    ("replica_groups=mesh['axis_0'=16] {'axis_0'}, x", 16),
    ("replica_groups=mesh['a'=2,'b'=4,'c'=8] {'a','c'}, x", 16),
    ("replica_groups=mesh['a'=2,'b'=8] {'b':(1)4}, x", 4),
    ("replica_groups=mesh['a'=2,'b'=8], device_ids=([8,2]T(1,0)) {'b'}, x", 8),
    ("replica_groups={}, x", 32),
    ("source_target_pairs={{0,1}}", 32),
  ],
)
def test_the_size_of_a_group(written, size):
  assert group_size(written, 32) == size


def test_a_sum_over_the_devices():
  rows = compiled_rows(lambda x: jax.lax.psum(x, "x"), (8, 1000), P("x"), P())
  assert rows == {"all-reduce": (1, 4000, 7000)}


def test_gathering_what_is_split():
  """Each device keeps 4000 bytes of 32000 and passes on 7 parts."""
  rows = compiled_rows(lambda x: jax.lax.all_gather(x, "x", tiled=True), (8, 1000), P("x"), P())
  assert rows == {"all-gather": (1, 4000, 28_000)}


def test_a_sum_of_which_each_device_keeps_a_part():
  rows = compiled_rows(
    lambda x: jax.lax.psum_scatter(x, "x", scatter_dimension=1, tiled=True),
    (8, 1000), P("x"), P(None, "x"),
  )  # fmt: skip
  assert sum(row[2] for row in rows.values()) == 3500
  assert set(rows) == {"reduce-scatter"}


def test_an_exchange_and_a_shift():
  rows = compiled_rows(
    lambda x: jax.lax.all_to_all(x, "x", 1, 0, tiled=True), (8, 1000), P("x"), P(None, "x")
  )
  assert rows["all-to-all"][1:] == (4000, 3500)
  turn = [(i, (i + 1) % 8) for i in range(8)]
  rows = compiled_rows(lambda x: jax.lax.ppermute(x, "x", turn), (8, 1000), P("x"), P("x"))
  assert rows == {"collective-permute": (1, 4000, 4000)}


def test_a_loop_sends_each_time():
  def function(x):
    return jax.lax.scan(lambda c, _: (jnp.sin(jax.lax.psum(c, "x")), None), x, length=6)[0]

  rows = compiled_rows(function, (8, 1000), P("x"), P("x"))
  assert rows == {"all-reduce": (6, 24_000, 42_000)}


def test_one_device_sends_nothing():
  for kind in ("all-reduce", "all-gather", "reduce-scatter", "all-to-all"):
    assert wire_factor(kind, 1) == 0


def test_an_all_reduce_sends_what_its_two_halves_send():
  for n in (2, 4, 256):
    gathered = wire_factor("all-gather", n) / n  # of a part of 1/n
    assert wire_factor("all-reduce", n) == pytest.approx(
      wire_factor("reduce-scatter", n) + gathered
    )


@pytest.mark.parametrize(
  ("written", "groups"),
  [
    ("replica_groups={{0,1},{2,3}}, x", [[0, 1], [2, 3]]),
    ("replica_groups=[2,2]<=[4], x", [[0, 1], [2, 3]]),
    ("replica_groups=[2,2]<=[2,2]T(1,0), x", [[0, 2], [1, 3]]),
    ("replica_groups=mesh['a'=2,'b'=2] {'a'}, x", [[0, 2], [1, 3]]),
    ("replica_groups=mesh['a'=1,'b'=4] {'b':(1)2}, x", [[0, 2], [1, 3]]),
    ("replica_groups=mesh['a'=1,'b'=4] {'b':(2)2}, x", [[0, 1], [2, 3]]),
    ("replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}, x", [[0, 2], [1, 3]]),
    ("replica_groups={}, x", [[0, 1, 2, 3]]),
  ],
)
def test_the_devices_of_each_group(written, groups):
  assert device_groups(written, 4) == groups


@pytest.mark.parametrize(
  ("kind", "groups", "within", "between"),
  [
    ("all-reduce", "[1,8]<=[8]", 1200, 200),  # 2 x 3/4, then 2 x 1/2 of a quarter
    ("all-reduce", "[2,4]<=[8]", 1200, 0),
    ("all-reduce", "[4,2]<=[2,4]T(1,0)", 0, 800),
    ("reduce-scatter", "[1,8]<=[8]", 600, 100),
    ("all-gather", "[1,8]<=[8]", 4800, 800),  # once to the other slice, then both parts to 3
    ("all-to-all", "[1,8]<=[8]", 300, 400),  # an eighth to each of 3 here and 4 there
  ],
)
def test_what_a_collective_sends_within_and_between_two_slices(kind, groups, within, between):
  """Of 800 bytes a device, on two slices of four devices."""
  assert sent_bytes(kind, 800.0, f"replica_groups={groups}", 8, 2) == (within, between)


def test_a_shift_crosses_where_its_pairs_do():
  pairs = ",".join(f"{{{i},{(i + 1) % 8}}}" for i in range(8))
  assert sent_bytes("collective-permute", 800.0, f"source_target_pairs={{{pairs}}}", 8, 2) == (
    600,
    200,
  )


MEGASCALE = """HloModule jit_f, num_partitions=4

ENTRY %main (a: f32[100]) -> f32[100] {
  %a = f32[100] parameter(0)
  %t = token[] after-all()
  %rs = f32[25] reduce-scatter(%a), replica_groups={{0,1,2,3}}, dimensions={0}
  %s = (f32[25], u32[], token[]) send(%rs, %t), channel_id=4, is_host_transfer=true, frontend_attributes={_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %sd = token[] send-done(%s), channel_id=4, is_host_transfer=true
  %r = (f32[25], u32[], token[]) recv(%t), channel_id=3, frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
  %rd = (f32[25], token[]) recv-done(%r), channel_id=3
  %g = f32[25] get-tuple-element(%rd), index=0
  ROOT %ag = f32[100] all-gather(%g), replica_groups={{0,1,2,3}}, dimensions={0}
}
"""  # noqa: E501


def test_the_tpu_compilers_own_transfers_between_slices():
  """The program is of one slice: its groups never cross, and its transfers always do."""
  module = hlo.parse_hlo(MEGASCALE)
  within, between = traffic_of_slices(module, hlo.count_runs(module)[0], 2)
  assert [tuple(row) for row in within] == [
    ("reduce-scatter", 1, 400, 300), ("all-gather", 1, 100, 300),
  ]  # fmt: skip
  assert [tuple(row) for row in between] == [("all-reduce", 1, 100, 100)]


def test_an_all_reduce_of_a_compiled_program_over_two_slices():
  mesh = create_mesh(MeshShape(dcn_data=2))
  mapped = jax.shard_map(
    lambda x: jax.lax.psum(x, ("dcn_data", "data")), mesh=mesh,
    in_specs=P(("dcn_data", "data")), out_specs=P(), check_vma=False,
  )  # fmt: skip
  compiled = jax.jit(mapped).lower(jax.ShapeDtypeStruct((8, 1000), np.float32)).compile()
  module = hlo.parse_hlo(compiled.as_text())
  within, between = traffic_of_slices(module, hlo.count_runs(module)[0], 2)
  assert [tuple(row) for row in within] == [("all-reduce", 1, 4000, 6000)]
  assert [tuple(row) for row in between] == [("all-reduce", 1, 4000, 1000)]
