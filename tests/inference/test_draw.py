"""What drawing images costs beside the sampler itself."""

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.generative import ModelBase
from diffusion_jax.inference.draw import make_draw
from diffusion_jax.parallel.sharding import MeshShape, create_mesh
from diffusion_jax.types import Samples


def test_other_labels_numbers_and_seeds_compile_nothing_anew():
  traced = []

  class Model(ModelBase):
    def sample(self, params, keys, condition):
      traced.append(keys.shape)
      noise = jax.vmap(lambda key: jax.random.normal(key, (2, 2, 1)))(keys)
      label = condition.label[:, None, None, None]
      return Samples(noise * params + label, jnp.zeros((), jnp.int32))

  draw = make_draw(Model(), create_mesh(MeshShape()), batch_size=8)
  first = draw(jnp.ones(()), np.zeros(3, np.int32), 3, seed=0)
  for labels, num, seed in ((np.arange(3), 3, 1), (np.arange(8), 8, 0), (np.arange(19), 19, 2)):
    made = draw(jnp.ones(()), labels.astype(np.int32), num, seed=seed)
    assert made.shape == (num, 2, 2, 1)
  assert traced == [(8,)]
  again = draw(jnp.ones(()), np.zeros(11, np.int32), 11, seed=0)
  np.testing.assert_array_equal(again[:3], first)
