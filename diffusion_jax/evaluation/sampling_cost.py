"""Count the network evaluations that a sampler needs for one image."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import jax
import numpy as np
from jax.sharding import Mesh

from diffusion_jax.core import rng
from diffusion_jax.parallel import sharding
from diffusion_jax.parallel.spread import jit_spread
from diffusion_jax.types import Condition, GenerativeModel, Params

PROBES = 16
"""Number of images on which an adaptive sampler's evaluations are counted."""


def num_evaluations(
  generative: GenerativeModel,
  params: Params,
  mesh: Mesh,
  seed: int,
  classes: Sequence[int],
  fields: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> int | float:
  """Return the network evaluations per image, for an adaptive sampler of PROBES images."""
  counted = []

  def draw(params):
    keys = rng.sample_keys(seed, jax.numpy.arange(PROBES))
    labels = jax.numpy.resize(jax.numpy.asarray(classes), (PROBES,)) if len(classes) else None
    count = generative.sample(params, keys, Condition(labels, fields=dict(fields))).num_evaluations
    counted.append(count)
    return jax.numpy.asarray(count, jax.numpy.float32)

  jax.eval_shape(draw, params)
  if isinstance(counted[0], int):
    return counted[0]
  return float(sharding.fetch(jit_spread(draw, mesh)(params)))
