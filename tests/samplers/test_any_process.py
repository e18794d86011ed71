"""Every sampler on every process: identities, exact moments on Gaussian data, checks and counts."""

import dataclasses
import functools
import math
from typing import Any

import jax
import numpy as np
import pytest
from one_step import coefficients

from diffusion_jax.core.broadcasting import expand
from diffusion_jax.processes import (
  ContinuousCosineVP,
  ContinuousLinearVP,
  ContinuousProcess,
  EDMProcess,
  Flow,
  LinearVP,
  SubVP,
  VarianceExploding,
  VariancePreserving,
)
from diffusion_jax.samplers import (
  DDIM,
  SAMPLERS,
  Ancestral,
  DPMSolverPP2M,
  DPMSolverPP2MSDE,
  DPMSolverPP3M,
  Euler,
  Heun,
  UniPC,
  linear,
)
from diffusion_jax.samplers.grids import points

DISCRETE = LinearVP()
VP, EDM, FLOW = ContinuousLinearVP(), EDMProcess(), Flow()
PROCESSES = {
  "discrete": DISCRETE, "vp": VP, "edm": EDM, "flow": FLOW, "sub_vp": SubVP(),
  "cosine": ContinuousCosineVP(), "ve": VarianceExploding(),
}  # fmt: skip
FIXED = {name: cls for name, cls in SAMPLERS.items() if name != "probability_flow"}
MEAN, VARIANCE = 0.3, 0.25


def gaussian(process, mean=MEAN, variance=VARIANCE):
  """E[x0 | x_t] for data N(mean, variance)."""

  def denoise(xt, t):
    alpha, sigma = (expand(c, xt) for c in process.alpha_sigma(t))
    gain = alpha * variance / (alpha**2 * variance + sigma**2)
    return mean + gain * (xt - alpha * mean)

  return denoise


def moments(process, tableau, mean=MEAN, variance=VARIANCE, start=(0.0, None)):
  """Mean and variance of the last state from x_1 ~ N(0, prior_std^2), without sampling.

  The denoiser of Gaussian data is affine, so that (x, base, estimates, 1) is a linear Markov
  chain; its second moments follow a matrix recursion in float64.
  """
  first_mean, first_std = start[0], process.prior_std if start[1] is None else start[1]
  weights, kept = tableau.state, tableau.base
  num = weights.x0.shape[1]
  size = num + 3  # x, base, estimates, 1
  if tableau.start_churn is not None:
    first_mean, first_std = (
      tableau.start_churn[0] * first_mean,
      np.hypot(tableau.start_churn[0] * first_std, tableau.start_churn[1]),
    )
  second = np.zeros((size, size))
  vector = np.zeros(size)
  vector[[0, -1]] = first_mean, 1.0
  second = np.outer(vector, vector)
  second[0, 0] += first_std**2
  alpha, sigma = process.alpha_sigma(np.asarray(tableau.t))
  gains = alpha * variance / (alpha**2 * variance + sigma**2)
  for row in range(tableau.num_rows):
    ask = np.eye(size)
    ask[2 : 2 + num] = 0.0
    ask[2, [0, -1]] = gains[row], mean - gains[row] * alpha[row] * mean
    for k in range(1, num):
      ask[2 + k, 1 + k] = 1.0

    def line(w, row=row):
      base = 0.0 if w.base is None else w.base[row]
      return np.concatenate([[w.xt[row], base], w.x0[row], [0.0]])

    move = np.eye(size)
    move[0] = line(weights)
    move[1] = 0.0 if kept is None else line(kept)
    second = move @ ask @ second @ ask.T @ move.T
    second[0, 0] += 0.0 if weights.noise is None else weights.noise[row] ** 2
  return second[0, -1], second[0, 0] - second[0, -1] ** 2


@functools.cache
def keys(num, seed=0):
  return jax.jit(jax.vmap(jax.random.fold_in, (None, 0)))(jax.random.key(seed), np.arange(num))


# ---- Known figures ------------------------------------------------------------------------------

# Final standard deviation from N(0, 80^2) on EDM's levels down to 0, by an independent program:
# (standard deviation of the data, steps) -> Euler, Heun, DPM-Solver++(2M).
EDM_STDS = {
  (0.25, 18): (0.207869, 0.267054, 0.268304),
  (0.5, 10): (0.365213, 0.609798, 0.579387),
  (0.5, 18): (0.423031, 0.527625, 0.531140),
  (0.5, 40): (0.464851, 0.504877, 0.505192),
  (0.5, 256): (0.494445, 0.500095, 0.500096),
  (1.0, 18): (0.859455, 1.044729, 1.051090),
}


