"""Fully sharded data parallel of the real DDPM network: what one device holds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.parallel import sharding
from diffusion_jax.runs.stored import load_experiment
from diffusion_jax.training.step import hyperparameters, jit_train_step, make_init, make_train_step
from diffusion_jax.types import Batch, ImageSpec


@pytest.fixture(scope="module")
def parts(request):
  experiment = load_experiment(f"{request.config.rootpath}/configs/ddpm_cifar.py", [])
  generative = experiment.create(ImageSpec(32, 32, 3, 256, 10))
  init = make_init(generative, experiment.optimizer, experiment.training)
  return experiment, generative, jax.eval_shape(init, np.uint32(0))


def abstract_batch(num):
  shapes = {"image": ((num, 32, 32, 3), jnp.uint8), "label": ((num,), jnp.int32),
            "mask": ((num,), jnp.float32), "index": ((num,), jnp.uint32)}  # fmt: skip
  return Batch(**{name: jax.ShapeDtypeStruct(*s) for name, s in shapes.items()})


@pytest.mark.slow
def test_in_the_compiled_step_eight_devices_hold_at_most_a_seventh_each(parts):
  """In the compiled step: its inputs and outputs are the state and next to nothing else."""
  experiment, generative, state = parts
  mesh = sharding.create_mesh(sharding.MeshShape(1, 8))
  step = make_train_step(
    generative, experiment.optimizer, experiment.ema, experiment.training, mesh
  )
  numbers = hyperparameters(generative, experiment.optimizer, experiment.ema, experiment.training)
  jitted = jit_train_step(step, state, mesh)
  compiled = jitted.lower(state, abstract_batch(8), numbers).compile()
  whole = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
  assert whole > 4 * 4 * 35_746_307
  memory = compiled.memory_analysis()
  assert memory.argument_size_in_bytes <= whole / 7
  assert memory.output_size_in_bytes <= whole / 7
  assert memory.alias_size_in_bytes > 0.99 * memory.output_size_in_bytes  # donated
  table = sum(row.bytes_per_device for row in sharding.layout_rows(mesh, state))
  batch = 8 * 32 * 32 * 3 / 8 + 3 * 4 + 4 * len(jax.tree.leaves(numbers))
  np.testing.assert_allclose(memory.argument_size_in_bytes, table + batch, rtol=1e-3)


def test_of_any_state_eight_devices_hold_what_the_table_says(parts):
  mesh = sharding.create_mesh(sharding.MeshShape(1, 8))
  rows = sharding.layout_rows(mesh, parts[2])
  whole, here = (sum(getattr(r, n) for r in rows) for n in ("num_bytes", "bytes_per_device"))
  assert here <= whole / 7
  assert sharding.describe_layout(mesh, parts[2])[-1].endswith(f"1/{whole / here:.2f} of the whole")


def test_without_fsdp_each_device_holds_the_whole(parts):
  mesh = sharding.create_mesh(sharding.MeshShape())
  rows = sharding.layout_rows(mesh, parts[2])
  assert all(row.how == "replicated" and row.num_bytes == row.bytes_per_device for row in rows)
