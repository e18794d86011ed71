"""The variational bound against closed forms: Gaussian data and the best linear predictor.

Expectations over data and noise are taken exactly, not by drawing: every term but the discrete
decoder is quadratic in both, so the two points +-1 give its mean; the decoder takes Gauss-Hermite
nodes. Then the same program runs once on its own draws.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.gaussian_chain import (
  COSINE,
  LINEAR,
  LOG_2,
  Optimal,
  expectation,
  keys,
  measure,
  program,
)

from diffusion_jax.core.pixels import from_levels
from diffusion_jax.likelihood import VariationalBound, variational_bound
from diffusion_jax.parallel import sharding
from diffusion_jax.parallel.sharding import MeshShape, create_mesh
from diffusion_jax.processes import Denoiser, LinearVP
from diffusion_jax.types import Examples

# Data N(0, s^2), linear schedule, T = 1000, nats a dimension, by 50-digit arithmetic:
# s, variance -> prior, KLs of t = 2..T, decoder, exact negative log-likelihood of the chain.
GAUSSIAN = {
  (0.25, "fixed_small"): (1.261604e-06, 3.659800, -3.073902, 0.032858),
  (0.25, "fixed_large"): (1.261604e-06, 3.224833, -3.073902, 0.032662),
  (0.5, "fixed_small"): (5.045194e-06, 4.368516, -3.072804, 0.725851),
  (0.5, "fixed_large"): (5.045194e-06, 3.913260, -3.072804, 0.725794),
  (1.0, "fixed_small"): (2.017956e-05, 5.070042, -3.072529, 1.418958),
  (1.0, "fixed_large"): (2.017956e-05, 4.605150, -3.072529, 1.418939),
  (2.0, "fixed_small"): (8.071700e-05, 5.768340, -3.072460, 2.112096),
  (2.0, "fixed_large"): (8.071700e-05, 5.299052, -3.072460, 2.112087),
}
# The KL of single steps, s = 0.5.
STEPS = (2, 10, 100, 500, 1000)
STEP_KL = {
  "fixed_small": (5.991444e-01, 8.578514e-02, 7.035926e-03, 1.149964e-04, 1.029622e-07),
  "fixed_large": (3.938396e-01, 7.917266e-02, 6.991450e-03, 1.150841e-04, 1.029623e-07),
}
# All 256 levels once, predictor for N(0, 257/765): bits/dim.
LEVELS_S2 = 257 / 765
EIGHT_BIT = {
  ("fixed_small", "exact"): 9.021732,
  ("fixed_small", "tanh"): 9.025897,
  ("fixed_large", "exact"): 8.361033,
  ("fixed_large", "tanh"): 8.365198,
}


@pytest.mark.parametrize(("s", "variance"), GAUSSIAN)
def test_every_term_of_gaussian_data(s, variance):
  prior, denoising, decoder, exact = GAUSSIAN[s, variance]
  found = expectation(VariationalBound(variance, clip=False), LINEAR, s)
  np.testing.assert_allclose(found.terms["prior"], prior, rtol=1e-6)
  # x0 - x0_hat is about 0.01 at first: each rounding to 2^-24 s moves its square by 1.2e-5 s, and
  # both x_t and the estimate are rounded.
  rounding = 2.4e-5 * max(s, 0.5)
  np.testing.assert_allclose(found.terms["denoising"], denoising, atol=rounding)
  np.testing.assert_allclose(found.terms["reconstruction"], decoder, atol=rounding)
  np.testing.assert_allclose(found.bits_per_dim, prior + denoising + decoder, atol=rounding)
  assert found.bits_per_dim > exact


@pytest.mark.parametrize("variance", STEP_KL)
@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_the_kl_of_single_steps(variance, prediction):
  """Down to 1e-7 nats, where the difference of two log-densities in float32 has no digit left."""
  bound = VariationalBound(variance, clip=False)
  curve = expectation(bound, LINEAR, 0.5, prediction).terms["curve"]
  np.testing.assert_allclose(curve[np.subtract(STEPS, 1)], STEP_KL[variance], rtol=5e-6)
  assert (curve[1:] > 0).all()


@pytest.mark.parametrize(
  ("variance", "bits"), [("fixed_small", 1.811714), ("fixed_large", 1.232298)]
)
def test_the_total_on_the_cosine_schedule(variance, bits):
  found = expectation(VariationalBound(variance, clip=False), COSINE, 0.5)
  np.testing.assert_allclose(found.bits_per_dim / LOG_2, bits, atol=5e-6)


@pytest.mark.parametrize("process", [LINEAR, COSINE, LinearVP(20, 0.005, 0.6)])
def test_the_best_variance_leaves_only_the_gap_of_the_prior(process):
  """Total = entropy of the data + KL(q(x_T) || N(0, 1)), whatever the schedule."""
  found = expectation(Optimal(clip=False), process, 0.5)
  v = process.alphas_cumprod[-1] * 0.25 + 1 - process.alphas_cumprod[-1]
  exact = 0.5 * math.log(2 * math.pi * math.e * 0.25) + 0.5 * (v - 1 - math.log(v))
  np.testing.assert_allclose(found.bits_per_dim, exact, atol=5e-6)


def chain_nll(bound, process, s2):
  """-E log p(x0) of the generated chain itself, which is Gaussian: its variance, step by step."""
  now, before = process.alphas_cumprod[1:], process.alphas_cumprod[:-1]
  beta, spread = 1 - now / before, 1.0
  gain = np.sqrt(now) * s2 / (now * s2 + 1 - now)
  mean = beta * np.sqrt(before) / (1 - now) * gain + np.sqrt(1 - beta) * (1 - before) / (1 - now)
  for m, variance in zip(mean[::-1], bound.variances(process)[::-1], strict=True):
    spread = m**2 * spread + variance
  return 0.5 * (math.log(2 * math.pi * spread) + s2 / spread)


@pytest.mark.parametrize(("s", "variance"), GAUSSIAN)
def test_the_chain_that_is_bounded_is_the_chain_that_was_solved(s, variance):
  found = chain_nll(VariationalBound(variance), LINEAR, s**2)
  np.testing.assert_allclose(found, GAUSSIAN[s, variance][3], atol=6e-7)


@pytest.mark.parametrize("num_timesteps", [1, 2, 5, 50])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_it_bounds_the_chain_at_any_length(num_timesteps, variance):
  process = LinearVP(num_timesteps, 0.01, 0.7)
  bound = VariationalBound(variance, clip=False)
  found = expectation(bound, process, 0.6)
  assert chain_nll(bound, process, 0.36) < found.bits_per_dim < 20
  assert found.terms["curve"].shape == (num_timesteps,)


# ---- Grey levels --------------------------------------------------------------------------------

ALL_LEVELS = np.arange(256).reshape(1, 16, 16, 1)


def levels(image):
  """As a network is shown them."""
  return np.asarray(from_levels(image, 256))


def level_bits(bound, num_nodes=40):
  """Bits/dim over all 256 levels; image i holds them all under the i-th node of the noise."""
  nodes, weights = np.polynomial.hermite_e.hermegauss(num_nodes)
  x0 = levels(np.repeat(ALL_LEVELS, num_nodes, axis=0))
  found = measure(bound, LINEAR, x0, 256, LEVELS_S2, eps=nodes)
  return jax.tree.map(lambda v: np.average(v, axis=0, weights=weights), found)


@pytest.mark.parametrize(("variance", "cdf"), EIGHT_BIT)
def test_all_levels_once_are_the_known_bits(variance, cdf):
  found = level_bits(VariationalBound(variance, clip=False, cdf=cdf))
  np.testing.assert_allclose(found.bits_per_dim, EIGHT_BIT[variance, cdf], atol=2e-5)
  kl = {"fixed_small": 4.518479, "fixed_large": 4.060517}[variance]
  decoder = {"exact": 1.734903, "tanh": 1.737790}[cdf]
  np.testing.assert_allclose(found.terms["prior"] * LOG_2, 6.779546e-06, rtol=1e-5)
  np.testing.assert_allclose(found.terms["denoising"] * LOG_2, kl, atol=5e-6)
  np.testing.assert_allclose(found.terms["reconstruction"] * LOG_2, decoder, atol=1e-5)


@pytest.mark.parametrize(("level", "nats"), [(0, 0.827327), (128, 1.741803)])
def test_the_decoder_of_one_level(level, nats):
  """The first level owns all of its tail; an inner one has its bin."""
  nodes, weights = np.polynomial.hermite_e.hermegauss(40)
  x0 = np.full((40, 16, 16, 1), 2 * level / 255 - 1)
  bound = VariationalBound("fixed_large", clip=False)
  found = measure(bound, LINEAR, x0, 256, LEVELS_S2, eps=nodes)
  mean = np.average(found.terms["reconstruction"], weights=weights) * LOG_2
  np.testing.assert_allclose(mean, nats, atol=1e-5)


def test_clipping_is_the_published_switch():
  """8.8959 +- 0.0074 by Monte Carlo with the small variance; the clip has kinks: more nodes."""
  found = level_bits(VariationalBound("fixed_small"), 200)
  assert abs(found.bits_per_dim - 8.8959) < 3 * 0.0074
  assert VariationalBound().clip


@pytest.mark.parametrize("num_levels", [2, 17, 256])
def test_the_decoders_probabilities_sum_to_one(num_levels):
  """One pixel, every level in turn, under one and the same estimate."""
  process = LinearVP(20, 0.05, 0.6)
  model = Denoiser(lambda xt, *_: 0 * xt + 0.3, process, "x0")

  @jax.jit
  def run(keys):
    x0 = from_levels(np.arange(num_levels).reshape(-1, 1, 1, 1), num_levels)
    return VariationalBound().estimate(model, Examples(x0, num_levels=num_levels), keys)

  found = run(keys(num_levels))
  np.testing.assert_allclose(
    np.exp2(-np.float64(found.terms["reconstruction"])).sum(), 1.0, rtol=1e-5
  )


# ---- With its own draws -------------------------------------------------------------------------


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_its_own_draws_agree_within_their_standard_errors(variance):
  """96 images of 64 pixels of +-0.5, whose second moment is that of N(0, 0.25)."""
  x0 = np.random.default_rng(9).choice([-0.5, 0.5], (96, 8, 8, 1))
  found = measure(VariationalBound(variance, clip=False), LINEAR, x0, prediction="v")
  prior, denoising, decoder, _ = GAUSSIAN[0.5, variance]
  np.testing.assert_allclose(found.terms["prior"] * LOG_2, prior, rtol=1e-6)  # nothing is drawn
  assert z_score(found.terms["denoising"] * LOG_2, denoising) < 4
  assert z_score(found.terms["reconstruction"] * LOG_2, decoder) < 4
  assert z_score(found.bits_per_dim * LOG_2, prior + denoising + decoder) < 4
  error = found.bits_per_dim.std(ddof=1) / math.sqrt(96) * LOG_2
  print(f"{variance}: {found.bits_per_dim.mean() * LOG_2:.4f} ± {error:.4f} nats")
  assert error < 0.03
  steps = np.subtract(STEPS, 1)
  scores = [z_score(found.terms["curve"][:, t] * LOG_2, e)
            for t, e in zip(steps, STEP_KL[variance], strict=True)]  # fmt: skip
  assert max(scores) < 4


def z_score(values, exact):
  return abs(values.mean() - exact) / (values.std(ddof=1) / math.sqrt(len(values)))


def test_each_step_draws_its_own_noise():
  """The errors of neighbouring steps are uncorrelated over images, whose pixels are all alike."""
  found = measure(VariationalBound(clip=False), LINEAR, np.zeros((64, 2, 2, 1)))
  errors = found.terms["curve"][:, 1:]
  scaled = (errors - errors.mean(axis=0)) / errors.std(axis=0)
  correlation = (scaled[:, 1:] * scaled[:, :-1]).mean()
  assert abs(correlation) < 5 / math.sqrt(64 * 998)


def test_terms_add_up():
  x0 = levels(ALL_LEVELS.reshape(4, 8, 8, 1))
  found = measure(VariationalBound(), LINEAR, x0, 256)
  terms = found.terms
  np.testing.assert_allclose(
    found.bits_per_dim, terms["prior"] + terms["denoising"] + terms["reconstruction"], rtol=1e-6
  )
  np.testing.assert_allclose(
    terms["curve"].sum(axis=1), terms["denoising"] + terms["reconstruction"], rtol=1e-6
  )
  np.testing.assert_allclose(terms["curve"][:, 0], terms["reconstruction"], rtol=1e-6)
  assert terms["curve"].shape == (4, 1000)


SHORT = LinearVP(20, 0.005, 0.6)


def short_bits(x0, k, mesh=None):
  if mesh is not None:
    k, x0 = (jax.device_put(v, sharding.batch_sharding(mesh)) for v in (k, x0))
  return np.asarray(program(VariationalBound(), SHORT, 256)(k, x0, LEVELS_S2, None).bits_per_dim)


def test_an_example_depends_on_its_own_key_alone():
  x0 = levels(ALL_LEVELS.reshape(16, 4, 4, 1))
  whole = short_bits(x0, keys(16))
  np.testing.assert_allclose(short_bits(x0[5:8], keys(16)[5:8]), whole[5:8], rtol=1e-6)
  np.testing.assert_allclose(short_bits(x0[::-1], keys(16)[::-1]), whole[::-1], rtol=1e-6)
  assert (short_bits(x0, keys(16, seed=1)) != whole).all()


def test_it_is_the_same_on_eight_devices():
  x0 = levels(ALL_LEVELS.reshape(16, 4, 4, 1))
  mesh = create_mesh(MeshShape(), jax.devices()[:8])
  np.testing.assert_allclose(short_bits(x0, keys(16), mesh), short_bits(x0, keys(16)), rtol=1e-6)


# ---- A wrong term would be seen -----------------------------------------------------------------


class OwnVarianceAtOne(VariationalBound):
  """beta_1 at t = 1 instead of the posterior variance of t = 2."""

  def variances(self, process):
    return np.append(1 - process.alphas_cumprod[1], super().variances(process)[1:])


class WrongGain(VariationalBound):
  """The coefficient of x0 in q(x_{t-1} | x_t, x0) without its beta / (1 - alpha_bar_{t-1})."""

  def steps(self, process):
    steps = super().steps(process)
    return steps._replace(weight=0.5 * steps.alpha**2 / np.exp(steps.log_small))


class ShiftedSteps(VariationalBound):
  """Each step weighted as the one after it."""

  def steps(self, process):
    steps = super().steps(process)
    return steps._replace(weight=np.append(steps.weight[1:], steps.weight[-1]))


@pytest.mark.parametrize("wrong", [OwnVarianceAtOne, WrongGain, ShiftedSteps])
def test_a_wrong_term_would_be_seen(wrong):
  """Each moves the total by more than 100 times the tolerance of the tests above."""
  total = sum(GAUSSIAN[0.5, "fixed_large"][:3])
  found = expectation(wrong("fixed_large", clip=False), LINEAR, 0.5)
  assert abs(found.bits_per_dim - total) > 100 * 5e-6


class Forgetful(VariationalBound):
  """A class of its own, so that its program is not the right one's."""


def test_a_forgotten_offset_would_be_seen(monkeypatch):
  """The squared distance alone: the variances' part of the KL left out."""

  def distance(step, ratio, x0, estimate):
    return step.weight * jnp.exp(-ratio) * jnp.square(x0 - estimate)

  monkeypatch.setattr(variational_bound, "divergence", distance)
  found = expectation(Forgetful("fixed_large", clip=False), LINEAR, 0.5)
  assert abs(found.bits_per_dim - sum(GAUSSIAN[0.5, "fixed_large"][:3])) > 100 * 5e-6


def test_options_are_stated_by_their_fields():
  assert [f.name for f in dataclasses.fields(VariationalBound)] == ["variance", "clip", "cdf"]
  assert VariationalBound().figure_name == "vlb"
