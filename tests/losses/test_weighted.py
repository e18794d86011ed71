"""Weighted losses: closed forms on Gaussian data, and one loss whatever the network predicts."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_draws import normal
from scipy import special, stats

from diffusion_jax.core import rng
from diffusion_jax.losses import P2, EDMLoss, FlowMatching, MinSNR, SigmoidLoss, Simple
from diffusion_jax.processes import PREDICTIONS, PROCESSES, Denoiser, LinearVP
from diffusion_jax.types import UNCONDITIONAL, Examples

S2 = 0.25
NUM, FEW = 4000, 256
LOSSES = {
  "min_snr": MinSNR(2.0),
  "p2": P2(0.7, 1.5),
  "edm": EDMLoss(-0.8, 0.9, 0.4),
  "sigmoid": SigmoidLoss(-0.5),
  "flow": FlowMatching(),
  "flow_logit_normal": FlowMatching("logit_normal", 0.3, 0.8),
}


@functools.cache
def keys(num=NUM):
  return rng.example_keys(jax.random.key(0), jnp.arange(num))


@dataclasses.dataclass(frozen=True)
class Reading(Denoiser):
  """A model that says, as its prediction, what (xt, alpha, sigma) -> x0 in place of a network says.

  The x0 estimate is read back from the output.
  """

  def predict(self, at, condition=UNCONDITIONAL, dropout_key=None):
    x0 = self.network(at.xt, at.alpha, at.sigma)
    target = self.formulas.target(x0, (at.xt - at.alpha * x0) / at.sigma, at.alpha, at.sigma)
    return dataclasses.replace(self, network=lambda *_: target)._read(at)

  def _read(self, at):
    return super().predict(at)


def posterior_mean(xt, alpha, sigma):
  return alpha * S2 / (alpha**2 * S2 + sigma**2) * xt


def x0_weight(name, log_snr, slope):
  """Each loss's weight of the x0 error, written from its paper in other words; float64."""
  snr, loss = np.exp(log_snr), LOSSES[name]
  if name == "min_snr":
    return snr * np.minimum(1.0, loss.gamma / snr)
  if name == "p2":
    return snr * (loss.k + snr) ** -loss.gamma
  if name == "edm":
    sigma = np.exp(-0.5 * log_snr)
    return (sigma**2 + loss.sigma_data**2) / (sigma * loss.sigma_data) ** 2
  if name == "sigmoid":
    return snr * -0.5 * slope * special.expit(loss.bias - log_snr)
  return (1.0 + np.sqrt(snr)) ** 2


def density(name, process, t):
  """Of the training times."""
  if name == "edm":
    h = 1e-6
    slope = (process.log_snr(t + h) - process.log_snr(t - h)) / (2 * h)
    loss = LOSSES[name]
    return stats.norm.pdf(-0.5 * process.log_snr(t), loss.log_sigma_mean, loss.log_sigma_std) * abs(
      0.5 * slope
    )
  if name == "flow_logit_normal":
    return stats.norm.pdf(special.logit(t), 0.3, 0.8) / (t * (1 - t))
  return np.ones_like(t)


def minimum(name, process):
  """E_t[weight mmse], by quadrature."""

  def value(t):
    t = np.asarray(t)
    h = 1e-6
    log_snr = process.log_snr(t)
    slope = (process.log_snr(t + h) - process.log_snr(t - h)) / (2 * h)
    mmse = S2 / (1 + np.exp(log_snr) * S2)
    return x0_weight(name, log_snr, slope) * mmse * density(name, process, t)

  low, high = max(process.min_time, 2e-6), 1 - 2e-6
  middle = np.linspace(low, high, 200)
  first = np.geomspace(low, middle[1], 20)
  last = 1 - np.geomspace(1 - high, 1 - middle[-2], 20)
  points = np.sort(np.concatenate([middle, first[1:-1], last[1:-1]]))
  nodes, weights = np.polynomial.legendre.leggauss(20)
  half = np.diff(points)[:, None] / 2
  return float(np.sum(half * weights * value(points[:-1, None] + half * (1 + nodes))))