@pytest.mark.parametrize(("std", "steps"), EDM_STDS)
def test_the_final_spread_on_edms_levels(std, steps):
  samplers = Euler(steps=steps), Heun(steps=steps), DPMSolverPP2M(steps=steps)
  found = [moments(EDM, s.tableau(EDM), 0.0, std**2)[1] ** 0.5 for s in samplers]
  np.testing.assert_allclose(found, EDM_STDS[std, steps], atol=6e-7)


@pytest.mark.parametrize("name", PROCESSES)
def test_moments_approach_the_datas_with_the_declared_order(name):
  """From the true x_1 to min_time; exact mean and variance, of the stochastic samplers too.

  Flow's steps next to alpha = 0 do not shrink in the log-SNR, which costs what is above order 2;
  and steps of a discrete process are rounded, even ones in their own number.
  """
  process, spacing = PROCESSES[name], "trailing" if name == "discrete" else "auto"
  for cls in FIXED.values():
    errors = []
    for steps in (80, 320):
      sampler = dataclasses.replace(cls(), steps=steps, final="min_time", spacing=spacing)
      grid = sampler.grid(process)
      start = grid.alpha[0] * MEAN, (grid.alpha[0] ** 2 * VARIANCE + grid.sigma[0] ** 2) ** 0.5
      mean, variance = moments(process, sampler.tableau(process), start=start)
      alpha, sigma = grid.alpha[-1], grid.sigma[-1]
      np.testing.assert_allclose(mean, alpha * MEAN, rtol=1e-9)
      errors.append(abs(variance / (alpha**2 * VARIANCE + sigma**2) - 1))
    order = min(sampler.order, {"flow": 2, "discrete": 1}.get(name, 3))
    assert np.log(errors[0] / errors[1]) / np.log(4) > order - 0.3, (cls, errors)
    assert errors[1] < 0.05


@pytest.mark.parametrize(
  "sampler",
  [
    Ancestral(steps=12, clip=False),
    DDIM(steps=12, eta=0.5, clip=False),
    Euler(steps=12, s_churn=6.0),
    Heun(steps=12),
    Heun(steps=12, s_churn=6.0),
    DPMSolverPP3M(steps=12),
    DPMSolverPP2MSDE(steps=12),
    UniPC(steps=12),
  ],
  ids=lambda s: f"{type(s).__name__}{getattr(s, 's_churn', '')}",
)
@pytest.mark.parametrize("name", ["discrete", "edm", "flow"])
def test_drawn_images_have_the_moments_of_the_coefficients(name, sampler):
  process = PROCESSES[name]
  images = np.asarray(sampler.sample(gaussian(process), process, keys(400), (400, 8, 8, 1)).images)
  mean, variance = moments(process, sampler.tableau(process))
  deviation = np.sqrt(variance / images.size)
  assert abs(images.mean() - mean) < 5 * deviation + 1e-5
  assert abs(images.var() / variance - 1) < 5 * np.sqrt(2 / images.size) + 1e-4


# ---- Identities ---------------------------------------------------------------------------------


def at_the_ratios_of(process, other, grid):
  """The same sigma / alpha on another process."""
  return points(other, other.time_of(2.0 * grid.half_log_snr), to_data=False)


@pytest.mark.parametrize("name", ["sub_vp", "edm", "flow", "ve"])
def test_ddim_in_vp_coordinates_is_euler_in_sigma_over_alpha(name):
  process, here = PROCESSES[name], DDIM(steps=10, final="min_time", spacing="log_snr").grid(VP)
  inner = here._replace(**{k: getattr(here, k)[2:-2] for k in ("t", "alpha", "sigma")},
                        half_log_snr=here.half_log_snr[2:-2])  # fmt: skip
  there = at_the_ratios_of(VP, process, inner)
  ddim, euler = DDIM().tableau(VP, inner), Euler().tableau(process, there)
  # x / alpha moves alike: x0' / alpha' and the share of x / alpha that stays
  for tableau, grid in ((ddim, inner), (euler, there)):
    stays = tableau.state.xt * grid.alpha[:-1] / grid.alpha[1:]
    moves = tableau.state.x0[:, 0] / grid.alpha[1:]
    np.testing.assert_allclose(stays, np.exp(-np.diff(inner.half_log_snr)), rtol=1e-10)
    np.testing.assert_allclose(moves, -np.expm1(-np.diff(inner.half_log_snr)), rtol=1e-9)


