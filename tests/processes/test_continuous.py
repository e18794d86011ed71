"""Every process: its log-SNR falls, its inverse inverts, and its formulas hold."""

import jax
import numpy as np
import pytest

from diffusion_jax.processes import (
  PROCESSES,
  ContinuousCosineVP,
  ContinuousLinearVP,
  ContinuousSigmoidVP,
  EDMProcess,
  Flow,
  LinearLogSNR,
  LinearVP,
  SubVP,
  VarianceExploding,
)

CONTINUOUS = [n for n, c in PROCESSES.items() if c().num_timesteps is None]


def times(process, num=41):
  return np.linspace(max(process.min_time, 1e-4), 0.9995, num)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_the_log_snr_falls_and_time_of_inverts_it(name):
  process = PROCESSES[name]()
  t = times(process)
  log_snr = process.log_snr(t)
  assert (np.diff(log_snr) < 0).all()
  np.testing.assert_allclose(process.time_of(log_snr), t, rtol=1e-10, atol=1e-12)
  alpha, sigma = process.alpha_sigma(t)
  np.testing.assert_allclose(log_snr, np.log(alpha**2 / sigma**2), atol=1e-9)


@pytest.mark.parametrize("name", PROCESSES)
def test_the_host_answers_in_float64_and_the_device_in_float32(name):
  process = PROCESSES[name]()
  t = np.asarray([0.013, 0.25, 0.5, 0.98])
  read = lambda t: (  # noqa: E731
    *process.alpha_sigma(t), process.log_snr(t), process.network_time(t), process.time_at(t)
  )  # fmt: skip
  host, device = read(t), jax.jit(read)(t.astype(np.float32))
  assert {values.dtype for values in host} == {np.dtype("float64")}
  assert {values.dtype for values in device[:2]} == {np.dtype("float32")}
  for found, expected in zip(device[:2], host[:2], strict=True):
    np.testing.assert_allclose(found, expected, rtol=2e-5)
  for found, expected in zip(device[2:], host[2:], strict=True):
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
  "config", [ContinuousLinearVP(), ContinuousCosineVP(), ContinuousSigmoidVP()]
)
def test_variance_is_preserved_and_a_shift_adds_to_the_log_snr(config):
  process = config
  shifted = type(config)(shift=-1.3)
  t = times(process)
  alpha, sigma = process.alpha_sigma(t)
  np.testing.assert_allclose(alpha**2 + sigma**2, 1.0, rtol=1e-12)
  np.testing.assert_allclose(shifted.log_snr(t) - process.log_snr(t), -1.3, atol=1e-9)
  np.testing.assert_allclose(shifted.time_of(shifted.log_snr(t)), t, rtol=1e-9)


def test_the_log_snr_is_a_straight_line():
  process = LinearLogSNR(4.0, -2.0)
  t = np.linspace(0, 1, 5)
  np.testing.assert_allclose(process.log_snr(t), 4.0 - 6.0 * t, atol=1e-12)


def test_the_linear_sde():
  """d log alpha / dt = -beta(t) / 2, by central differences."""
  process, t, h = ContinuousLinearVP(), np.linspace(0.05, 0.95, 10), 1e-5
  ahead, behind = (np.log(process.alpha_sigma(t + s)[0]) for s in (h, -h))
  beta = 0.1 + t * 19.9
  np.testing.assert_allclose((ahead - behind) / (2 * h), -0.5 * beta, rtol=1e-8)


def test_the_linear_sde_is_the_limit_of_ddpms_betas():
  """beta_n = beta(n / T) / T: the difference falls as 1 / T."""
  process = ContinuousLinearVP()
  errors = []
  for num in (1000, 2000):
    discrete = LinearVP(num, 0.1 / num, 20.0 / num)
    t = np.arange(1, 11) / 10
    difference = np.log(discrete.alpha_sigma(t)[0]) - np.log(process.alpha_sigma(t)[0])
    errors.append(np.abs(difference).max())
  assert errors[0] < 0.06
  np.testing.assert_allclose(errors[0] / errors[1], 2.0, rtol=0.05)


