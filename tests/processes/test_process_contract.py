"""Every entry keeps the contract of a process; one that is added exists everywhere."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.auditing.process_rows import audit_processes
from diffusion_jax.core.registry import broken_contract
from diffusion_jax.generative import GENERATIVES
from diffusion_jax.models import NOISE_SCHEDULES, LearnedLinear
from diffusion_jax.processes import (
  PROCESSES,
  ContinuousProcess,
  DiscreteVP,
  LinearVP,
  Process,
  VariancePreserving,
  end_kl,
  namespace,
  prior_kl,
  reconstruction,
)
from diffusion_jax.processes.posterior import bound_term, reverse_steps
from diffusion_jax.runs.experiment import build_experiment
from diffusion_jax.types import ImageSpec, UserError

ENTRIES = {**PROCESSES, **NOISE_SCHEDULES}


@dataclasses.dataclass(frozen=True)
class Circle(ContinuousProcess):
  """alpha = cos(pi t / 2), sigma = sin(pi t / 2)."""

  min_time = 1e-3

  def alpha_sigma(self, t):
    xp = namespace(t)
    return xp.cos(np.pi / 2 * t), xp.sin(np.pi / 2 * t)

  def time_of(self, log_snr):
    xp = namespace(log_snr)
    return 2 / np.pi * xp.arctan(xp.exp(-0.5 * log_snr))


@dataclasses.dataclass(frozen=True)
class FlatBetas(DiscreteVP):
  """Equal betas."""

  num_timesteps: int = 50

  def betas(self):
    return np.full(self.num_timesteps, 0.2)


@pytest.fixture
def added():
  """Two processes of a user's own."""
  PROCESSES["circle"], PROCESSES["flat_betas"] = Circle, FlatBetas
  yield ("circle", "flat_betas")
  del PROCESSES["circle"], PROCESSES["flat_betas"]


@pytest.mark.parametrize("name", ENTRIES)
def test_every_entry_is_a_process(name):
  assert broken_contract(ENTRIES[name], Process) is None
  config = ENTRIES[name]()
  params = jax.eval_shape(config.init, jax.random.key(0))
  assert bool(jax.tree.leaves(params)) == config.learned
  if not config.learned:
    assert config.bind({}) is config
    assert config.interior is None
  assert config == ENTRIES[name]()
  assert hash(config) == hash(ENTRIES[name]())
  field, direction = config.noisier
  if field:
    assert field in {f.name for f in dataclasses.fields(config)}
    assert direction in ("higher", "lower")


@pytest.mark.parametrize("name", NOISE_SCHEDULES)
def test_a_learned_schedule_says_that_it_must_be_bound(name):
  config = NOISE_SCHEDULES[name]()
  for member in (config.alpha_sigma, config.log_snr, config.time_of, config.network_time):
    with pytest.raises(ValueError, match=r"bind them first, process\.bind\(process\.init\(key\)\)"):
      member(np.zeros(1))
  params = jax.jit(config.init)(jax.random.key(0))
  assert not config.bind(params).learned
  ends = jax.jit(lambda p, t: config.bind(p).log_snr(t))(params, np.asarray([0.0, 1.0]))
  np.testing.assert_allclose(ends, [13.3, -5.0], rtol=1e-5)


def test_tables_are_made_once():
  process = LinearVP(7)
  assert process.alphas_cumprod is process.alphas_cumprod
  assert process == LinearVP(7)
  assert dataclasses.replace(process, num_timesteps=5).alphas_cumprod.shape == (6,)


def test_an_added_process_exists_in_configs_and_the_audit(added, monkeypatch):
  for name in added:
    for generative in GENERATIVES.values():
      if "process" in generative.sections:
        assert generative.sections["process"].find(name, "process.name") is PROCESSES[name]
    config = {
      "generative": {"name": "diffusion", "prediction": "v"}, "process": {"name": name},
      "model": {"name": "mlp", "hidden": 8, "depth": 1}, "loss": {"name": "simple"},
      "sampler": {"name": "ddim", "steps": 4}, "data": {"name": "digits"},
      "optimizer": {"name": "adam"},
    }  # fmt: skip
    model = build_experiment(config).create(ImageSpec(4, 4, 1, 17, 0))
    assert jax.eval_shape(model.init, jax.random.key(0))
  for name in {*PROCESSES} - {*added}:  # which other tests audit
    monkeypatch.delitem(PROCESSES, name)
  rows = list(audit_processes())
  for name in added:
    assert sum(row.entry == name for row in rows) == 4
  assert all(row.passed for row in rows if row.entry in added), rows


def test_an_added_learned_schedule_is_audited():
  @dataclasses.dataclass(frozen=True)
  class Mine(LearnedLinear):
    pass

  rows = list(audit_processes({"mine": Mine}))
  assert len(rows) == 4
  assert all(row.passed for row in rows), rows


def test_what_a_process_lacks_is_named():
  @dataclasses.dataclass(frozen=True)
  class NoInverse(VariancePreserving):
    def log_snr(self, t):
      return 1.0 - t

  @dataclasses.dataclass(frozen=True)
  class NoBetas(DiscreteVP):
    pass

  PROCESSES["no_inverse"], PROCESSES["no_betas"] = NoInverse, NoBetas
  try:
    with pytest.raises(UserError, match=r"no_inverse: time_of is missing \(Return the time of"):
      PROCESSES.find("no_inverse", "config.process.name")
    with pytest.raises(UserError, match=r"no_betas: betas is missing \(Return beta_n of n = 1"):
      PROCESSES.find("no_betas", "config.process.name")
    (row,) = audit_processes({"no_betas": NoBetas})
    assert not row.passed
  finally:
    del PROCESSES["no_inverse"], PROCESSES["no_betas"]


@pytest.mark.parametrize("name", ["edm", "vp", "linear_vp"])
def test_the_ends_of_the_bound_for_points_are_those_of_images(name):
  """[B 2] and [B 1 2 1] hold the same numbers, so that each term is the same."""
  process, keys = PROCESSES[name](), jax.random.split(jax.random.key(0), 3)
  points = jnp.asarray([[0.3, -0.5], [1.0, 0.2], [-0.7, 0.9]])

  @jax.jit
  def terms(x0):
    return end_kl(process, x0), reconstruction(process, keys, x0, None)

  for shape in ((3, 1, 2, 1), (3, 2, 1)):
    np.testing.assert_allclose(terms(points.reshape(shape)), terms(points), rtol=1e-6)
  alpha, sigma = process.alpha_sigma(np.ones(1)) / np.float64(process.prior_std)
  closed = 0.5 * (alpha**2 * np.float64(points) ** 2 + sigma**2 - 1 - 2 * np.log(sigma)).sum(1)
  np.testing.assert_allclose(terms(points)[0], closed, rtol=1e-4, atol=1e-6)


def test_the_terms_of_ddpms_bound_for_points_are_those_of_images():
  process, number = LinearVP(20), jnp.asarray([1, 7, 20])
  points = jnp.asarray([[0.3, -0.5], [1.0, 0.2], [-0.7, 0.9]])
  steps = reverse_steps(process)

  @jax.jit
  def terms(x):
    return bound_term(steps, number, x, 0.9 * x, 0.1 * x, None), prior_kl(process, x)

  for found, expected in zip(terms(points), terms(points.reshape(3, 1, 2, 1)), strict=True):
    np.testing.assert_allclose(found, expected, rtol=1e-6)
