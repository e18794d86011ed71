"""Guidance: interval of noise levels, rescaling, autoguidance, and what each of them costs."""

import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.processes import EDMProcess, Flow, Preconditioned
from diffusion_jax.samplers import DDIM, Guidance, Worse

EDM = EDMProcess()
LABELS, NULL = jnp.asarray([1, 2]), 10


def network(asked, scale=1.0):
  """Answers with the label times a fixed image, so that guidance can be read off."""

  def denoise(params, xt, t, labels):
    asked.append(xt.shape[0])
    value = params * jnp.ones(xt.shape[0]) if labels is None else labels.astype(jnp.float32)
    image = jnp.asarray([[1.0, -1.0], [2.0, 0.5]])[None, :, :, None]
    return 0 * xt + scale * value[:, None, None, None] * image

  return Preconditioned(output=denoise, target=denoise, denoise=denoise)


def call(guidance, t, asked=None, **options):
  asked = [] if asked is None else asked
  denoise = guidance.bind(network(asked), 3.0, LABELS, NULL, **options)
  return denoise(jnp.ones((2, 2, 2, 1)), jnp.asarray(t))[:, 0, 0, 0]


def time_of(ratio):
  return float(EDM.time_of(np.asarray(-2.0 * np.log(ratio))))


def test_the_interval_holds_by_noise_level():
  guidance = Guidance(3.0, interval_low=0.3, interval_high=5.0)
  guided, plain = [10 + 3 * (1 - 10), 10 + 3 * (2 - 10)], [1.0, 2.0]
  for ratio, expected in ((0.29, plain), (0.31, guided), (4.9, guided), (5.1, plain)):
    np.testing.assert_allclose(call(guidance, [time_of(ratio)] * 2, process=EDM), expected)
  mixed = call(guidance, [time_of(1.0), time_of(20.0)], process=EDM)
  np.testing.assert_allclose(mixed, [guided[0], plain[1]])


def test_an_interval_without_an_upper_end_holds_where_alpha_is_zero():
  process = Flow()
  guided = call(Guidance(3.0, interval_low=0.5), [1.0, 0.1], process=process)
  np.testing.assert_allclose(guided, [10 + 3 * (1 - 10), 2.0])
  outside = call(Guidance(3.0, interval_high=9.0), [1.0, 0.5], process=process)
  np.testing.assert_allclose(outside, [1.0, 10 + 3 * (2 - 10)])


def test_evaluations_are_counted_inside_the_interval_only():
  scheme = DDIM(steps=10).scheme(EDM)
  alpha, sigma = EDM.alpha_sigma(scheme.t)
  inside = int(((sigma / alpha >= 0.3) & (sigma / alpha <= 5.0)).sum())
  assert 0 < inside < 10
  guidance = Guidance(3.0, interval_low=0.3, interval_high=5.0)
  assert guidance.count(EDM, scheme.t) == 10 + inside
  assert Guidance(3.0).count(EDM, scheme.t) == 20
  assert Guidance(1.0, interval_low=0.3).count(EDM, scheme.t) == 10
  assert (guidance.num_evaluations, Guidance(1.0).num_evaluations) == (2, 1)


def test_rescaling_gives_the_spread_of_the_conditional_estimate():
  image = np.array([[1.0, -1.0], [2.0, 0.5]])
  full = Guidance(3.0, rescale=1.0).bind(network([]), 3.0, LABELS, NULL)
  out = np.asarray(full(jnp.ones((2, 2, 2, 1)), jnp.ones(2)))[..., 0]
  for label, found in zip((1.0, 2.0), out, strict=True):
    guided = (10 + 3 * (label - 10)) * image
    np.testing.assert_allclose(found.std(), (label * image).std(), rtol=1e-5)
    np.testing.assert_allclose(found, guided * (label * image).std() / guided.std(), rtol=1e-5)
  part = call(Guidance(3.0, rescale=0.7), [1.0, 1.0])
  plain = call(Guidance(3.0), [1.0, 1.0])
  np.testing.assert_allclose(part, 0.7 * out[:, 0, 0] + 0.3 * plain, rtol=1e-5)


def test_autoguidance_moves_away_from_the_worse_model():
  asked, bad = [], []
  worse = Worse(network(bad, scale=0.5).denoise, 7.0)
  found = call(Guidance(2.0), [1.0, 1.0], asked, worse=worse)
  np.testing.assert_allclose(found, [0.5 + 2 * 0.5, 1.0 + 2 * 1.0])
  assert (asked, bad) == ([2], [2])  # each model once, both with the labels


def test_autoguidance_serves_a_model_without_classes():
  worse = Worse(network([], 0.5).denoise, 4.0)
  denoise = Guidance(2.0).bind(network([]), 3.0, None, None, worse=worse)
  found = denoise(jnp.ones((2, 2, 2, 1)), jnp.ones(2))[:, 0, 0, 0]
  np.testing.assert_allclose(found, 2.0 + 2 * (3.0 - 2.0))


def test_a_weight_of_one_asks_no_second_model():
  asked, bad = [], []
  worse = Worse(network(bad).denoise, 0.0)
  found = call(Guidance(1.0, rescale=0.7), [1.0, 1.0], asked, worse=worse)
  np.testing.assert_allclose(found, [1.0, 2.0])
  assert (asked, bad) == ([2], [])


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"interval_low": 2.0, "interval_high": 1.0}, "interval_low=2.0, interval_high=1.0"),
    ({"interval_low": -1.0}, "interval_low=-1.0"),
    ({"rescale": 1.5}, r"rescale=1.5 must lie between 0 \(off\) and 1"),
  ],
)
def test_meaningless_settings_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    Guidance(2.0, **options)


def test_an_interval_needs_a_process():
  with pytest.raises(ValueError, match="pass process="):
    call(Guidance(2.0, interval_low=1.0), [1.0, 1.0])
