"""eps, x0 and v are three names of one estimate."""

import dataclasses
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_draws import normal

from diffusion_jax.core.broadcasting import expand
from diffusion_jax.processes import PREDICTIONS, PROCESSES, Denoiser, Flow, LinearVP, Noised
from diffusion_jax.types import UNCONDITIONAL, Condition

PROCESS = LinearVP()


@pytest.fixture(scope="module")
def drawn():
  x0, eps = map(jnp.asarray, normal(5, 2, 5, 4, 4, 1))  # below 2 at t = 1, where rounding counts
  t = jnp.asarray(np.float32([0.001, 0.1, 0.5, 0.9, 1.0]))
  alpha, sigma = (np.asarray(expand(c, x0)) for c in jax.jit(PROCESS.alpha_sigma)(t))
  return Noised(t, alpha, sigma, x0, eps, jnp.asarray(alpha * x0 + sigma * eps))


def perfect(process, name, noised, *options):
  """A network whose output is the target, whatever it is given."""
  target = Denoiser(lambda x, *_: x, process, name, *options).target(noised)
  return Denoiser(lambda *_: target, process, name, *options)


@pytest.mark.parametrize("name", PREDICTIONS)
def test_a_perfect_output_denoises_to_x0(name, drawn):
  denoise = jax.jit(lambda drawn: perfect(PROCESS, name, drawn).denoise(drawn.xt, drawn.t))
  # (xt - sigma eps) / alpha amplifies float32 rounding of xt by 1 / alpha = 157 at t = 1.
  np.testing.assert_allclose(denoise(drawn), drawn.x0, atol=3e-5)


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
  _, alpha, sigma, x0, eps, _ = drawn
  v = Denoiser(lambda x, *_: x, PROCESS, "v").target(drawn)
  np.testing.assert_allclose(v, alpha * eps - sigma * x0, atol=1e-6)
  np.testing.assert_allclose((v + sigma * x0) / alpha, eps, atol=3e-4)


def test_the_network_is_given_its_own_time_the_condition_and_the_dropout_key(drawn):
  seen = []
  model = Denoiser(lambda x, *rest: seen.append(rest) or x, PROCESS)
  condition = Condition(label=jnp.arange(5))
  model.predict(drawn, condition, jax.random.key(3))
  model.denoise(drawn.xt, drawn.t)
  assert seen[0][0].tolist() == [0.0, 99.0, 499.0, 899.0, 999.0]
  assert seen[0][1] is condition
  assert seen[0][2] == jax.random.key(3)
  assert seen[1][1:] == (UNCONDITIONAL, None)


def test_alpha_and_sigma_are_looked_up_once_per_step(drawn, monkeypatch):
  """For the noise, the input, the target and the x0 estimate together."""
  looked_up, process = [], LinearVP(50)
  original = type(process).alpha_sigma
  monkeypatch.setattr(
    type(process), "alpha_sigma", lambda self, t: looked_up.append(t) or original(self, t)
  )
  model = Denoiser(lambda x, *_: x, process, "edm")
  noised = model.noised(drawn.x0, drawn.t, drawn.eps)
  predicted = model.predict(noised)
  assert predicted.output.shape == model.target(noised).shape == predicted.x0.shape
  assert len(looked_up) == 1


@pytest.mark.parametrize("shape", [(), (2,), (6, 3), (2, 2, 2, 1)])
def test_data_may_have_any_shape(shape):
  """Each number of the data is noised and read as it is in an image of one pixel."""
  x0, eps = np.float32(np.random.default_rng(0).normal(size=(2, 3, *shape)))
  t = np.float32([0.1, 0.5, 0.9])
  model = Denoiser(lambda x, *_: 0.3 * x, Flow(), "velocity")

  @jax.jit
  def read(x0, t, eps):
    noised = model.noised(x0, t, eps)
    return noised.xt, model.predict(noised).x0

  xt, estimate = map(np.asarray, read(x0, t, eps))
  for i, time in enumerate(np.asarray(t)):
    np.testing.assert_allclose(xt[i], (1 - time) * x0[i] + time * eps[i], rtol=1e-5)
    np.testing.assert_allclose(estimate[i], (1 - 0.3 * time) * xt[i], rtol=1e-5)


@pytest.mark.parametrize(
  ("network", "given"),
  [
    (lambda x, *_: x[:, :1], "float32[8,1]"),
    (lambda x, *_: x[0], "float32[2]"),
    (lambda x, *_: jnp.stack([x] * 8), "float32[8,8,2]"),
    (lambda x, *_: x.astype(jnp.int32), "int32[8,2]"),
    (lambda x, *_: (x, None), "tuple (float32[8,2], None)"),
    (lambda *_: None, "None"),
  ],
)
def test_an_output_of_another_shape_is_no_prediction(network, given):
  """Broadcasting would give plausible losses and bits of all of them."""
  model = Denoiser(network, Flow(), "velocity")
  line = f"network returned {given}; needed float32[8,2]"
  with pytest.raises(ValueError, match=re.escape(line)):
    model.denoise(jnp.ones((8, 2)), jnp.full(8, 0.5))
  learned = dataclasses.replace(model, learned_variance=True)
  with pytest.raises(ValueError, match=r"needed float32\[8,4\]"):
    learned.denoise(jnp.ones((8, 2)), jnp.full(8, 0.5))


