"""A training run's state of step 0 and its jitted step, as the program makes them."""

import jax
import numpy as np

from diffusion_jax.parallel import sharding
from diffusion_jax.parallel.sharding import MeshShape, create_mesh
from diffusion_jax.training import step
from diffusion_jax.training.ema import EMA


def begin(generative, optimizer, training, *, ema=None, mesh=None):
  """(state, run), where run(state, host batch) -> (state, scalars); on one device by default."""
  ema = ema or EMA(0.5)
  mesh = mesh or create_mesh(MeshShape(), jax.devices()[:1])
  init = step.make_init(generative, optimizer, training, ema.names())
  layout = sharding.state_shardings(mesh, jax.eval_shape(init, np.uint32(0)))
  state = jax.jit(init, out_shardings=layout)(np.uint32(training.seed))
  function = step.make_train_step(generative, optimizer, ema, training, mesh)
  jitted = step.jit_train_step(function, state, mesh)
  numbers = step.hyperparameters(generative, optimizer, ema, training)
  return state, lambda state, batch: jitted(state, sharding.put_batch(batch, mesh), numbers)
