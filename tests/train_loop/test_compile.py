"""The FLOPs that a training run reports never end it."""

from diffusion_jax.planning.flops import StepFlops
from diffusion_jax.planning.table import flops_text
from diffusion_jax.train_loop import compile as compiling
from diffusion_jax.train_loop.setup import Job
from diffusion_jax.training.train_state import TrainState


def test_a_count_that_fails_is_named(monkeypatch):
  def fail(traced, num_devices):
    raise RuntimeError("a part of another package cannot be traced")

  monkeypatch.setattr(compiling, "executed_flops", fail)

  class Mesh:
    size = 8

  blank = dict.fromkeys(Job._fields)
  job = Job(**{**blank, "mesh": Mesh()})
  state = TrainState(*[None] * len(TrainState._fields))
  flops = compiling._count(job, state, None, None, None)
  reason = "the count failed (RuntimeError: a part of another package cannot be traced)"
  assert flops == StepFlops(None, None, (reason,))
  assert flops_text(flops) == f"unknown: {reason}"


def test_the_line_at_the_start():
  assert flops_text(StepFlops(4.13e12, 4.13e12)) == "4.13 TFLOP"
  assert flops_text(StepFlops(None, 6.2e9)) == "6.2 GFLOP"
  twice = StepFlops(4.13e12, 5.4e12)
  assert flops_text(twice) == "4.13 TFLOP; 5.4 TFLOP with what is computed twice"
