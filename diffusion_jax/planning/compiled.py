"""The real training step, compiled ahead of time, and what the compiler says of it."""

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
from diffusion_jax.planning.communication import Traffic, traffic
from diffusion_jax.planning.work import Work, work
from diffusion_jax.runs.experiment import Experiment
from diffusion_jax.training.step import hyperparameters, jit_train_step, make_init, make_train_step
from diffusion_jax.training.train_state import TrainState
from diffusion_jax.types import Batch, GenerativeModel, ImageSpec

SIZE = re.compile(r"\(([\d.]+)([KMGT]?)\)")
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class Program(NamedTuple):
  """A training step before it is compiled.

  Attributes:
    experiment: the resolved config.
    generative: its model.
    spec: of the images.
    mesh: the devices.
    state: shapes of what a step takes and returns.
  """

  experiment: Experiment
  generative: GenerativeModel
  spec: ImageSpec
  mesh: Mesh
  state: TrainState


class Memory(NamedTuple):
  """Bytes of one device while a step runs, as `compiled.memory_analysis()` has them.

  Attributes:
    arguments: state and batch.
    outputs: new state and scalars.
    aliased: of the outputs, what is written over the arguments.
    temporaries: everything in between.
    code: the program itself, which lies in the same memory.
  """

  arguments: int
  outputs: int
  aliased: int
  temporaries: int
  code: int

  @property
  def peak(self) -> int:
    """Arguments + outputs - aliased + temporaries + code."""
    return self.arguments + self.outputs - self.aliased + self.temporaries + self.code


class Measured(NamedTuple):
  """One compiled step.

  Attributes:
    batch_size_per_device: images of a device (with mesh.tensor: of a group of devices).
    batch_size: images of the global batch.
    memory: of one device.
    work: of one device.
    traffic: of one device.
    compile_sec: time that the compiler took.
  """

  batch_size_per_device: int
  batch_size: int
  memory: Memory
  work: Work
  traffic: list[Traffic]
  compile_sec: float


class DoesNotFit(NamedTuple):
  """A batch whose program the compiler refused.

  Attributes:
    batch_size_per_device: as in Measured.
    needed: bytes that it would take, as the compiler rounds them; None if it does not say.
    available: bytes that a device has.
  """

  batch_size_per_device: int
  needed: int | None
  available: int | None


def build(experiment: Experiment, spec: ImageSpec, devices: Sequence[Any]) -> Program:
  """Wires a config for devices that need not be there.

  Raises:
    UserError: model, images and mesh do not fit each other.
  """
  mesh = sharding.create_mesh(experiment.mesh, devices)
  generative = experiment.create(spec)
  init = make_init(generative, experiment.optimizer, experiment.training, experiment.ema.names())
  state = jax.eval_shape(init, np.uint32(0))
  return Program(experiment, generative, spec, mesh, state)


def measure(program: Program, per_device: Sequence[int]) -> list[Measured | DoesNotFit]:
  """Compiles the step for some batch sizes, at the same time, and takes it apart.

  Args:
    program: from `build`.
    per_device: images a device; each must be a multiple of training.accumulation_steps.
  """
  lowered = [
    _lower(program, size) for size in per_device
  ]  # one by one: tracing holds Python's lock
  with ThreadPoolExecutor(len(per_device)) as pool:
    return list(pool.map(lambda x: _measure(program, *x), zip(per_device, lowered, strict=True)))


def _lower(program: Program, per_device: int) -> jax.stages.Lowered:
  parts, size = program.experiment, per_device * sharding.num_batch_shards(program.mesh)
  step = make_train_step(
    program.generative, parts.optimizer, parts.ema, parts.training, program.mesh
  )
  shapes: Any = [jax.ShapeDtypeStruct((size, *x), kind) for x, kind in _fields(program)]
  jitted = jit_train_step(step, program.state, program.mesh)
  numbers = hyperparameters(parts.optimizer, parts.ema, parts.training)
  return jitted.lower(program.state, Batch(*shapes), numbers)


def _fields(program: Program) -> list[tuple[tuple[int, ...], Any]]:
  """Shape of one example and type of each field of a Batch, as the pipeline makes them."""
  image = program.generative.trains_on or (program.spec.shape, jnp.uint8)
  return [image, ((), jnp.int32), ((), jnp.float32), ((), jnp.uint32)]


def _measure(
  program: Program, per_device: int, lowered: jax.stages.Lowered
) -> Measured | DoesNotFit:
  begun = time.perf_counter()
  compiled = attempt(lowered, per_device)
  if isinstance(compiled, DoesNotFit):
    return compiled
  seconds = time.perf_counter() - begun
  work_done, sent = take_apart(compiled)
  size = per_device * sharding.num_batch_shards(program.mesh)
  return Measured(per_device, size, memory_of(compiled), work_done, sent, seconds)


def attempt(lowered: jax.stages.Lowered, per_device: int) -> jax.stages.Compiled | DoesNotFit:
  """Compiles, unless the compiler finds that the device's memory is too small."""
  try:
    return lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    sizes = [int(float(n) * UNITS[unit]) for n, unit in SIZE.findall(str(error))]
    needed, available = sizes[:2] if len(sizes) >= 2 else (None, None)
    return DoesNotFit(per_device, needed, available)


def take_apart(compiled: jax.stages.Compiled) -> tuple[Work, list[Traffic]]:
  """What one device computes, moves and sends in one run of a compiled program."""
  module = hlo.parse(compiled.as_text() or "")
  runs, unknown = hlo.count_runs(module)
  cost: Any = compiled.cost_analysis()
  done = work(module, runs, unknown, cost["flops"], cost["bytes accessed"])
  return done, traffic(module, runs)


def memory_of(compiled: jax.stages.Compiled) -> Memory:
  """What one device holds while a compiled program runs."""
  found: Any = compiled.memory_analysis()
  return Memory(
    found.argument_size_in_bytes,
    found.output_size_in_bytes,
    found.alias_size_in_bytes,
    found.temp_size_in_bytes,
    found.generated_code_size_in_bytes,
  )


def explain(refused: DoesNotFit) -> str:
  """What to say of an asked batch that does not fit, and what to type."""
  sizes = ""
  if refused.needed is not None and refused.available is not None:
    sizes = f": it needs {refused.needed / 2**30:.2f} GiB of {refused.available / 2**30:.2f} GiB"
  return (
    f"--batch_size_per_device={refused.batch_size_per_device} does not fit{sizes}; use a "
    "smaller one, --config.model.remat=block, --config.mesh.fsdp=N or "
    "--config.training.accumulation_steps=N"
  )