@functools.cache
def images(num):
  return jnp.asarray(np.float32(0.5) * normal(5, num, 4, 4, 1))


@functools.cache
def losses_of_the_exact_predictor(process):
  """Name of the loss -> losses."""
  forward = PROCESSES[process]()
  model = Reading(posterior_mean, forward, "x0")

  @jax.jit
  def run(keys, x0):
    return {name: loss(model, Examples(x0), keys).values for name, loss in LOSSES.items()}

  return run(keys(), images(NUM))


@pytest.mark.parametrize("process", ["vp", "edm", "flow"])
@pytest.mark.parametrize("name", LOSSES)
def test_the_exact_predictor_reaches_the_closed_form_minimum(name, process):
  """Gaussian data; the losses are heavy-tailed near t = 0, so the error comes from the sample."""
  losses = np.float64(losses_of_the_exact_predictor(process)[name])
  error = losses.std() / np.sqrt(NUM)
  expected = minimum(name, PROCESSES[process]())
  assert abs(losses.mean() - expected) < 4 * error
  assert error < 0.1 * expected


@pytest.mark.parametrize(
  "process",
  ["vp", "flow", *(pytest.param(p, marks=pytest.mark.costly) for p in ("sub_vp", "ve", "edm"))],
)
@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_does_not_depend_on_what_is_predicted(name, process):
  forward = PROCESSES[process]()
  x0 = images(FEW)
  wrong = lambda xt, alpha, sigma: 0.6 * posterior_mean(xt, alpha, sigma) + 0.1  # noqa: E731

  @jax.jit
  def run(x0, keys):
    return {
      p: LOSSES[name](Reading(wrong, forward, p), Examples(x0), keys).values for p in PREDICTIONS
    }

  found = run(x0, keys(FEW))
  for other in found.values():
    # At tiny noise x0 is read from x_t minus noise: float32 keeps a few digits of that difference.
    np.testing.assert_allclose(other, found["x0"], rtol=5e-3)


def test_edms_loss_is_one_on_every_process():
  """The same sigmas are drawn, so the same network gives the same losses, to rounding."""
  x0 = images(FEW)
  found = []
  for name in ("edm", "ve", "vp", "flow"):
    forward = PROCESSES[name]()
    model = Denoiser(lambda x, *_: jnp.tanh(x), forward, "edm", 0.4)
    run = jax.jit(lambda x0, keys, model=model: LOSSES["edm"](model, Examples(x0), keys).values)
    found.append(np.asarray(run(x0, keys(FEW))))
  for other in found[1:]:
    np.testing.assert_allclose(other, found[0], rtol=2e-3)


def test_weights_that_are_the_simple_loss():
  """p2 with gamma 0 is the eps error; flow matching on flow is that of the velocity."""
  x0 = images(FEW)
  for loss, process, prediction in (
    (P2(gamma=0.0), "vp", "eps"),
    (FlowMatching(), "flow", "velocity"),
  ):
    forward = PROCESSES[process]()
    model = Denoiser(lambda x, *_: 0.3 * x, forward, prediction)
    run = jax.jit(
      lambda x0, keys, model=model, loss=loss: [
        each(model, Examples(x0), keys).values for each in (loss, Simple())
      ]
    )
    np.testing.assert_allclose(*run(x0, keys(FEW)), rtol=2e-3)


def test_a_derivative_in_time_is_refused_where_there_is_none():
  model = Denoiser(lambda x, *_: x, LinearVP(10))
  with pytest.raises(ValueError, match="differentiates the log-SNR in time; use a process in"):
    jax.eval_shape(lambda keys: SigmoidLoss()(model, Examples(images(3)), keys), keys(3))


@pytest.mark.parametrize(
  "wrong",
  [
    lambda: MinSNR(0.0),
    lambda: P2(k=0.0),
    lambda: EDMLoss(log_sigma_std=0.0),
    lambda: FlowMatching(logit_std=0.0),
  ],
)
def test_impossible_fields_are_refused(wrong):
  with pytest.raises(ValueError, match="must"):
    wrong()
