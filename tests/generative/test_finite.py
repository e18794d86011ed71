"""Every process with every prediction, sampler and estimator: finite, or refused at the start.

The network is bounded and wrong. Samplers run as a plain loop: a program for each of these
combinations would take a second to compile, and this takes a millisecond.
"""

import dataclasses
import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.core import rng
from diffusion_jax.generative import Diffusion
from diffusion_jax.likelihood import ContinuousBound, ProbabilityFlow, Spectrum, VariationalBound
from diffusion_jax.losses import Simple
from diffusion_jax.models import Network, NetworkBase
from diffusion_jax.processes import PREDICTIONS, PROCESSES, Denoiser
from diffusion_jax.samplers import SAMPLERS, Ancestral, Guidance, linear
from diffusion_jax.types import Batch, ImageSpec

SPEC = ImageSpec(1, 2, 1, 256, 0)
STEPS = (1, 2, 3, 7)
NUM = 3


class Bounded(NetworkBase):
  """A network's config whose output is a bounded function of what it is shown and of the time."""

  def create(self, spec, num_labels):
    def apply(params, x, time, condition, dropout_key=None):
      return jnp.tanh(3.0 * x + 0.01 * time[:, None, None, None] + params["b"])

    return Network(lambda key: {"b": jnp.float32(0.1)}, apply)


def parts(**changes):
  return {
    "process": PROCESSES["vp"](), "model": Bounded(), "loss": Simple(),
    "sampler": SAMPLERS["ddim"](steps=1), "guidance": Guidance(), "spectrum": Spectrum(5),
    "vlb": VariationalBound(), "continuous_vlb": ContinuousBound(times=8),
    "probability_flow": ProbabilityFlow(), **changes,
  }  # fmt: skip


def create(prediction, **changes):
  """The model, or None if it is refused with what to type instead."""
  try:
    return Diffusion(prediction=prediction).create(parts(**changes), SPEC)
  except ValueError as error:
    assert re.search(r"`(sampler|generative)\.", str(error)), error  # noqa: PT017
    return None


def variants(cls):
  """A sampler with each value of each of its options beside the defaults, its steps aside."""
  yield cls()
  for field in dataclasses.fields(cls):
    for value in getattr(field.type, "__args__", ()):
      if isinstance(value, str) and value not in (field.default, "learned"):
        yield dataclasses.replace(cls(), **{field.name: value})
  for option in ({"clip": False}, {"eta": 1.0}, {"s_churn": 5.0}):
    if set(option) <= {field.name for field in dataclasses.fields(cls)}:
      yield dataclasses.replace(cls(), **option)


KEYS = rng.example_keys(jax.random.key(0), np.arange(NUM))
IMAGES = np.random.default_rng(0).integers(0, 256, (NUM, *SPEC.shape)).astype(np.uint8)
BATCH = Batch(IMAGES, np.zeros(NUM, np.int32), np.ones(NUM, np.float32), np.arange(NUM, dtype="u4"))
FIXED = {name: cls for name, cls in SAMPLERS.items() if name != "probability_flow"}
PARAMS = {"b": np.float32(0.1)}


def bounded(process, prediction):
  """The bounded network with its parameters."""
  network = functools.partial(Bounded().create(SPEC, 0).apply, PARAMS)
  return Denoiser(network, process, prediction)


def denoiser(process, prediction):
  """(xt, t) -> x0 estimate of the bounded network."""
  estimate = jax.jit(bounded(process, prediction).denoise)
  return lambda xt, t: np.asarray(estimate(xt, np.full(NUM, t, np.float32)))


def walk(tableau, denoise, x, clip, rng):
  """A sampler's tableau as a plain loop: what `samplers.linear.integrate` scans."""
  draw = lambda: rng.standard_normal(x.shape, np.float32)  # noqa: E731
  if tableau.start_churn is not None:
    x = np.float32(tableau.start_churn[0]) * x + np.float32(tableau.start_churn[1]) * draw()
  base, past = np.zeros_like(x), [np.zeros_like(x)] * tableau.state.x0.shape[1]

  def combine(weights, row):
    total = sum(np.float32(w) * e for w, e in zip(weights.x0[row], past, strict=True))
    total = total + np.float32(weights.xt[row]) * x
    total = total if weights.base is None else total + np.float32(weights.base[row]) * base
    return total if weights.noise is None else total + np.float32(weights.noise[row]) * draw()

  for row, t in enumerate(tableau.t):
    estimate = denoise(x, t)
    past = [np.clip(estimate, -1, 1) if clip else estimate, *past[:-1]]
    base, x = (
      base if tableau.base is None else combine(tableau.base, row), combine(tableau.state, row)
    )  # fmt: skip
  return x


