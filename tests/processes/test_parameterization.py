"""eps, x0 and v are three names of one estimate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_draws import normal

from diffusion_jax.processes import PREDICTIONS, PROCESSES, LinearVP, expand, precondition

PROCESS = LinearVP()


@pytest.fixture(scope="module")
def drawn():
  x0, eps = map(jnp.asarray, normal(5, 2, 5, 4, 4, 1))  # below 2 at t = 1, where rounding counts
  t = jnp.asarray(np.float32([0.001, 0.1, 0.5, 0.9, 1.0]))
  alpha, sigma = (expand(c, x0) for c in jax.jit(PROCESS.alpha_sigma)(t))
  return x0, eps, t, jnp.asarray(np.asarray(alpha) * x0 + np.asarray(sigma) * eps)


@pytest.mark.parametrize("name", PREDICTIONS)
def test_a_perfect_output_denoises_to_x0(name, drawn):
  x0, eps, t, xt = drawn
  target = precondition(lambda *_: xt, PROCESS, name).target(x0, eps, t)
  network = precondition(lambda *_: target, PROCESS, name)
  # (xt - sigma eps) / alpha amplifies float32 rounding of xt by 1 / alpha = 157 at t = 1.
  np.testing.assert_allclose(network.denoise({}, xt, t, None), x0, atol=3e-5)


def test_edm_keeps_its_limits_where_alpha_or_sigma_is_zero():
  """Pure noise shows the network eps and asks for x0 / d; no noise shows x0 / d, asks for -eps."""
  edm, d = PREDICTIONS["edm"], 0.5
  x0, eps = np.float32(np.random.default_rng(1).normal(size=(2, 3, 2, 2, 1)))
  zero, one = np.zeros((3, 1, 1, 1), np.float32), np.ones((3, 1, 1, 1), np.float32)
  for alpha, sigma, xt, shown, target in (
    (zero, one, eps, eps, x0 / d), (one, zero, x0, x0 / d, -eps),
  ):  # fmt: skip
    np.testing.assert_allclose(edm.input(xt, alpha, sigma), shown, rtol=1e-6)
    np.testing.assert_allclose(edm.target(x0, eps, alpha, sigma), target, rtol=1e-6)
    np.testing.assert_allclose(edm.to_x0(target, xt, alpha, sigma), x0, rtol=1e-6)


def test_edm_is_table_1_of_its_paper():
  """In the paper's own variable x_t / alpha at noise s = sigma / alpha, in float64."""
  alpha, sigma, d = 0.3, 1.7, 0.5
  x0, eps = np.random.default_rng(1).normal(size=(2, 1, 2, 2, 1))
  s, x = sigma / alpha, x0 + sigma / alpha * eps
  skip, out = d**2 / (s**2 + d**2), s * d / np.sqrt(s**2 + d**2)
  edm, target = PREDICTIONS["edm"], (x0 - skip * x) / out
  np.testing.assert_allclose(
    edm.input(alpha * x, alpha, sigma), x / np.sqrt(s**2 + d**2), rtol=1e-5
  )
  np.testing.assert_allclose(edm.target(x0, eps, alpha, sigma), target, rtol=1e-5)
  np.testing.assert_allclose(edm.to_x0(target, alpha * x, alpha, sigma), x0, rtol=1e-4)


def test_v_is_the_rotation_of_x0_and_eps(drawn):
  x0, eps, t, _ = drawn
  alpha, sigma = (expand(c, x0) for c in PROCESS.alpha_sigma(t))
  v = precondition(lambda *_: x0, PROCESS, "v").target(x0, eps, t)
  np.testing.assert_allclose(v, alpha * eps - sigma * x0, atol=1e-6)
  np.testing.assert_allclose((v + sigma * x0) / alpha, eps, atol=3e-4)


def test_the_network_is_asked_at_its_own_time(drawn):
  x0, _, t, _ = drawn
  asked = []
  network = precondition(lambda p, x, time, *_: asked.append(time) or x, PROCESS, "eps")
  network.output({}, x0, t, None)
  assert asked[0].tolist() == [0.0, 99.0, 499.0, 899.0, 999.0]


def hidden(x, time, labels=None, key=None):
  """Any function will do for a network's output."""
  return jnp.tanh(x * 0.7) - 0.1 * x


@pytest.mark.parametrize("name", PREDICTIONS)
@pytest.mark.parametrize("process", ["vp", "sub_vp", "ve", "edm", "flow", "cosine", "linear_vp"])
def test_every_reading_of_one_estimate_is_that_estimate(name, process, drawn):
  """An output that is the target of some (x0, eps) is read as that x0, on every process."""
  x0, eps, _, _ = drawn
  forward = PROCESSES[process]()
  t = jnp.asarray(np.float32([0.02, 0.1, 0.5, 0.9, 0.98]))
  alpha, sigma = (expand(c, x0) for c in forward.alpha_sigma(t))
  xt = alpha * x0 + sigma * eps
  target = precondition(lambda *_: xt, forward, name).target(x0, eps, t)
  network = precondition(lambda *_: target, forward, name)
  scale = np.maximum(np.asarray(sigma) / np.asarray(alpha), 1.0)  # what amplifies its rounding
  error = np.abs(np.asarray(network.denoise({}, xt, t, None)) - np.asarray(x0)) / scale
  assert error.max() < 5e-6


@pytest.mark.parametrize("process", ["vp", "ve", "edm", "flow"])
def test_edm_shows_the_network_and_asks_of_it_unit_variance(process):
  """For data of standard deviation sigma_data (Karras et al. 2022, appendix B.6)."""
  forward, std = PROCESSES[process](), 0.3
  x0, eps = np.float32(std) * normal(0, 5, 200, 200, 1), normal(1, 5, 200, 200, 1)

  @jax.jit
  def shown_and_asked(x0, eps, t):
    alpha, sigma = (expand(c, x0) for c in forward.alpha_sigma(t))
    shown = []
    network = precondition(lambda p, x, *_: shown.append(x) or x, forward, "edm", std)
    network.output({}, alpha * x0 + sigma * eps, t, None)
    return shown[0], network.target(x0, eps, t)

  for values in shown_and_asked(x0, eps, np.float32([0.01, 0.1, 0.4, 0.7, 0.95])):
    np.testing.assert_allclose(np.std(np.asarray(values), axis=(1, 2, 3)), 1.0, rtol=0.02)


def test_one_network_is_one_denoiser_on_all_processes_at_equal_log_snr():
  """With edm, D depends on x_t / alpha and sigma / alpha alone, so the process drops out."""
  std, log_snr = 0.5, np.float32([4.0, 1.0, -1.0, -3.0])
  x0, eps = normal(1, 2, 4, 4, 4, 1)
  found = []
  for name in ("vp", "sub_vp", "ve", "edm", "flow", "cosine"):
    forward = PROCESSES[name]()
    network = precondition(lambda p, x, *_: hidden(x, None), forward, "edm", std)

    @jax.jit
    def denoise(log_snr, x0, eps, forward=forward, network=network):
      t = forward.time_of(log_snr)
      alpha, sigma = (expand(c, x0) for c in forward.alpha_sigma(t))
      return network.denoise({}, alpha * x0 + sigma * eps, t, None)

    found.append(np.asarray(denoise(log_snr, x0, eps)))
  for other in found[1:]:
    np.testing.assert_allclose(other, found[0], atol=2e-4)