@pytest.mark.parametrize("name", PROCESSES)
def test_the_first_step_of_the_multistep_solvers_is_ddims(name):
  process = PROCESSES[name]
  ddim = DDIM(steps=6).tableau(process, DPMSolverPP2M(steps=6).grid(process)).state
  for cls in (DPMSolverPP2M, DPMSolverPP3M, UniPC):
    state = cls(steps=6).tableau(process).state
    np.testing.assert_allclose(state.x0[0, 0], ddim.x0[0, 0], rtol=1e-12)
    assert not state.x0[0, 1:].any()
    np.testing.assert_allclose(state.xt[0], ddim.xt[0], rtol=1e-12)


@jax.jit
def solved_with_a_constant(tableau, x):
  return linear.integrate(tableau, lambda x, t: 0 * x + 0.7, x).images


@pytest.mark.parametrize("name", PROCESSES)
def test_a_constant_estimate_is_solved_exactly_by_every_deterministic_sampler(name):
  """With D = c the path is alpha c + sigma eps for one eps, in every coordinate."""
  process = PROCESSES[name]
  for sampler in (DDIM(steps=7), Euler(steps=7), Heun(steps=7), DPMSolverPP2M(steps=7),
                  DPMSolverPP3M(steps=7), UniPC(steps=7, solver_order=3)):  # fmt: skip
    sampler = dataclasses.replace(sampler, final="min_time", clip=False)
    grid = sampler.grid(process)
    x = np.full((1, 1, 1, 1), grid.alpha[0] * 0.7 - grid.sigma[0] * 1.3, np.float32)
    out = solved_with_a_constant(sampler.tableau(process), x)
    np.testing.assert_allclose(out, grid.alpha[-1] * 0.7 - grid.sigma[-1] * 1.3, rtol=3e-5)


def test_churn_of_zero_draws_nothing_and_churn_draws():
  for cls in (Euler, Heun):
    calm, wild = cls(steps=6), cls(steps=6, s_churn=3.0)
    assert (calm.stochastic, wild.stochastic) == (False, True)
    assert calm.tableau(EDM).state.noise is None
    x = np.ones((2, 2, 2, 1), np.float32)
    run = jax.jit(
      lambda tableau, x, *keys: linear.integrate(tableau, gaussian(EDM), x, *keys).images
    )
    run(calm.tableau(EDM), x)  # without keys
    assert (wild.tableau(EDM).state.noise >= 0).all()
    outs = [np.asarray(run(wild.tableau(EDM), x, keys(2, seed))) for seed in (0, 1)]
    assert np.abs(outs[0] - outs[1]).max() > 1e-3


def test_churn_of_a_discrete_process_goes_to_its_own_steps():
  tableau = Euler(steps=10, s_churn=4.0, spacing="trailing").tableau(DISCRETE)
  np.testing.assert_allclose(tableau.t * 1000, np.round(tableau.t * 1000))
  lifted = DISCRETE.log_snr(tableau.t[1:])
  plain = DISCRETE.log_snr(Euler(steps=10, spacing="trailing").tableau(DISCRETE).t[1:])
  wanted = plain - 2 * np.log(1.4)
  assert (lifted < plain).all()
  assert np.abs(lifted - wanted).max() < 0.1


def test_ddim_at_eta_one_is_ancestral_on_every_process():
  for process in PROCESSES.values():
    ddim = coefficients(DDIM(steps=9, eta=1.0), process)
    small = coefficients(Ancestral(steps=9, variance="fixed_small"), process)
    for a, b in zip(ddim, small, strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9)


# ---- Starts, counts, checks ---------------------------------------------------------------------


@pytest.mark.costly
@pytest.mark.parametrize("name", PROCESSES)
def test_every_sampler_starts_from_the_prior_and_depends_on_its_own_key(name):
  process = PROCESSES[name]
  for cls in FIXED.values():
    sampler, seen = dataclasses.replace(cls(), steps=4, clip=False), []

    def watch(xt, t, seen=seen):
      jax.debug.callback(seen.append, xt, ordered=True)
      return gaussian(process)(xt, t)

    whole = np.asarray(sampler.sample(watch, process, keys(40), (40, 3, 3, 1)).images)
    jax.effects_barrier()
    assert len(seen) == sampler.num_evaluations(process)
    first = np.asarray(seen[0])
    assert abs(first.std() / process.prior_std - 1) < 5 / np.sqrt(2 * first.size)
    part = sampler.sample(gaussian(process), process, keys(40)[30:], (10, 3, 3, 1)).images
    # float32 rounds states of up to prior_std, and four steps magnify it
    np.testing.assert_allclose(whole[30:], part, atol=5e-5 * np.abs(whole).max())