def test_the_plain_loop_is_the_sampler():
  """Of one sampler with a base state and one with earlier estimates, both without noise."""
  process = PROCESSES["vp"]()
  denoise = denoiser(process, "v")
  ask = bounded(process, "v").denoise
  for sampler in (SAMPLERS["heun"](steps=3), SAMPLERS["dpm_solver_pp_3m"](steps=4)):
    tableau, x = sampler.tableau(process), np.float32([[[[0.3], [-1.2]]]] * NUM)
    exact = linear.integrate(tableau, ask, jnp.array(x))
    found = walk(tableau, denoise, x, False, None)
    np.testing.assert_allclose(found, exact.images, rtol=1e-4, atol=1e-5)


@pytest.mark.costly
@pytest.mark.parametrize("name", PROCESSES)
def test_samples_are_finite(name):
  process, rng = PROCESSES[name](), np.random.default_rng(0)
  models = {p: denoiser(process, p) for p in PREDICTIONS if create(p, process=PROCESSES[name]())}
  assert {"v", "x0", "velocity", "edm"} <= set(models)
  made = refused = 0
  for cls, steps in itertools.product(FIXED.values(), STEPS):
    for sampler in variants(cls):
      sampler = dataclasses.replace(sampler, steps=steps)
      try:
        sampler.check(process)
      except ValueError as error:
        assert re.search(r"`sampler\.", str(error)), error  # noqa: PT017
        refused += 1
        continue
      tableau = sampler.tableau(process)
      assert tableau.width is None
      for prediction, denoise in models.items():
        x = np.float32(process.prior_std) * rng.standard_normal((NUM, *SPEC.shape), np.float32)
        found = walk(tableau, denoise, x, sampler.clip, rng)
        assert np.isfinite(found).all(), (sampler, prediction)
        made += 1
  assert made > refused


@pytest.mark.costly
@pytest.mark.parametrize("process", PROCESSES)
def test_bounds_and_the_loss_are_finite(process):
  ends = (None, None), (1, None), (2, 3.0), (7, None), (7, 3.0)
  estimators = [
    {"continuous_vlb": ContinuousBound(times=3, num_timesteps=num, max_log_snr=high)}
    for num, high in ends
  ] + [
    {"vlb": VariationalBound(variance, clip, cdf)}
    for variance, clip, cdf in itertools.product(
      ("fixed_large", "fixed_small"), (True, False), ("exact", "tanh")
    )
  ]  # fmt: skip
  forward = PROCESSES[process](5) if process in ("linear_vp", "cosine_vp") else PROCESSES[process]()
  measured = 0
  with jax.disable_jit():
    for prediction in PREDICTIONS:
      model = create(prediction, process=forward)
      if model is None:
        continue
      losses, _, _ = model.loss(PARAMS, {}, jax.random.key(1), BATCH, train=True)
      assert np.isfinite(losses).all(), prediction
      assert np.isfinite(model.loss_by_log_snr(PARAMS, KEYS, BATCH).eps_mse).all(), prediction
      for estimator in estimators:
        (name,) = estimator
        if name in model.likelihoods:
          other = create(prediction, process=forward, **estimator)
          found = other.likelihoods[name](PARAMS, KEYS, BATCH)
          assert np.isfinite(found.bits_per_dim).all(), (prediction, estimator)
          measured += 1
  assert measured >= 4 * len(ends)


def test_what_says_nothing_at_pure_noise_is_refused_with_what_to_type():
  for prediction in ("eps", "score"):
    with pytest.raises(ValueError, match=f"prediction={prediction} is undefined .*=velocity`, v, "):
      Diffusion(prediction=prediction).create(parts(process=PROCESSES["flow"]()), SPEC)
  assert create("eps", sampler=Ancestral(steps=1)) is not None
