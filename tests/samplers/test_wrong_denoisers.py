"""Denoisers, keys and shapes that samplers cannot use are one line; half precision is used."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.processes import Flow, LinearVP
from diffusion_jax.samplers import DDIM, Ancestral, ProbabilityFlow
from diffusion_jax.samplers.base import checked_denoise, checked_samples, checked_shape
from diffusion_jax.types import Samples

KEY = jax.random.key(0)
ANY = [DDIM(steps=2), Ancestral(steps=2), ProbabilityFlow(rtol=0.1, atol=0.1)]


@pytest.mark.parametrize("sampler", ANY, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize(
  ("result", "given"),
  [
    (lambda x: x[:, :1], "float32[8,1]"),
    (lambda x: jnp.zeros(()), "float32[]"),
    (lambda x: (x, x), "tuple (float32[8,2], float32[8,2])"),
    (lambda x: None, "None"),
    (lambda x: x.astype(jnp.int32), "int32[8,2]"),
  ],
)
def test_a_denoiser_that_returns_something_else_is_named(sampler, result, given):
  line = f"denoise returned {given}; needed float32[8,2]"
  with pytest.raises(ValueError, match=re.escape(line)):
    jax.eval_shape(lambda: sampler.sample(lambda x, t: result(x), Flow(), KEY, (8, 2)))


@pytest.mark.parametrize("sampler", ANY, ids=lambda s: type(s).__name__)
def test_a_denoiser_in_half_precision_draws_in_single(sampler):
  denoise = lambda x, t: (0.5 * x).astype(jnp.bfloat16)  # noqa: E731
  images = jax.eval_shape(lambda: sampler.sample(denoise, Flow(), KEY, (8, 2)).images)
  assert (images.shape, images.dtype) == ((8, 2), jnp.float32)


def test_a_denoiser_with_variances_returns_two():
  denoise = lambda x, t: x  # noqa: E731
  with pytest.raises(ValueError, match=r"needed \(x0 estimate, variance logits\)"):
    jax.eval_shape(
      lambda: Ancestral(2, "learned").sample(denoise, LinearVP(num_timesteps=4), KEY, (8, 2))
    )
  x0, logits = checked_denoise(lambda x, t: (x, x.astype(jnp.bfloat16)), True)(
    jnp.ones((8, 2)), jnp.ones(8)
  )
  assert x0.dtype == logits.dtype == jnp.float32


@pytest.mark.parametrize(
  ("key", "line"),
  [
    (jax.random.PRNGKey(0), "an old-style key: it must be made by jax.random.key(0)"),
    (jax.random.split(KEY, 3), "key has shape (3,) and shape[0]=8"),
  ],
)
def test_keys_that_are_none_are_refused(key, line):
  with pytest.raises(ValueError, match=re.escape(line)):
    DDIM(steps=2).sample(lambda x, t: x, Flow(), key, (8, 2))


@pytest.mark.parametrize("shape", [(), 8, (-1, 2), (4.0, 2), (0, 2), None, "82"])
def test_a_shape_is_positive_integers(shape):
  line = f"shape={shape!r}: it must be (N, ...)"
  with pytest.raises(ValueError, match=re.escape(line)):
    checked_shape(shape)
  assert checked_shape([np.int64(8), 2]) == (8, 2)


def test_samples_have_the_number_that_was_asked_for():
  with pytest.raises(ValueError, match=r"sampler returned float32\[1,2\]; needed float32\[8,2\]"):
    checked_samples(Samples(jnp.zeros((1, 2)), 1), (8, 2))
  with pytest.raises(ValueError, match=r"sampler returned float32\[8,2\]; needed Samples\("):
    checked_samples(jnp.zeros((8, 2)), (8, 2))
