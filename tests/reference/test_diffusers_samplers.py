"""Every step of the samplers against the schedulers of diffusers, from the same network outputs."""

import inspect
import sys
from typing import NamedTuple

import numpy as np
import pytest

from diffusion_jax.porting.diffusers_scheduler import read_scheduler, write_scheduler
from diffusion_jax.processes import EDMProcess, Flow, LinearVP
from diffusion_jax.samplers import (
  DPMSolverPP2M,
  DPMSolverPP2MSDE,
  DPMSolverPP3M,
  Euler,
  Heun,
  UniPC,
)

pytestmark = pytest.mark.reference
torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

DISCRETE, EDM = LinearVP(), EDMProcess()
SHAPE = (1, 3, 4, 4)
STEPS = 20


class InDouble:
  """torch for a scheduler's module, where what it casts to float32 stays float64."""

  float32 = torch.float64

  def __getattr__(self, name):
    return getattr(torch, name)


@pytest.fixture
def in_double(monkeypatch):
  def patch(scheduler):
    monkeypatch.setattr(sys.modules[type(scheduler).__module__], "torch", InDouble())
    return scheduler

  return patch


class Draws(NamedTuple):
  """The start [1 3 4 4], and the x0 estimate and noise of every row [R 1 3 4 4]."""

  x: np.ndarray
  x0: np.ndarray
  z: np.ndarray


def draws(num, scale=1.0):
  rng = np.random.default_rng(0)
  z = rng.normal(size=(num + 1, *SHAPE)).astype(np.float32)  # some schedulers round it
  return Draws(scale * rng.normal(size=SHAPE), rng.normal(size=(num, *SHAPE)), z.astype(float))


def states(tableau, given):
  """What follows each row of our tableau: its states, from the same start, outputs and noise."""
  x, base, found = given.x, 0.0, []
  past = [np.zeros(SHAPE)] * tableau.state.x0.shape[1]
  if tableau.start_churn is not None:
    x = tableau.start_churn[0] * x + tableau.start_churn[1] * given.z[0]
  for row in range(tableau.num_rows):
    past = [given.x0[row], *past[:-1]]

    def total(w, x=x, base=base, past=past, row=row):
      found = sum(c * e for c, e in zip(w.x0[row], past, strict=True)) + w.xt[row] * x
      found = found + (0.0 if w.base is None else w.base[row] * base)
      return found + (0.0 if w.noise is None else w.noise[row] * given.z[row + 1])

    kept = 0.0 if tableau.base is None else total(tableau.base)
    x, base = total(tableau.state), kept
    found.append(x)
  return found


def theirs_on_the_discrete_process(cls, **options):
  """A scheduler on our trailing steps, with noise levels in float64."""
  betas = 1 - DISCRETE.alphas_cumprod[1:] / DISCRETE.alphas_cumprod[:-1]
  theirs = cls(trained_betas=betas, timestep_spacing="trailing", **options)
  theirs.set_timesteps(STEPS)
  return theirs


def ratios(grid):
  return torch.from_numpy(grid.sigma / grid.alpha)


def twice(sigmas):
  """Heun's list: every level but the ends is asked twice."""
  return torch.cat([sigmas[:1], sigmas[1:-1].repeat_interleave(2), sigmas[-1:]])


def run_theirs(theirs, given, convert=lambda x0, x, i: x0, **options):
  """Their states: each step from their own last one."""
  x, found = torch.from_numpy(given.x), []
  for i, time in enumerate(theirs.timesteps):
    noise = {}
    if "variance_noise" in inspect.signature(theirs.step).parameters:
      noise = {"variance_noise": torch.from_numpy(given.z[i + 1])}
    output = convert(torch.from_numpy(given.x0[i]), x, i)
    x = theirs.step(output, time, x, **noise, **options).prev_sample
    found.append(x.numpy())
  return found


