"""A loss that needs them is given the averaged parameters of the model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.core.broadcasting import mean_dims
from diffusion_jax.generative import Diffusion
from diffusion_jax.likelihood import DIFFUSION_LIKELIHOODS, Spectrum
from diffusion_jax.losses import LossBase, Simple
from diffusion_jax.models import Network, NetworkBase
from diffusion_jax.processes import Flow
from diffusion_jax.samplers import DDIM, Guidance
from diffusion_jax.types import Batch, ImageSpec, LossOutput

SPEC, NUM = ImageSpec(2, 2, 1, 17, 0), 5


class Multiple(NetworkBase):
  """A multiple of its input."""

  def create(self, spec, num_labels):
    apply = lambda params, x, time, condition, dropout_key=None: params["scale"] * x  # noqa: E731
    return Network(lambda key: {"scale": jnp.float32(1.0)}, apply)


@dataclasses.dataclass(frozen=True)
class Imitation(LossBase):
  """The squared distance of the x0 estimate from the averaged model's."""

  needs_average = True
  minimised_by_mean = False

  def __call__(self, model, examples, keys, *, average=None, **_):
    noised = self.noised(model, examples.x0, keys)
    distance = model.predict(noised).x0 - average.predict(noised).x0
    return LossOutput(mean_dims(jnp.square(distance)), {"size": mean_dims(noised.xt**2)})


def model(loss):
  parts = {
    "process": Flow(), "model": Multiple(), "loss": loss, "sampler": DDIM(steps=2),
    "guidance": Guidance(), "spectrum": Spectrum(),
    **{name: cls() for name, cls in DIFFUSION_LIKELIHOODS.items()},
  }  # fmt: skip
  return Diffusion(prediction="x0").create(parts, SPEC)


IMAGES = np.random.default_rng(0).integers(0, 17, (NUM, 2, 2, 1)).astype(np.uint8)
BATCH = Batch(IMAGES, np.zeros(NUM, np.int32), np.ones(NUM, np.float32), np.arange(NUM, dtype="u4"))


def test_the_average_is_the_teacher_and_gets_no_gradient():
  """(1.0 - 0.25)^2 of the mean square of x_t; without an average the model imitates itself."""
  imitates = model(Imitation())

  @jax.jit
  def run(params, average):
    def mean(params, average):
      out = imitates.loss(params, {}, jax.random.key(1), BATCH, train=True, average=average)
      return out.values.mean(), out

    return jax.value_and_grad(mean, argnums=(0, 1), has_aux=True)(params, average)

  one, quarter = {"scale": jnp.float32(1.0)}, {"scale": jnp.float32(0.25)}
  (_, out), (own, teacher) = run(one, quarter)
  np.testing.assert_allclose(out.values, 0.75**2 * out.metrics["size"], rtol=1e-5)
  np.testing.assert_allclose(own["scale"], 2 * 0.75 * out.metrics["size"].mean(), rtol=1e-5)
  assert float(teacher["scale"]) == 0
  (_, out), (own, _) = run(one, None)
  assert not np.asarray(out.values).any()
  assert float(own["scale"]) == 0


def test_other_losses_are_given_none(monkeypatch):
  given = []
  plain = model(Simple())
  original = Simple.__call__

  def watched(self, *args, average=None, **options):
    given.append(average)
    return original(self, *args, average=average, **options)

  monkeypatch.setattr(Simple, "__call__", watched)
  params = {"scale": jnp.float32(1.0)}
  jax.eval_shape(
    lambda params: plain.loss(params, {}, jax.random.key(1), BATCH, train=True, average=params),
    params,
  )
  assert given == [None]