def test_sub_vp_has_the_square_of_vps_sigma():
  t = np.linspace(0.01, 1, 20)
  (alpha, sigma), (vp_alpha, vp_sigma) = (c().alpha_sigma(t) for c in (SubVP, ContinuousLinearVP))
  np.testing.assert_allclose(alpha, vp_alpha, rtol=1e-12)
  np.testing.assert_allclose(sigma, vp_sigma**2, rtol=1e-12)


def test_cosine_is_a_quarter_of_a_circle_between_its_log_snrs():
  process = ContinuousCosineVP(log_snr_max=40.0, log_snr_min=-40.0)
  t = np.linspace(0.1, 0.9, 9)
  alpha, sigma = process.alpha_sigma(t)
  np.testing.assert_allclose(alpha, np.cos(np.pi * t / 2), atol=1e-7)
  np.testing.assert_allclose(sigma, np.sin(np.pi * t / 2), atol=1e-7)
  ends = ContinuousCosineVP().log_snr(np.asarray([0.0, 1.0]))
  np.testing.assert_allclose(ends, [15.0, -15.0], rtol=1e-9)


def test_sigmoid_is_the_published_formula():
  t = np.linspace(0.1, 0.9, 9)
  squash = lambda x: 1 / (1 + np.exp(-x / 0.7))  # noqa: E731
  expected = (squash(2) - squash(-3 + 5 * t)) / (squash(2) - squash(-3))
  alpha, _ = ContinuousSigmoidVP(-3.0, 2.0, 0.7).alpha_sigma(t)
  np.testing.assert_allclose(alpha**2, expected, rtol=1e-12)


@pytest.mark.parametrize(
  ("config", "ends"), [(VarianceExploding(), (0.01, 50)), (EDMProcess(), (0.002, 80))]
)
def test_exploding_noise_is_geometric(config, ends):
  process = config
  alpha, sigma = process.alpha_sigma(np.asarray([0.0, 0.5, 1.0]))
  np.testing.assert_array_equal(alpha, 1.0)
  np.testing.assert_allclose(sigma, [ends[0], np.sqrt(ends[0] * ends[1]), ends[1]], rtol=1e-12)
  np.testing.assert_allclose(process.network_time(np.asarray([0.5])), np.log(sigma[1]) / 4)
  assert process.prior_std == ends[1]


def test_flow_is_straight_and_its_shift_is_that_of_the_paper():
  t = np.linspace(0, 1, 5)
  np.testing.assert_array_equal(Flow().alpha_sigma(t), (1 - t, t))
  sigma = Flow(3.0).alpha_sigma(t)[1]
  np.testing.assert_allclose(sigma, 3 * t / (1 + 2 * t))
  inner = t[1:-1]
  difference = Flow(3.0).log_snr(inner) - Flow().log_snr(inner)
  np.testing.assert_allclose(difference, -2 * np.log(3.0), rtol=1e-9)


@pytest.mark.parametrize("num", [1, 2, 7, 1000])
def test_a_discrete_process_gives_the_nearest_step(num):
  process = LinearVP(num)
  grid = np.arange(1, num + 1) / num
  np.testing.assert_allclose(process.time_of(process.log_snr(grid)), grid)
  log_snr = np.linspace(-12, 12, 97)
  brute = np.abs(process.log_snr(grid)[:, None] - log_snr).argmin(0)
  np.testing.assert_allclose(process.time_of(log_snr), grid[brute])
  device = jax.jit(process.time_of)(np.float32(log_snr))
  np.testing.assert_allclose(device, grid[brute], rtol=1e-6)


@pytest.mark.parametrize(
  "wrong",
  [
    lambda: ContinuousLinearVP(beta_min=0.0),
    lambda: ContinuousLinearVP(min_time=0.0),
    lambda: ContinuousCosineVP(-1.0, 1.0),
    lambda: ContinuousSigmoidVP(start=3.0),
    lambda: ContinuousSigmoidVP(temperature=0.0),
    lambda: SubVP(beta_min=30.0),
    lambda: VarianceExploding(2.0, 1.0),
    lambda: Flow(0.0),
  ],
)
def test_impossible_fields_are_refused(wrong):
  with pytest.raises(ValueError, match="must"):
    wrong()
