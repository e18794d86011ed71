"""Variances that the network gives, in the variational bound: against closed forms."""

import functools
import math

import jax
import numpy as np
import pytest
from oracles.gaussian_chain import (
  COSINE,
  LINEAR,
  LOG_2,
  Optimal,
  expectation,
  fix_noise,
  keys,
  linear_model,
)

from diffusion_jax.likelihood import VariationalBound
from diffusion_jax.processes import LinearVP, reverse_steps
from diffusion_jax.types import Examples


@functools.cache
def program(bound, process):
  """The compiled bound of the best predictor: (keys, images, noise, s2, logits) -> estimate."""

  def run(keys, x0, eps, s2, logits):
    with pytest.MonkeyPatch.context() as patch:
      fix_noise(patch, eps)
      return bound.estimate(linear_model(process, s2, logits=logits), Examples(x0), keys)

  return jax.jit(run)


def learned_expectation(process, s, ratios, bound=VariationalBound(clip=False)):  # noqa: B008
  """As `expectation`, where log(variance / small) of each step is given [T]."""
  x0 = np.float32(s * np.asarray([1, 1, -1, -1]).reshape(4, 1, 1, 1))
  logits = np.float32(2 * ratios / reverse_steps(process).width - 1)
  eps = np.float32([1, -1, 1, -1])
  estimate = program(bound, process)(keys(4), x0, eps, np.float32(s**2), logits)
  estimate = jax.tree.map(np.float64, estimate)
  return jax.tree.map(lambda v: v.mean(axis=0) * LOG_2, estimate)


def best_ratios(process, s2):
  bound = Optimal()
  object.__setattr__(bound, "s2", s2)
  return np.log(bound.variances(process)) - reverse_steps(process).log_small


@pytest.mark.parametrize("process", [LINEAR, COSINE, LinearVP(20, 0.005, 0.6)])
@pytest.mark.parametrize("s", [0.25, 0.5, 1.0])
def test_the_best_learned_variance_leaves_only_the_gap_of_the_prior(process, s):
  """The exact posterior variance of p(x_{t-1} | x_t) makes every KL the least there is."""
  best = best_ratios(process, s**2)
  found = learned_expectation(process, s, best)
  v = process.alphas_cumprod[-1] * s**2 + 1 - process.alphas_cumprod[-1]
  exact = 0.5 * math.log(2 * math.pi * math.e * s**2) + 0.5 * (v - 1 - math.log(v))
  np.testing.assert_allclose(found.bits_per_dim, exact, atol=1.5e-5)
  for move in (-0.2, 0.2):  # no term is less elsewhere
    other = learned_expectation(process, s, best + move).terms["curve"]
    assert (other[: min(len(other), 100)] > found.terms["curve"][:100]).all()


@pytest.mark.parametrize(("share", "fixed"), [(0, "fixed_small"), (1, "fixed_large")])
def test_the_ends_of_the_learned_range_are_the_fixed_variances(share, fixed):
  """But for t = 1, whose large variance is beta_1 if it is learned."""
  ratios = share * reverse_steps(LINEAR).width
  found = learned_expectation(LINEAR, 0.5, ratios)
  other = expectation(VariationalBound(fixed, clip=False), LINEAR, 0.5)
  np.testing.assert_allclose(found.terms["curve"][1:], other.terms["curve"][1:], rtol=2e-4)
  beta_1, mmse = 1 - LINEAR.alphas_cumprod[1], Optimal().variances(LINEAR)[0]
  decoder = 0.5 * (math.log(2 * math.pi * beta_1) + mmse / beta_1)
  expected = decoder if share else other.terms["reconstruction"]
  np.testing.assert_allclose(found.terms["reconstruction"], expected, atol=2e-5)


def test_auto_takes_learned_variances_where_there_are_some():
  process = LinearVP(20, 0.005, 0.6)
  ratios = 0.3 * reverse_steps(process).width
  figures = {
    name: learned_expectation(process, 0.5, ratios, VariationalBound(name, clip=False)).bits_per_dim
    for name in ("auto", "learned", "fixed_large", "fixed_small")
  }
  assert figures["auto"] == figures["learned"]
  assert len(set(figures.values())) == 3
  plain = [
    expectation(VariationalBound(n, clip=False), process, 0.5).bits_per_dim
    for n in ("auto", "fixed_large")
  ]
  assert plain[0] == plain[1] == pytest.approx(figures["fixed_large"], rel=1e-6)


def test_learned_variances_of_a_network_without_are_refused():
  with pytest.raises(ValueError, match="variance='learned' needs a model with learned_variance=T"):
    VariationalBound("learned").variance_of(linear_model(LINEAR, 0.25))
