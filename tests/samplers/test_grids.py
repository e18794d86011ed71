"""Time grids: where the steps lie, where they end, and which are refused."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.processes import (
  ContinuousCosineVP,
  ContinuousLinearVP,
  ContinuousProcess,
  CosineVP,
  EDMProcess,
  Flow,
  LinearVP,
  SubVP,
  VarianceExploding,
)
from diffusion_jax.samplers import SAMPLERS
from diffusion_jax.samplers.grids import (
  LEAST_LOG_SNR,
  SMALLEST_RATIO,
  backwards,
  make_grid,
  suitable_spacing,
)

DISCRETE = LinearVP()
VP, EDM, FLOW = ContinuousLinearVP(), EDMProcess(), Flow()
PROCESSES = {
  "discrete": DISCRETE, "cosine_vp": CosineVP(), "vp": VP, "edm": EDM, "flow": FLOW,
  "cosine": ContinuousCosineVP(), "sub_vp": SubVP(),
  "ve": VarianceExploding(), "shifted flow": Flow(3.0),
}  # fmt: skip


def ratio(grid):
  with np.errstate(divide="ignore"):
    return grid.sigma / grid.alpha


def test_karras_levels_are_those_of_edm():
  """Equation 5 with 18 levels from 80 to 0.002 and rho 7, then 0."""
  i = np.arange(18)
  levels = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
  grid = make_grid(EDM, 18, "karras", "data")
  np.testing.assert_allclose(ratio(grid), np.append(levels, 0.0), rtol=1e-11)
  assert grid.to_data
  np.testing.assert_allclose(ratio(make_grid(VP, 18, "karras", "data"))[[0, 17]], [
    np.sqrt(np.expm1(10.05)), np.sqrt(np.expm1(1e-5 * 0.1 + 0.5 * 19.9 * 1e-10)),
  ], rtol=1e-9)  # fmt: skip


@pytest.mark.parametrize("process", [VP, EDM], ids=["vp", "edm"])
def test_each_spacing_is_even_in_its_own_measure(process):
  low = process.min_time
  measures = {
    "uniform": lambda g: g.t,
    "quadratic": lambda g: np.sqrt(g.t),
    "log_snr": lambda g: g.half_log_snr,
    "karras": lambda g: ratio(g) ** (1 / 5),
  }
  for spacing, measure in measures.items():
    grid = make_grid(process, 10, spacing, "min_time", rho=5.0)
    assert grid.num_steps == 10
    assert grid.t[0] == 1.0
    assert grid.t[-1] == low
    assert not grid.to_data
    steps = np.diff(measure(grid))
    np.testing.assert_allclose(steps, steps.mean(), rtol=1e-9)


@pytest.mark.parametrize("final", ["data", "min_time"])
@pytest.mark.parametrize("name", PROCESSES)
def test_auto_gives_s_falling_steps_on_every_process(name, final):
  process = PROCESSES[name]
  for num in (2, 10, 50):
    grid = make_grid(process, num, "auto", final)
    assert grid.num_steps == num
    assert grid.t[0] == 1.0
    assert (np.diff(grid.t[:-1]) < 0).all()
    assert (np.diff(grid.half_log_snr) > 0).all()
    ends_at_data = final == "data" or name.endswith("flow")
    assert grid.to_data == ends_at_data
    assert grid.t[-1] == (0.0 if ends_at_data else process.min_time)
    assert (grid.alpha[-1], grid.sigma[-1]) == (1.0, 0.0) or not ends_at_data


def test_what_auto_stands_for():
  found = {name: suitable_spacing(process) for name, process in PROCESSES.items()}
  assert found == {
    "discrete": "log_snr", "cosine_vp": "log_snr", "vp": "log_snr", "cosine": "log_snr",
    "sub_vp": "log_snr", "edm": "karras", "ve": "karras", "flow": "uniform",
    "shifted flow": "uniform",
  }  # fmt: skip


@pytest.mark.parametrize("name", [n for n in SAMPLERS if n != "probability_flow"])
def test_each_sampler_has_its_own_auto_on_a_process_with_steps(name):
  sampler = SAMPLERS[name](steps=20)
  own = "trailing" if name in ("ancestral", "ddim") else "log_snr"
  expected = dataclasses.replace(sampler, spacing=own)
  assert sampler.auto_by_step == own
  for process in (DISCRETE, PROCESSES["cosine_vp"], VP):
    spelt = expected if process is not VP else dataclasses.replace(sampler, spacing="log_snr")
    np.testing.assert_array_equal(sampler.grid(process).t, spelt.grid(process).t)


def test_flow_takes_equal_steps_from_one_to_zero():
  np.testing.assert_allclose(make_grid(FLOW, 4, "auto", "data").sigma, [1, 0.75, 0.5, 0.25, 0])
  np.testing.assert_allclose(
    make_grid(Flow(3.0), 2, "uniform", "data").sigma, [1.0, 0.75, 0.0], atol=1e-15
  )


@pytest.mark.parametrize(
  ("spacing", "steps"),
  [("trailing", [1000, 750, 500, 250, 1]), ("linspace", [1000, 750, 501, 251, 1]),
   ("leading", [801, 601, 401, 201, 1])],
)  # fmt: skip
def test_discrete_steps_that_stop_at_the_first(spacing, steps):
  grid = make_grid(DISCRETE, 4, spacing, "min_time")
  np.testing.assert_array_equal(np.round(grid.t * 1000), steps)
  assert grid.sigma[-1] > 0


@pytest.mark.parametrize("spacing", ["uniform", "quadratic", "karras", "log_snr"])
def test_on_a_discrete_process_times_are_its_steps(spacing):
  grid = make_grid(DISCRETE, 12, spacing, "data")
  np.testing.assert_array_equal(grid.t * 1000, np.round(grid.t * 1000))
  alpha_bar = np.append(DISCRETE.alphas_cumprod[np.round(grid.t[:-1] * 1000).astype(int)], 1.0)
  np.testing.assert_allclose(grid.alpha**2, alpha_bar)
  assert grid.t[-2] == 0.001


@pytest.mark.parametrize("final", ["data", "min_time"])
@pytest.mark.parametrize("spacing", ["trailing", "uniform", "quadratic", "karras", "log_snr"])
@pytest.mark.parametrize("num", [1, 2, 7, 100])
def test_every_number_of_steps_up_to_t_keeps_its_evaluations(num, spacing, final):
  """Points that meet on one step of T move apart; all T are the process itself."""
  process = CosineVP(num)
  adds = final == "min_time"
  for steps in range(1, num + 1 - adds):
    grid = make_grid(process, steps, spacing, final)
    asked = grid.t[: steps + adds] * num
    np.testing.assert_allclose(asked, np.round(asked), atol=1e-9)
    assert grid.num_steps == steps
    assert round(asked[0]) == num
    assert (np.diff(np.round(asked)) < 0).all()
    assert round(asked[-1]) == 1 or spacing == "trailing" or steps == 1
  if not adds:
    np.testing.assert_array_equal(np.round(asked), np.arange(num, 0, -1))


def test_even_steps_in_the_log_snr_skip_what_is_noise_alone():
  """Cosine betas end at a log-SNR of -20: the steps begin where an image begins to show."""
  process = PROCESSES["cosine_vp"]
  grid = make_grid(process, 20, "log_snr", "data")
  log_snr = 2 * grid.half_log_snr[:-1]
  assert log_snr[0] < -19
  even = np.linspace(LEAST_LOG_SNR, log_snr[-1], 20)[1:]
  np.testing.assert_allclose(log_snr[1:8], even[:7], atol=0.1)
  whole = make_grid(ContinuousCosineVP(), 20, "log_snr", "min_time")
  np.testing.assert_allclose(np.diff(whole.half_log_snr), 0.75, rtol=1e-9)


def test_more_points_than_the_process_has_are_refused():
  with pytest.raises(ValueError, match=r"steps=1000 with final=min_time .*sampler.steps=999"):
    make_grid(DISCRETE, 1000, "trailing", "min_time")
  assert make_grid(DISCRETE, 999, "trailing", "min_time").num_steps == 999
  with pytest.raises(ValueError, match=r"the process has 1; set `sampler.final=data`$"):
    make_grid(CosineVP(1), 1, "log_snr", "min_time")


def test_grids_that_a_process_does_not_have_are_refused():
  with pytest.raises(ValueError, match=r"spacing=trailing .* set `sampler.spacing=auto`"):
    make_grid(VP, 10, "trailing", "data")
  with pytest.raises(ValueError, match=r"steps=0 must be at least 1"):
    make_grid(VP, 0, "auto", "data")
  for spacing in ("karras", "log_snr"):
    with pytest.raises(ValueError, match=f"spacing={spacing} needs a finite log-SNR"):
      make_grid(FLOW, 10, spacing, "data")


@pytest.mark.parametrize("name", PROCESSES)
def test_backwards_visits_the_same_points_and_begins_with_some_noise(name):
  process = PROCESSES[name]
  grid = make_grid(process, 8, "auto", "data")
  back = backwards(process, grid)
  assert back.t[-1] == 1.0
  assert (np.diff(back.t) > 0).all()
  assert set(grid.t[:-1]) <= set(back.t)
  first = back.sigma[0] / back.alpha[0]
  if name.endswith("flow"):
    np.testing.assert_allclose(first, SMALLEST_RATIO)
  else:
    assert back.t[0] == process.min_time


def test_a_process_that_answers_in_jax_gets_the_same_grid():
  """As one with a learned schedule does, whatever it is asked with."""

  @dataclasses.dataclass(frozen=True)
  class InJax(ContinuousProcess):
    min_time: float = VP.min_time

    def alpha_sigma(self, t):
      return tuple(jnp.asarray(c, jnp.float32) for c in VP.alpha_sigma(np.asarray(t)))

    def time_of(self, log_snr):
      return jnp.asarray(VP.time_of(log_snr))

  for spacing in ("auto", "karras", "uniform"):
    found, host = (make_grid(p, 6, spacing, "data") for p in (InJax(), VP))
    assert not isinstance(found.alpha, np.ndarray)
    for a, b in zip(found[:3], host[:3], strict=True):
      np.testing.assert_allclose(a, b, rtol=2e-2 if spacing != "uniform" else 1e-6)
