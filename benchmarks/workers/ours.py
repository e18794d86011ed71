"""diffusion_jax at work: the program's own compiled training step, or sampler, on random images."""

import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import protocol

from diffusion_jax.core import config
from diffusion_jax.parallel import platforms, sharding
from diffusion_jax.planning import compiled
from diffusion_jax.planning.chips import find_chip
from diffusion_jax.planning.flops import StepFlops, count_flops, step_flops
from diffusion_jax.runs import command_line
from diffusion_jax.runs.stored import load_experiment
from diffusion_jax.training.step import hyperparameters, jit_train_step, make_init, make_train_step
from diffusion_jax.types import Batch, Condition, ImageSpec


def main(_: list[str]) -> None:
  options = protocol.options()
  if kernel := options.get("plain"):
    platforms.PLAIN_FORM_ON[kernel] = frozenset({"cpu", "gpu", "tpu"})
  platforms.run_in_calling_thread()
  command_line.enable_compilation_cache()
  overrides = [config.parse_override(text) for text in options.get("overrides", ())]
  experiment = load_experiment(options["config"], overrides)
  spec = ImageSpec(*options["image"], 256, options["classes"])
  program = compiled.build_program(experiment, spec, jax.devices()[:1])
  {"train": train, "sample": sample}[options["work"]](program, options)


def train(program: compiled.Program, options: dict[str, Any]) -> None:
  parts, size = program.experiment, options["batch_size"]
  init = make_init(program.generative, parts.optimizers, parts.training, parts.ema.names())
  state = jax.jit(init)(np.uint32(0))
  batch = sharding.put_batch(images(size, program.spec), program.mesh)
  step = make_train_step(
    program.generative, parts.optimizers, parts.ema, parts.training, program.mesh
  )
  jitted = jit_train_step(step, state, program.mesh)
  numbers = hyperparameters(program.generative, parts.optimizers, parts.ema, parts.training)
  run, seconds, traced = compile_timed(jitted, state, batch, numbers)
  temporaries = compiled.memory_of(run).temporaries
  platforms.keep_freed_memory(jax.default_backend(), temporaries)  # as the trainer does

  def repeat(times: int) -> None:
    nonlocal state
    for _ in range(times):
      state, scalars = run(state, batch, numbers)
    jax.block_until_ready((state, scalars))

  repeat(2)
  flops = step_flops(program.generative, parts.optimizers, state, batch, traced, 1)
  serve(repeat, run, seconds, flops, state, state.params)


def sample(program: compiled.Program, options: dict[str, Any]) -> None:
  size = options["batch_size"]
  params = jax.jit(lambda key: program.generative.init(key)[0])(jax.random.key(0))
  keys = jax.random.split(jax.random.key(1), size)
  labels = np.arange(size) % program.spec.num_classes if program.spec.num_classes else None
  condition = Condition(labels)
  jitted = jax.jit(program.generative.sample)
  run, seconds, traced = compile_timed(jitted, params, keys, condition)

  def repeat(times: int) -> None:
    for _ in range(times):
      made = run(params, keys, condition)
    jax.block_until_ready(made)

  repeat(1)
  count = count_flops(traced)
  made = run(params, keys, condition)
  flops = StepFlops(count.flops, count.flops, count.unknown)  # nothing is computed twice
  serve(repeat, run, seconds, flops, params, params, evaluations=int(made.num_evaluations))


def images(size: int, spec: ImageSpec) -> Batch:
  rng = np.random.default_rng(0)
  return Batch(
    rng.integers(0, 256, (size, *spec.shape), np.uint8),
    (np.arange(size) % max(spec.num_classes, 1)).astype(np.int32),
    np.ones(size, np.float32),
    np.arange(size, dtype=np.uint32),
  )


def compile_timed(jitted: Any, *args: Any) -> tuple[Any, dict[str, float], Any]:
  """The compiled function, the seconds, and the function as traced."""
  start = time.perf_counter()
  traced = jitted.trace(*args)
  lowered = traced.lower()
  seconds = time.perf_counter() - start
  run = lowered.compile()
  return run, {"trace_sec": seconds, "compile_sec": time.perf_counter() - start}, traced.jaxpr


def serve(
  repeat: Callable[[int], None], run: Any, seconds: dict[str, float], flops: StepFlops, state: Any,
  params: Any, **more: Any,
) -> None:  # fmt: skip
  if flops.unknown:
    sys.exit(f"the FLOPs are unknown: {', '.join(flops.unknown)}")
  device = jax.devices()[0]
  chip = find_chip(device.device_kind)
  ready = {
    "device": device.device_kind,
    "peak_flops": chip.flops if chip else None,
    "flops": flops.model,
    "executed_flops": flops.executed,
    "state_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(state)),
    "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
    "temporary_bytes": compiled.memory_of(run).temporaries,
    **seconds,
    **more,
  }
  protocol.serve(ready, repeat, peak)


def peak() -> dict[str, Any]:
  """The most memory that the device has held: of a CPU, what the process has."""
  stats = jax.devices()[0].memory_stats() or {}
  return {"peak_bytes": stats.get("peak_bytes_in_use", protocol.resident_bytes())}


if __name__ == "__main__":
  command_line.run_main(main)
