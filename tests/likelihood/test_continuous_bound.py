"""The bound in continuous time against its closed forms for Gaussian data."""

import functools
import math

import jax
import numpy as np
import pytest
from numpy_draws import normal
from scipy import integrate, special, stats

from diffusion_jax.auditing.oracles import ExactDenoiser
from diffusion_jax.core import rng
from diffusion_jax.likelihood import ContinuousBound
from diffusion_jax.processes import PROCESSES, LinearLogSNR, LinearVP, reconstruction
from diffusion_jax.types import Examples

VDM = LinearLogSNR()
NUM = 1500


def keys(num=NUM, seed=0):
  return rng.example_keys(jax.random.key(seed), np.arange(num, dtype=np.uint32))


def best_model(process, variance):
  """The exact denoiser of independent Gaussian pixels."""

  def estimate(at, condition):
    return at.alpha * variance / (at.alpha**2 * variance + at.sigma**2) * at.xt

  return ExactDenoiser(process=process, estimate=estimate)


@functools.cache
def program(config, process):
  """The compiled bound of the exact denoiser: (keys, images, variance) -> estimate."""

  def run(keys, x, variance):
    return config.estimate(best_model(process, variance), Examples(x), keys)

  return jax.jit(run)


@functools.cache
def made(name):
  return PROCESSES[name]()


def nats(config, process, std, num_dims=16):
  """Mean and standard error a dimension of each term, over samples of the data."""
  x = np.float32(std) * normal(7, NUM, 4, 4, 1)
  found = program(config, process)(keys(), x, np.float32(std**2))
  values = {"total": found.bits_per_dim, **found.terms}
  values = {n: np.float64(v) * math.log(2) for n, v in values.items() if v.ndim == 1}
  return {n: (v.mean(), v.std(ddof=1) / math.sqrt(NUM)) for n, v in values.items()}


@pytest.mark.parametrize(
  ("std", "prior", "diffusion", "reconstruction", "total"),
  [
    (0.25, 2.204004e-04, 5.263509, -5.231075, 0.032654),
    (0.5, 8.478551e-04, 5.956015, -5.231065, 0.725798),
    (1.0, 3.357674e-03, 6.646643, -5.231062, 1.418939),
  ],
)
def test_vdms_terms_in_continuous_time(std, prior, diffusion, reconstruction, total):
  """The figures are those of the optimal decoder; ours is wider by a relative 1e-5."""
  found = nats(ContinuousBound(64), VDM, std)
  expected = {
    "prior": prior,
    "diffusion": diffusion,
    "reconstruction": reconstruction,
    "total": total,
  }
  for name, value in expected.items():
    mean, error = found[name]
    assert abs(mean - value) < 4 * error + 1e-4, name
    assert error < 0.02 * max(abs(value), 1.0), name


@pytest.mark.parametrize(("num", "diffusion"), [(50, 7.081741), (250, 6.160468), (1000, 6.006237)])
def test_vdms_middle_term_with_steps(num, diffusion):
  mean, error = nats(ContinuousBound(64, num), VDM, 0.5)["diffusion"]
  assert abs(mean - diffusion) < 4 * error
  assert error < 0.02 * diffusion


@pytest.mark.parametrize("name", ["cosine", "vp", "sub_vp", "edm", "flow"])
def test_only_the_ends_of_the_log_snr_matter(name):
  """1/2 ln[(1 + s^2 SNR_0) / (1 + s^2 SNR_1)], whatever the path between (equation 18)."""
  process, std = made(name), 0.5
  mean, error = nats(ContinuousBound(64), process, std)["diffusion"]
  ends = process.log_snr(np.asarray([process.min_time or 1e-5, 1.0]))
  high, low = np.log1p(std**2 * np.exp(ends))
  assert abs(mean - 0.5 * (high - low)) < 4 * error
  assert error < 0.02 * mean


def test_it_bounds_the_entropy_from_above():
  """Terms add up; with the exact denoiser the gap is the prior's mismatch and the decoder's."""
  entropy = 0.5 * math.log(2 * math.pi * math.e * 0.25)
  mean, error = nats(ContinuousBound(64), VDM, 0.5)["total"]
  assert abs(mean - entropy) < 4 * error + 2e-3


def test_grey_levels_are_read_by_their_posterior():
  """E[-log p(k | z_0)] by quadrature, where neighbouring levels overlap."""
  process = LinearLogSNR(log_snr_max=3.0)
  levels, ratio = np.linspace(-1, 1, 5), math.exp(-1.5)
  x = np.tile(np.float32(levels)[:, None, None, None], (1, 40, 40, 1))
  found = np.asarray(jax.jit(lambda k, x: reconstruction(process, k, x, 5))(keys(5), x)) / 1600

  def cost(z, k):
    log_q = stats.norm.logpdf(z, levels, ratio)
    return stats.norm.pdf(z, levels[k], ratio) * (special.logsumexp(log_q) - log_q[k])

  expected = [integrate.quad(cost, -4, 4, args=(k,), limit=200)[0] for k in range(5)]
  np.testing.assert_allclose(found, expected, rtol=0.06)


def test_the_curve_adds_up_and_draws_differ():
  model = best_model(VDM, 0.25)
  x = np.full((3, 4, 4, 1), 0.2, np.float32)
  run = jax.jit(lambda k, x: ContinuousBound(8).estimate(model, Examples(x, num_levels=256), k))
  found = jax.device_get(run(keys(3), x))
  assert found.terms["curve"].shape == (3, 8)
  np.testing.assert_allclose(found.terms["curve"].sum(1), found.terms["diffusion"], rtol=1e-5)
  assert len(set(found.terms["curve"].ravel().tolist())) == 24


def test_processes_with_steps_are_not_its_own():
  assert not ContinuousBound().serves(LinearVP())
  assert ContinuousBound().serves(VDM)


@pytest.mark.parametrize("wrong", [{"times": 0}, {"num_timesteps": 0}])
def test_impossible_fields_are_refused(wrong):
  with pytest.raises(ValueError, match="must"):
    ContinuousBound(**wrong)


@pytest.mark.parametrize("name", ["flow", "edm"])
def test_the_bound_may_begin_at_more_noise(name):
  """z_0 of SNR e^4: 1/2 ln[(1 + s^2 e^4) / (1 + s^2 SNR_1)] and the entropy of noise of e^-4."""
  process, std = made(name), 0.5
  found = nats(ContinuousBound(64, max_log_snr=4.0), process, std)
  low = np.log1p(std**2 * np.exp(max(float(process.log_snr(np.asarray(1.0))), -20.0)))
  expected = {
    "diffusion": 0.5 * (math.log1p(std**2 * math.exp(4.0)) - low),
    "reconstruction": 0.5 * (math.log(2 * math.pi * math.e) - 4.0),
  }
  for term, value in expected.items():
    mean, error = found[term]
    assert abs(mean - value) < 4 * error + 1e-4, term
  unchanged = nats(ContinuousBound(64, max_log_snr=99.0), process, std)["total"]
  assert unchanged == nats(ContinuousBound(64), process, std)["total"]
