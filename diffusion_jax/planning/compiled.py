"""Compile the real training step ahead of time, and read the compiler's analysis of it."""

import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from diffusion_jax.parallel import sharding
from diffusion_jax.planning import hlo
from diffusion_jax.planning.communication import Traffic, traffic_of_slices
from diffusion_jax.planning.flops import StepFlops, step_flops
from diffusion_jax.planning.work import Work, work
from diffusion_jax.runs.experiment import Experiment
from diffusion_jax.training.step import hyperparameters, jit_train_step, make_init, make_train_step
from diffusion_jax.training.train_state import TrainState
from diffusion_jax.types import Batch, GenerativeModel, ImageSpec

SIZE = re.compile(r"\(([\d.]+)([KMGT]?)\)")
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class Program(NamedTuple):
  """A training step before compilation.

  Attributes:
    experiment: the resolved config.
    generative: its model.
    spec: shape and classes of the images.
    mesh: device mesh.
    state: shapes of the state that a step takes and returns.
  """

  experiment: Experiment
  generative: GenerativeModel
  spec: ImageSpec
  mesh: Mesh
  state: TrainState


class Memory(NamedTuple):
  """Memory of one device during a step, bytes, from `compiled.memory_analysis()`.

  Attributes:
    arguments: size of state and batch.
    outputs: size of the new state and scalars.
    aliased: size of the outputs that overwrite arguments.
    temporaries: size of everything in between.
    code: size of the program itself, which is in the same memory.
  """

  arguments: int
  outputs: int
  aliased: int
  temporaries: int
  code: int

  @property
  def peak(self) -> int:
    """Return arguments + outputs - aliased + temporaries + code."""
    return self.arguments + self.outputs - self.aliased + self.temporaries + self.code


class Measured(NamedTuple):
  """One compiled step.

  Attributes:
    batch_size_per_device: images per device (with mesh.tensor: per group of devices).
    batch_size: images per global batch.
    memory: memory of one device.
    flops: computation of one device, counted before compilation.
    work: memory traffic of one device.
    traffic: collectives of one device, within its slice if there are several.
    compile_sec: compilation time, seconds.
    crossing: collectives of one device with other slices.
  """

  batch_size_per_device: int
  batch_size: int
  memory: Memory
  flops: StepFlops
  work: Work
  traffic: list[Traffic]
  compile_sec: float
  crossing: Sequence[Traffic] = ()


class DoesNotFit(NamedTuple):
  """A batch whose program the compiler refused.

  Attributes:
    batch_size_per_device: images per device, as in Measured.
    needed: bytes that it needs, as rounded by the compiler; None if unknown.
    available: bytes that a device has.
  """

  batch_size_per_device: int
  needed: int | None
  available: int | None


def build_program(experiment: Experiment, spec: ImageSpec, devices: Sequence[Any]) -> Program:
  """Build the training step of a config for devices that may be absent.

  Raises:
    UserError: model, images and mesh do not fit each other.
  """
  mesh = sharding.create_mesh(experiment.mesh, devices)
  generative = experiment.create(spec)
  init = make_init(generative, experiment.optimizers, experiment.training, experiment.ema.names())
  state = jax.eval_shape(init, np.uint32(0))
  return Program(experiment, generative, spec, mesh, state)


def measure_program(program: Program, per_device: Sequence[int]) -> list[Measured | DoesNotFit]:
  """Compile the step for several batch sizes in parallel, and analyse each program.

  Args:
    program: the step, from `build_program`.
    per_device: images per device; multiples of training.accumulation_steps.
  """
  traced = [
    trace_step(program, size) for size in per_device
  ]  # one by one, since tracing holds Python's lock
  with ThreadPoolExecutor(len(per_device)) as pool:
    return list(pool.map(lambda x: _measure(program, *x), zip(per_device, traced, strict=True)))


