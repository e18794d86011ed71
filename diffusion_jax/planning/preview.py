"""Compile the drawing of a run's preview ahead of time, for its memory."""

from typing import Any, NamedTuple

import jax
import numpy as np

from diffusion_jax.inference.draw import jit_sample
from diffusion_jax.parallel import sharding
from diffusion_jax.planning.compiled import DoesNotFit, Memory, Program, attempt, memory_of
from diffusion_jax.types import Condition


class Preview(NamedTuple):
  """Memory of one device while samples are drawn between two steps, bytes.

  Attributes:
    num_images: images drawn at once.
    state: size of the training state, which stays where it is.
    memory: memory of the drawing itself, with the averaged parameters; None: it does not fit.
  """

  num_images: int
  state: int
  memory: Memory | None

  @property
  def peak(self) -> int | None:
    """Return the state with the peak of the drawing; None if it does not fit."""
    return None if self.memory is None else self.state + self.memory.peak


def measure_preview(program: Program) -> Preview:
  """Compile the drawing of `logging.num_samples` images with parameters that are split."""
  model, mesh, spec = program.generative, program.mesh, program.spec
  num = sharding.round_up(program.experiment.logging.num_samples, mesh)
  rows = sharding.batch_sharding(mesh)

  def of_rows(shape: tuple[int, ...], kind: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((num, *shape), kind, sharding=rows)

  params = program.state.params
  params = sharding.as_target(params, sharding.state_shardings(mesh, params))
  fields: Any = {
    n: of_rows(spec.fields[n].shape, np.dtype(spec.fields[n].dtype)) for n in model.fields
  }
  label: Any = of_rows((), np.int32) if model.num_classes else None
  lowered = jit_sample(model, mesh).lower(
    params, np.int32(0), of_rows((), np.uint32), Condition(label, fields=fields)
  )
  compiled = attempt(lowered, num)
  state = sum(row.bytes_per_device for row in sharding.layout_rows(mesh, program.state))
  return Preview(num, state, None if isinstance(compiled, DoesNotFit) else memory_of(compiled))