def test_counts_of_evaluations():
  count = lambda process, sampler: sampler.num_evaluations(process)  # noqa: E731
  assert count(EDM, Heun(steps=18)) == 35
  assert count(EDM, Heun(steps=18, final="min_time")) == 36
  assert count(FLOW, Heun(steps=18, final="min_time")) == 35  # its min_time is the data
  assert count(DISCRETE, UniPC(steps=10)) == 10
  out = Heun(steps=3).sample(gaussian(EDM), EDM, keys(2), (2, 2, 2, 1), keep_estimates=True)
  assert out.num_evaluations == 5
  assert out.estimates.shape == (5, 2, 2, 2, 1)
  np.testing.assert_allclose(out.estimates[-1], out.images, atol=1e-6)


def test_declared_orders():
  orders = {name: cls().order for name, cls in SAMPLERS.items()}
  assert orders == {
    "ancestral": 1, "ddim": 1, "euler": 1, "heun": 2, "dpm_solver_pp_2m": 2, "dpm_solver_pp_3m": 3,
    "dpm_solver_pp_2m_sde": 2, "unipc": 3, "probability_flow": 5,
  }  # fmt: skip
  assert UniPC(solver_order=3, corrector=False).order == 3
  assert DPMSolverPP3M(published_weights=True).order == 2
  assert [n for n, c in SAMPLERS.items() if c().stochastic] == ["ancestral", "dpm_solver_pp_2m_sde"]


@pytest.mark.parametrize("name", PROCESSES)
def test_check_passes_what_can_be_served(name):
  for cls in FIXED.values():
    cls().check(PROCESSES[name])


@pytest.mark.parametrize(
  ("sampler", "process", "message"),
  [
    (lambda: DPMSolverPP3M(steps=2), EDM, r"steps=2 is too few for dpm_solver_pp_3m.*steps=3"),
    (lambda: DPMSolverPP2M(steps=1), EDM, "steps=1 is too few for dpm_solver_pp_2m"),
    (lambda: UniPC(steps=1), EDM, "steps=1 is too few for unipc"),
    (lambda: Heun(coordinate="noise"), FLOW, r"coordinate=noise divides by alpha.*coordinate=flow"),
    (lambda: DPMSolverPP2M(spacing="log_snr"), FLOW, "needs a finite log-SNR"),
    (lambda: Euler(steps=0), EDM, "steps=0 must be at least 1"),
    (lambda: Heun(steps=2000), DISCRETE, "steps=2000 must be between 1 and the process's 1000"),
    (lambda: Euler(s_churn=-1.0), EDM, r"s_churn=-1.0.* s_churn=0 is off"),
    (lambda: Heun(s_min=2.0, s_max=1.0), EDM, "s_min=2.0, s_max=1.0"),
    (lambda: UniPC(solver_order=4), EDM, "solver_order=4 must be 1, 2 or 3"),
  ],
)
def test_what_cannot_be_served_is_refused_in_one_line(sampler, process, message):
  with pytest.raises(ValueError, match=message) as refused:
    sampler().check(process)
  assert "\n" not in str(refused.value)


def test_coefficients_that_are_no_numbers_are_refused():
  @dataclasses.dataclass(frozen=True)
  class Hole(ContinuousProcess):
    def alpha_sigma(self, t):
      return 1.0 - t, t + math.nan * (t > 0.5)

    def time_of(self, log_snr):
      return VP.time_of(log_snr)

  with pytest.raises(ValueError, match=r"Heun has no finite coefficients.*sampler\.name=ddim"):
    Heun(spacing="uniform").check(Hole())


# ---- A learned schedule -------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class LineInLogSnr(VariancePreserving):
  """alpha^2 + sigma^2 = 1 and log-SNR top - width t; both numbers may be JAX arrays."""

  top: Any
  width: Any

  def log_snr(self, t):
    return self.top - self.width * t

  def time_of(self, log_snr):
    return (self.top - log_snr) / self.width


@pytest.mark.parametrize("cls", FIXED.values(), ids=FIXED)
def test_a_schedule_that_is_a_parameter_gives_the_same_images(cls):
  """log-SNR 5 - 10 t with both numbers traced; on the host the same numbers are known."""

  sampler = dataclasses.replace(cls(), steps=6)
  host = LineInLogSnr(5.0, 10.0)
  expected = jax.jit(
    lambda keys: sampler.sample(gaussian(host), host, keys, (len(keys), 2, 2, 1)).images
  )(keys(3))

  def learned(top, width, keys):
    traced = LineInLogSnr(top, width)
    return sampler.sample(gaussian(traced), traced, keys, (len(keys), 2, 2, 1)).images

  np.testing.assert_allclose(jax.jit(learned)(5.0, 10.0, keys(3)), expected, atol=2e-4)