@pytest.mark.parametrize(
  ("fields", "line"),
  [
    ({"network": None}, "network=None: it must be a function"),
    ({"process": "flow"}, "process='flow': it must be a process, e.g. processes.Flow()"),
    ({"process": Flow}, "process=Flow is a class; write Flow()"),
    ({"process": None}, "process=None: it must be a process"),
  ],
)
def test_what_is_no_network_or_process_is_refused(fields, line):
  """Called like this since the tests' type checker would refuse it before."""
  given = {"network": lambda *_: None, "process": Flow(), "prediction": "velocity", **fields}
  with pytest.raises(ValueError, match=re.escape(line)):
    Denoiser.__post_init__(types.SimpleNamespace(**given))  # pyright: ignore[reportArgumentType]


def test_an_unknown_prediction_is_refused():
  """Called like this since the tests' type checker would refuse it before."""
  with pytest.raises(ValueError, match="prediction='epsilon' must be one of eps, x0, v, score"):
    Denoiser.__post_init__(types.SimpleNamespace(prediction="epsilon"))


def test_variance_logits_are_the_second_half_of_the_channels(drawn):
  twice = lambda x, *_: jnp.concatenate([x, 2 * x], axis=-1)  # noqa: E731
  predicted = Denoiser(twice, PROCESS, "x0", learned_variance=True).predict(drawn)
  np.testing.assert_array_equal(predicted.x0, drawn.xt)
  np.testing.assert_array_equal(predicted.variance_logits, 2 * drawn.xt)
  assert Denoiser(lambda x, *_: x, PROCESS).predict(drawn).variance_logits is None


def hidden(x, *_):
  """Any function will do for a network's output."""
  return jnp.tanh(x * 0.7) - 0.1 * x


@pytest.mark.parametrize("name", PREDICTIONS)
@pytest.mark.parametrize("process", ["vp", "sub_vp", "ve", "edm", "flow", "cosine", "linear_vp"])
def test_every_reading_of_one_estimate_is_that_estimate(name, process, drawn):
  """An output that is the target of some (x0, eps) is read as that x0, on every process."""
  forward = PROCESSES[process]()
  t = jnp.asarray(np.float32([0.02, 0.1, 0.5, 0.9, 0.98]))
  noised = Denoiser(hidden, forward).noised(drawn.x0, t, drawn.eps)
  model = perfect(forward, name, noised)
  # what amplifies its rounding
  scale = np.maximum(np.asarray(noised.sigma) / np.asarray(noised.alpha), 1.0)
  error = np.abs(np.asarray(model.denoise(noised.xt, t)) - np.asarray(drawn.x0)) / scale
  assert error.max() < 5e-6


@pytest.mark.parametrize("process", ["vp", "ve", "edm", "flow"])
def test_edm_shows_the_network_and_asks_of_it_unit_variance(process):
  """For data of standard deviation sigma_data (Karras et al. 2022, appendix B.6)."""
  forward, std = PROCESSES[process](), 0.3
  x0, eps = np.float32(std) * normal(0, 5, 200, 200, 1), normal(1, 5, 200, 200, 1)

  @jax.jit
  def shown_and_asked(x0, eps, t):
    shown = []
    model = Denoiser(lambda x, *_: shown.append(x) or x, forward, "edm", std)
    noised = model.noised(x0, t, eps)
    model.predict(noised)
    return shown[0], model.target(noised)

  for values in shown_and_asked(x0, eps, np.float32([0.01, 0.1, 0.4, 0.7, 0.95])):
    np.testing.assert_allclose(np.std(np.asarray(values), axis=(1, 2, 3)), 1.0, rtol=0.02)


def test_one_network_is_one_denoiser_on_all_processes_at_equal_log_snr():
  """With edm, D depends on x_t / alpha and sigma / alpha alone, so the process drops out."""
  std, log_snr = 0.5, np.float32([4.0, 1.0, -1.0, -3.0])
  x0, eps = normal(1, 2, 4, 4, 4, 1)
  found = []
  for name in ("vp", "sub_vp", "ve", "edm", "flow", "cosine"):
    forward = PROCESSES[name]()
    model = Denoiser(hidden, forward, "edm", std)

    @jax.jit
    def denoise(log_snr, x0, eps, model=model):
      return model.predict(model.noised(x0, model.process.time_of(log_snr), eps)).x0

    found.append(np.asarray(denoise(log_snr, x0, eps)))
  for other in found[1:]:
    np.testing.assert_allclose(other, found[0], atol=2e-4)
