"""Every entry keeps the contract of a sampler, on 2-D points; one from outside works everywhere."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from outside import Midpoint, Restart

from diffusion_jax.auditing.sampler_rows import audit_samplers
from diffusion_jax.core import rng
from diffusion_jax.core.broadcasting import expand
from diffusion_jax.core.registry import broken_contract
from diffusion_jax.models import NOISE_SCHEDULES
from diffusion_jax.processes import PROCESSES
from diffusion_jax.runs.experiment import build_experiment
from diffusion_jax.samplers import (
  DDIM,
  SAMPLERS,
  Ancestral,
  Heun,
  LinearSampler,
  Sampler,
  SamplerBase,
  editing,
  initial_states,
  keys_per_example,
)
from diffusion_jax.types import Batch, Condition, ImageSpec, UserError

MEAN, STD = np.float32([0.4, -0.8]), np.float32([0.5, 0.2])
EVERYWHERE = {**PROCESSES, **NOISE_SCHEDULES}
KEY = jax.random.key(0)


def gaussian(process):
  """E[x0 | x_t] of points N(MEAN, diag(STD^2)), each coordinate for itself."""

  def denoise(xt, t):
    alpha, sigma = (expand(c, xt) for c in process.alpha_sigma(t))
    gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
    return MEAN + gain * (xt - alpha * MEAN)

  return denoise


def drawn(sampler, config, num):
  """Points, and where the ODE takes their x_1 to: (x - alpha MEAN) / its deviation stays."""
  process = config.bind(config.init(jax.random.key(3)))

  def both(key):
    x = initial_states(process, keys_per_example(key, num), (2,))
    alpha, sigma = process.alpha_sigma(jnp.ones(()))
    exact = MEAN + STD * (x - alpha * MEAN) / jnp.sqrt(alpha**2 * STD**2 + sigma**2)
    return sampler.sample(gaussian(process), process, key, (num, 2)).images, exact

  found, exact = jax.jit(both)(KEY)
  assert found.shape == (num, 2)
  return np.asarray(found), np.asarray(exact)


def with_steps(cls, num):
  fields = {f.name for f in dataclasses.fields(cls)}
  return cls(**{k: v for k, v in {"steps": num, "clip": False}.items() if k in fields})


def close_to_the_data(sampler, config):
  num = 2000 if sampler.stochastic else 8
  found, exact = drawn(sampler, config, num)
  if sampler.stochastic:
    np.testing.assert_allclose(found.mean(0), MEAN, atol=0.05)
    np.testing.assert_allclose(found.std(0), STD, atol=0.05)
  else:
    np.testing.assert_allclose(found, exact, atol=0.05 if sampler.order == 1 else 0.01)


@pytest.mark.costly
@pytest.mark.parametrize("place", ["edm", "linear_vp", "flow"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_points_of_a_gaussian_by_every_sampler(name, place):
  sampler = with_steps(SAMPLERS[name], 100)
  if name == "probability_flow" and place == "linear_vp":
    with pytest.raises(ValueError, match="needs a process in continuous time"):
      sampler.check(PROCESSES[place]())
    return
  sampler.check(PROCESSES[place]())
  close_to_the_data(sampler, PROCESSES[place]())


@pytest.mark.costly
@pytest.mark.parametrize("place", EVERYWHERE)
def test_points_of_a_gaussian_on_every_process(place):
  close_to_the_data(Heun(steps=60), EVERYWHERE[place]())


@pytest.mark.parametrize("cls", [Midpoint])
@pytest.mark.parametrize("place", ["edm", "vp"])
def test_points_of_a_gaussian_by_a_loop_from_outside(cls, place):
  close_to_the_data(cls(steps=30), PROCESSES[place]())


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_entry_keeps_the_contract(name):
  assert broken_contract(SAMPLERS[name], Sampler) is None
  sampler, process = SAMPLERS[name](), PROCESSES["edm"]()
  assert isinstance(sampler, Sampler)
  times, num = sampler.evaluation_times(process), sampler.num_evaluations(process)
  assert (times is None) == (num is None)
  assert times is None or len(times) == num
  assert sampler.end_time(process) is None
  assert type(sampler)(final="min_time").end_time(process) == process.min_time
  assert sampler.fit(False).needs_variance is False


DEFAULTS = {
  "ancestral": (1000, True), "ddim": (50, True), "euler": (50, False), "heun": (18, False),
  "dpm_solver_pp_2m": (20, False), "dpm_solver_pp_3m": (20, False),
  "dpm_solver_pp_2m_sde": (20, False), "unipc": (20, False),
}  # fmt: skip


@pytest.mark.parametrize("name", DEFAULTS)
def test_the_shared_fields_keep_their_defaults_and_what_is_stored_is_read(name):
  sampler = SAMPLERS[name]()
  assert (sampler.steps, sampler.clip) == DEFAULTS[name]
  assert (sampler.spacing, sampler.final, sampler.rho) == ("auto", "data", 7.0)
  stored = {f.name: getattr(sampler, f.name) for f in dataclasses.fields(sampler)}
  assert SAMPLERS[name](**dict(reversed(stored.items()))) == sampler
  assert Ancestral(7, "learned") == Ancestral(steps=7, variance="learned")


def test_one_key_is_one_key_per_example():
  process, sampler = PROCESSES["vp"](), Ancestral(steps=3)
  draw = jax.jit(lambda key: sampler.sample(gaussian(process), process, key, (4, 2)).images)
  keys = rng.example_keys(KEY, jnp.arange(4))
  whole = np.asarray(draw(KEY))
  np.testing.assert_array_equal(whole, draw(keys))
  assert keys[2] == rng.numbered(KEY, 2)
  last = jax.jit(lambda k: sampler.sample(gaussian(process), process, k, (1, 2)).images)(keys[3:])
  np.testing.assert_allclose(last, whole[3:], rtol=1e-5)
  with pytest.raises(ValueError, match=r"key has shape \(4,\) and shape\[0\]=5"):
    sampler.sample(gaussian(process), process, keys, (5, 2))


def test_points_are_encoded_decoded_interpolated_and_filled_in():
  process, sampler = PROCESSES["vp"](), DDIM(steps=200, clip=False)
  x0 = jnp.asarray(MEAN + STD * np.float32([[1, -1], [0.3, 0.7], [-1, 0.2]]))
  known = jnp.asarray([[True, False]] * 3)

  @jax.jit
  def run(x0):
    noise = editing.encode(gaussian(process), process, x0, sampler)
    filled = editing.inpaint(gaussian(process), process, KEY, x0, known, sampler).images
    between = editing.interpolate(noise[:1], noise[1:2], np.float32([0, 0.5, 1]))
    return editing.decode(gaussian(process), process, noise, sampler), filled, between, noise

  back, filled, between, noise = run(x0)
  np.testing.assert_allclose(back, x0, atol=0.02)
  np.testing.assert_array_equal(filled[:, 0], x0[:, 0])
  assert between.shape == (3, 1, 2)
  np.testing.assert_allclose(between[[0, 2], 0], noise[:2], atol=1e-5)


# ---- From outside -------------------------------------------------------------------------------


@pytest.fixture
def added():
  SAMPLERS["midpoint"], SAMPLERS["restart"] = Midpoint, Restart
  yield
  del SAMPLERS["midpoint"], SAMPLERS["restart"]


CONFIG = {
  "generative": {"name": "diffusion", "conditional": True, "prediction": "v"},
  "process": {"name": "vp"}, "model": {"name": "mlp", "hidden": 8, "depth": 1},
  "loss": {"name": "simple"}, "sampler": {"name": "midpoint", "steps": 3},
  "data": {"name": "digits"}, "optimizer": {"name": "adam"},
  "guidance": {"weight": 2.0, "interval_low": 0.1, "interval_high": 3.0},
}  # fmt: skip


@pytest.mark.costly
@pytest.mark.parametrize(
  ("sampler", "evaluations"),
  [({"name": "midpoint", "steps": 3}, 14), ({"name": "restart"}, 6),
   ({"name": "outside:Midpoint", "steps": 2}, 10)],
)  # fmt: skip
def test_a_loop_from_outside_trains_samples_and_is_guided_in_an_interval(
  added, sampler, evaluations
):
  spec = ImageSpec(4, 4, 1, 17, 3)
  model = build_experiment({**CONFIG, "sampler": sampler}).create(spec)
  images = np.zeros((2, 4, 4, 1), np.uint8)
  batch = Batch(images, np.zeros(2, np.int32), np.ones(2, np.float32), np.arange(2))

  @jax.jit
  def run(key):
    params, state = model.init(key)
    loss = model.loss(params, state, key, batch, train=True)
    keys = rng.example_keys(key, jnp.arange(2))
    return loss.values, model.sample(params, keys, Condition(jnp.asarray([0, 1])))

  values, samples = run(KEY)
  assert np.isfinite(values).all()
  assert samples.images.shape == (2, 4, 4, 1)
  assert np.isfinite(samples.images).all()
  assert int(samples.num_evaluations) == evaluations  # twice: when guidance acts is not declared
  assert not {"edit", "trajectory"} & model.capabilities


def test_a_loop_that_gives_its_times_counts_the_interval():
  @dataclasses.dataclass(frozen=True)
  class Counted(Midpoint):
    def evaluation_times(self, process):
      return np.linspace(1.0, process.min_time, self.num_evaluations(process))

  SAMPLERS["counted"] = Counted
  try:
    model = build_experiment({**CONFIG, "sampler": {"name": "counted", "steps": 3}}).create(
      ImageSpec(4, 4, 1, 17, 3)
    )
    process = PROCESSES["vp"]()
    alpha, sigma = process.alpha_sigma(np.linspace(1.0, process.min_time, 7))
    inside = ((sigma / alpha >= 0.1) & (sigma / alpha <= 3.0)).sum()
    assert 0 < inside < 7

    def count(key):
      params, _ = model.init(key)
      keys = rng.example_keys(key, jnp.arange(2))
      return model.sample(params, keys, Condition(jnp.asarray([0, 1]))).num_evaluations

    assert int(jax.jit(count)(KEY)) == 7 + inside
  finally:
    del SAMPLERS["counted"]


def test_what_a_sampler_lacks_is_named():
  @dataclasses.dataclass(frozen=True)
  class NoOrder(SamplerBase):
    stochastic = False

    def num_evaluations(self, process):
      return 1

    def sample(self, denoise, process, key, shape):
      return None

  @dataclasses.dataclass(frozen=True)
  class NoGrid(LinearSampler):
    order, stochastic = 1, False

  SAMPLERS["no_order"], SAMPLERS["no_grid"] = NoOrder, NoGrid
  try:
    with pytest.raises(UserError, match=r"no_order: order is missing \(Order p: the error"):
      SAMPLERS.find("no_order", "config.sampler.name")
    with pytest.raises(UserError, match=r"no_grid: on_grid is missing \(Return the coefficients"):
      SAMPLERS.find("no_grid", "config.sampler.name")
    for name, cls in (("no_order", NoOrder), ("no_grid", NoGrid)):
      (row,) = audit_samplers({name: cls})
      assert "is missing" in row.quantity
      assert not row.passed
  finally:
    del SAMPLERS["no_order"], SAMPLERS["no_grid"]


def test_the_audit_serves_a_loop_that_declares_no_steps():
  rows = {row.quantity: row for row in audit_samplers({"restart": Restart}) if "edm" in row.entry}
  assert set(rows) == {"network evaluations", "standard deviation of Gaussian data"}
  assert rows["network evaluations"].passed
  assert not rows["standard deviation of Gaussian data"].passed  # it returns E[x0 | x_1]


@pytest.mark.costly
def test_the_audit_measures_the_order_of_a_loop_from_outside():
  @dataclasses.dataclass(frozen=True)
  class Boastful(Midpoint):
    order = 3

  rows = list(audit_samplers({"midpoint": Midpoint, "boastful": Boastful}))
  assert [row.entry for row in rows if not row.passed] == ["boastful on edm, 64 to 256 steps"]
  assert sum(row.quantity == "order of the error" for row in rows) == 2