def assert_same(ours, theirs):
  assert len(ours) == len(theirs)
  for one, other in zip(ours, theirs, strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("final", ["data", "min_time"])
@pytest.mark.parametrize(
  ("sampler", "algorithm", "order"),
  [
    (DPMSolverPP2M, "dpmsolver++", 2),
    (DPMSolverPP3M, "dpmsolver++", 3),
    (DPMSolverPP2MSDE, "sde-dpmsolver++", 2),
  ],
)
def test_dpm_solver_is_that_of_diffusers(sampler, algorithm, order, final, in_double):
  theirs = in_double(
    theirs_on_the_discrete_process(
      diffusers.DPMSolverMultistepScheduler, algorithm_type=algorithm, solver_order=order,
      prediction_type="sample", lower_order_final=False,
      final_sigmas_type="zero" if final == "data" else "sigma_min",
    )
  )  # fmt: skip
  published = {"published_weights": True} if sampler is DPMSolverPP3M else {}
  ours = sampler(steps=STEPS, spacing="trailing", final=final, **published)
  grid = ours.grid(DISCRETE)
  np.testing.assert_array_equal(np.round(grid.t[:-1] * 1000) - 1, theirs.timesteps.numpy())
  # theirs come from a float32 table of alpha_bar, which leaves the least noise four digits
  np.testing.assert_allclose(ratios(grid), theirs.sigmas, rtol=1e-4)
  theirs.sigmas = ratios(grid)
  given = draws(STEPS)
  assert_same(states(ours.tableau(DISCRETE), given), run_theirs(theirs, given))


@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("corrector", [True, False])
def test_unipc_is_that_of_diffusers(order, variant, corrector, in_double):
  theirs = in_double(
    theirs_on_the_discrete_process(
      diffusers.UniPCMultistepScheduler, solver_order=order, solver_type=variant,
      prediction_type="sample", lower_order_final=False, final_sigmas_type="sigma_min",
      disable_corrector=[] if corrector else list(range(STEPS)),
    )
  )  # fmt: skip
  ours = UniPC(STEPS, order, variant, corrector, spacing="trailing", final="min_time")
  theirs.sigmas = ratios(ours.grid(DISCRETE))
  given = draws(STEPS)
  assert_same(states(ours.tableau(DISCRETE), given), run_theirs(theirs, given))


def test_heun_is_that_of_diffusers(in_double):
  """Its scheduler keeps x / alpha, without churn."""
  theirs = in_double(
    theirs_on_the_discrete_process(
      diffusers.HeunDiscreteScheduler, prediction_type="sample", clip_sample=False
    )
  )
  ours = Heun(steps=STEPS, spacing="trailing")
  grid, tableau = ours.grid(DISCRETE), ours.tableau(DISCRETE)
  theirs.sigmas = twice(ratios(grid))
  assert len(theirs.timesteps) == tableau.num_rows == 2 * STEPS - 1
  given = draws(tableau.num_rows)
  found = run_theirs(theirs, given._replace(x=given.x / grid.alpha[0]))
  alpha, _ = DISCRETE.alpha_sigma(np.append(tableau.t[1:], 0.0))
  assert_same(states(tableau, given), [a * x for a, x in zip(alpha, found, strict=True)])


@pytest.mark.parametrize("churn", [0.0, 5.0, 40.0])
def test_euler_with_churn_is_that_of_diffusers(churn, in_double, monkeypatch):
  theirs = in_double(diffusers.EDMEulerScheduler())
  theirs.set_timesteps(STEPS)
  options = {"s_churn": churn, "s_noise": 1.003}
  ours = Euler(steps=STEPS, s_min=0.05, s_max=50.0, **options)
  grid, tableau = ours.grid(EDM), ours.tableau(EDM)
  np.testing.assert_allclose(ratios(grid), theirs.sigmas, rtol=1e-5)
  theirs.sigmas, theirs.is_scale_input_called = ratios(grid), True
  given, found = draws(STEPS, 80.0), []
  x = torch.from_numpy(given.x)
  for i, time in enumerate(theirs.timesteps):
    noise, module = torch.from_numpy(given.z[i]), sys.modules[type(theirs).__module__]
    monkeypatch.setattr(module, "randn_tensor", lambda *args, z=noise, **options: z)
    x = theirs.step(
      torch.zeros_like(x), time, x, s_tmin=0.05, s_tmax=50.0, **options,
      pred_original_sample=torch.from_numpy(given.x0[i]),
    ).prev_sample  # fmt: skip
    lift = 0.0 if tableau.state.noise is None else tableau.state.noise[i] * given.z[i + 1]
    found.append(x.numpy() + lift)  # ours are lifted at once
  assert_same(states(tableau, given), found)
  assert ours.stochastic == (churn > 0)
  if churn:  # lifted where 0.05 <= sigma <= 50 only
    inside = (grid.sigma[1:-1] >= 0.05) & (grid.sigma[1:-1] <= 50.0)
    np.testing.assert_array_equal(tableau.state.noise[:-1] > 0, inside)


@pytest.mark.parametrize(("sampler", "order"), [(DPMSolverPP2M, 2), (DPMSolverPP3M, 3)])
def test_edm_dpm_solver_is_that_of_diffusers(sampler, order, in_double):
  theirs = in_double(
    diffusers.EDMDPMSolverMultistepScheduler(solver_order=order, lower_order_final=False)
  )
  theirs.set_timesteps(STEPS)
  ours = sampler(STEPS, **({"published_weights": True} if order == 3 else {}))
  theirs.sigmas = sigmas = ratios(ours.grid(EDM))
  root = torch.sqrt(sigmas**2 + 0.25)

  def output(x0, x, i):
    """The network's output that stands for this x0, by EDM's preconditioning."""
    return (x0 - 0.25 / root[i] ** 2 * x) / (sigmas[i] * 0.5 / root[i])

  given = draws(STEPS, 80.0)
  assert_same(states(ours.tableau(EDM), given), run_theirs(theirs, given, output))


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_euler_is_that_of_diffusers(shift, in_double):
  process = Flow(shift)
  ours = Euler(steps=STEPS)
  grid = ours.grid(process)
  theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
  theirs.set_timesteps(sigmas=np.linspace(1.0, 1.0 / STEPS, STEPS))
  np.testing.assert_allclose(grid.sigma, theirs.sigmas, rtol=1e-6, atol=1e-9)
  theirs = in_double(theirs)
  theirs.sigmas = torch.from_numpy(grid.sigma)
  given = draws(STEPS)
  velocity = lambda x0, x, i: (x - x0) / theirs.sigmas[i]  # noqa: E731
  assert_same(states(ours.tableau(process), given), run_theirs(theirs, given, velocity))


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_heun_is_that_of_diffusers(shift, in_double):
  process = Flow(shift)
  ours = Heun(steps=STEPS)
  grid, tableau = ours.grid(process), ours.tableau(process)
  theirs = in_double(diffusers.FlowMatchHeunDiscreteScheduler(shift=shift))
  theirs.set_timesteps(STEPS)
  theirs.sigmas = twice(torch.from_numpy(grid.sigma))
  given = draws(tableau.num_rows)
  at = process.alpha_sigma(tableau.t)[1]
  velocity = lambda x0, x, i: (x - x0) / at[i]  # noqa: E731
  assert_same(states(tableau, given), run_theirs(theirs, given, velocity))


@pytest.mark.parametrize("name", ["DDPMScheduler", "DDIMScheduler"])
@pytest.mark.parametrize("schedule", ["linear", "scaled_linear"])
def test_betas_of_an_imported_scheduler_are_its_own_and_exported_again(name, schedule):
  theirs = getattr(diffusers, name)(
    beta_schedule=schedule, beta_start=0.00085, beta_end=0.012, num_train_timesteps=400
  )
  sections = read_scheduler({**theirs.config, "_class_name": name}, "file")
  process = LinearVP(**{k: v for k, v in sections["process"].items() if k != "name"})
  np.testing.assert_allclose(process.betas(), theirs.betas.numpy(), rtol=1e-5)
  written = write_scheduler({**sections, "model": {}})
  again = diffusers.DDPMScheduler.from_config(written)
  assert torch.equal(again.betas, theirs.betas)
