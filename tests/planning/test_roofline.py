"""The bound on a step, also where a part of the work is unknown."""

import pytest

from diffusion_jax.planning import Measured, Plan, Preview, roofline
from diffusion_jax.planning.chips import CHIPS
from diffusion_jax.planning.communication import Traffic
from diffusion_jax.planning.compiled import Memory
from diffusion_jax.planning.flops import StepFlops
from diffusion_jax.planning.table import NOTHING_KNOWN, _bounds, _step
from diffusion_jax.planning.work import Work

CHIP = CHIPS["TPU v5e"]._replace(
  dcn_bandwidth=0.5, flops=100.0, memory_bandwidth=10.0, link_bandwidth=1.0
)
KNOWN, UNKNOWN = Work(40.0, 30.0, 0), Work(None, None, 0, ("a_kernel", "b_kernel"))
OPAQUE = StepFlops(None, None, ("fft",))


def measured(flops, work):
  sent = [Traffic("all-reduce", 1, 2, 2)]
  return Measured(8, 64, Memory(0, 0, 0, 0, 0), flops, work, sent, 0.0)


def shown(step, bound):
  preview = Preview(4, 0, None)
  plan = Plan("a", "b", None, step, "TPU v4", CHIP, None, bound, None, preview)
  return _step(plan) + _bounds(plan)


def test_mfu_has_the_models_flops_and_hfu_those_executed():
  step = measured(StepFlops(300.0, 400.0), KNOWN)
  bound = roofline(step, CHIP, 8)
  assert bound.seconds == {"compute": 4.0, "memory": 3.0, "interconnect": 2.0}
  assert (bound.binds, bound.images_per_sec) == ("compute", 16.0)
  assert (bound.mfu, bound.hfu) == (0.75, 1.0)
  text = shown(step, bound)
  assert "MFU            75.0%, at most" in text
  assert "FLOPs          300 FLOP; 400 FLOP with what is computed twice" in text


@pytest.mark.parametrize(
  ("flops", "work", "binds", "mfu", "texts"),
  [
    (StepFlops(100.0, 100.0), UNKNOWN, "interconnect", 0.5,
     ["memory traffic unknown: calls to a_kernel, b_kernel", "memory            unknown"]),
    (OPAQUE, KNOWN, "memory", None,
     ["FLOPs          unknown: fft", "compute           unknown", "MFU            unknown"]),
  ],
)  # fmt: skip
def test_what_is_unknown_is_named_and_binds_nothing(flops, work, binds, mfu, texts):
  step = measured(flops, work)
  bound = roofline(step, CHIP, 8)
  assert (bound.binds, bound.mfu, bound.hfu) == (binds, mfu, mfu)
  for text in texts:
    assert text in shown(step, bound)


def test_without_flops_and_traffic_there_is_no_bound():
  step = measured(OPAQUE, UNKNOWN)
  assert roofline(step, CHIP, 8) is None
  assert NOTHING_KNOWN in shown(step, None)


def test_the_network_between_slices_is_a_resource_of_its_own():
  step = measured(StepFlops(300.0, 400.0), KNOWN)._replace(
    crossing=[Traffic("all-reduce", 3, 9, 10)]
  )
  bound = roofline(step, CHIP, 8)
  assert (bound.binds, bound.seconds["dcn"], bound.seconds["interconnect"]) == ("dcn", 20.0, 2.0)
  text = shown(step, bound)
  assert "within a slice        times" in text
  assert "between slices        times" in text
  assert "dcn              2e+04 ms  at 5e-10 GB/s one way, between slices  <- binds" in text
  unknown = CHIP._replace(dcn_bandwidth=None)
  assert "dcn" not in roofline(step, unknown, 8).seconds