def trace_step(program: Program, per_device: int) -> tuple[jax.stages.Lowered, StepFlops]:
  """Return the step for a batch size, lowered, and its FLOPs."""
  experiment, size = program.experiment, per_device * sharding.num_batch_shards(program.mesh)
  step = make_train_step(
    program.generative, experiment.optimizers, experiment.ema, experiment.training, program.mesh
  )
  shapes: Any = [jax.ShapeDtypeStruct((size, *x), kind) for x, kind in _columns(program)]
  named = {n: (f.shape, np.dtype(f.dtype)) for n, f in program.spec.fields.items()}
  fields: Any = {n: jax.ShapeDtypeStruct((size, *x), kind) for n, (x, kind) in named.items()}
  jitted = jit_train_step(step, program.state, program.mesh)
  numbers = hyperparameters(
    program.generative, experiment.optimizers, experiment.ema, experiment.training
  )
  batch = Batch(*shapes, fields=fields)
  traced = jitted.trace(program.state, batch, numbers)
  parts = (program.generative, experiment.optimizers, program.state, batch)
  return traced.lower(), step_flops(*parts, traced.jaxpr, program.mesh.size)


def _columns(program: Program) -> list[tuple[tuple[int, ...], Any]]:
  """Return the example shape and the type of each unnamed array of a Batch."""
  image = program.generative.trains_on or (program.spec.shape, jnp.uint8)
  return [image, ((), jnp.int32), ((), jnp.float32), ((), jnp.uint32)]


def _measure(
  program: Program, per_device: int, traced: tuple[jax.stages.Lowered, StepFlops]
) -> Measured | DoesNotFit:
  (lowered, flops), begun = traced, time.perf_counter()
  compiled = attempt(lowered, per_device)
  if isinstance(compiled, DoesNotFit):
    return compiled
  seconds = time.perf_counter() - begun
  work_done, sent, crossing = take_slices_apart(compiled, sharding.num_slices(program.mesh))
  size = per_device * sharding.num_batch_shards(program.mesh)
  return Measured(per_device, size, memory_of(compiled), flops, work_done, sent, seconds, crossing)


def attempt(lowered: jax.stages.Lowered, per_device: int) -> jax.stages.Compiled | DoesNotFit:
  """Compile, or return DoesNotFit if the compiler finds too little device memory."""
  try:
    return lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    sizes = [int(float(n) * UNITS[unit]) for n, unit in SIZE.findall(str(error))]
    needed, available = sizes[:2] if len(sizes) >= 2 else (None, None)
    return DoesNotFit(per_device, needed, available)


def take_apart(compiled: jax.stages.Compiled) -> tuple[Work, list[Traffic]]:
  """Return one device's memory traffic and collectives in one run of a program."""
  return take_slices_apart(compiled, 1)[:2]


def take_slices_apart(
  compiled: jax.stages.Compiled, num_slices: int
) -> tuple[Work, list[Traffic], list[Traffic]]:
  """Return one device's memory traffic, and its collectives within and between slices."""
  module = hlo.parse_hlo(compiled.as_text() or "")
  runs, unknown = hlo.count_runs(module)
  cost: Any = compiled.cost_analysis() or {}
  done = work(module, runs, unknown, cost.get("bytes accessed"))
  return done, *traffic_of_slices(module, runs, num_slices)


def memory_of(compiled: jax.stages.Compiled) -> Memory:
  """Return the memory of one device while a compiled program runs."""
  analysis: Any = compiled.memory_analysis()
  return Memory(
    analysis.argument_size_in_bytes,
    analysis.output_size_in_bytes,
    analysis.alias_size_in_bytes,
    analysis.temp_size_in_bytes,
    analysis.generated_code_size_in_bytes,
  )


def explain_misfit(refused: DoesNotFit) -> str:
  """Explain that the requested batch does not fit, and which flag to type."""
  sizes = ""
  if refused.needed is not None and refused.available is not None:
    sizes = f": it needs {refused.needed / 2**30:.2f} GiB of {refused.available / 2**30:.2f} GiB"
  return (
    f"--batch_size_per_device={refused.batch_size_per_device} does not fit{sizes}; use a "
    "smaller one, `model.remat=block`, `mesh.fsdp=N` or "
    "`training.accumulation_steps=N`"
  )
