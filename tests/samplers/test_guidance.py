"""Guidance: interval of noise levels, rescaling, autoguidance, and what each of them costs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.processes import Denoiser, EDMProcess, Flow
from diffusion_jax.samplers import DDIM, Guidance
from diffusion_jax.types import UNCONDITIONAL, Condition

EDM = EDMProcess()
LABELS, NULL = Condition(jnp.asarray([1, 2])), Condition(jnp.asarray([10, 10]))
ONES = np.ones((2, 2, 2, 1), np.float32)


def model(asked, scale=1.0, default=3.0, process=EDM):
  """Answers with the label times a fixed image, so that guidance can be read off."""

  def network(x, time, condition, key):
    asked.append(x.shape[0])
    value = jnp.full(len(x), default) if condition.label is None else condition.label * 1.0
    image = jnp.asarray([[1.0, -1.0], [2.0, 0.5]])[None, :, :, None]
    return 0 * x + scale * value[:, None, None, None] * image

  return Denoiser(network, process, "x0")


def call(guidance, t, asked=None, process=EDM, **options):
  asked = [] if asked is None else asked
  denoise = guidance.bind(model(asked, process=process), LABELS, NULL, **options)
  return np.asarray(jax.jit(denoise)(ONES, np.float32(t)))[:, 0, 0, 0]


def time_of(ratio):
  return float(EDM.time_of(np.asarray(-2.0 * np.log(ratio))))


def test_the_interval_holds_by_noise_level():
  guidance = Guidance(3.0, interval_low=0.3, interval_high=5.0)
  guided, plain = [10 + 3 * (1 - 10), 10 + 3 * (2 - 10)], [1.0, 2.0]
  for ratio, expected in ((0.29, plain), (0.31, guided), (4.9, guided), (5.1, plain)):
    np.testing.assert_allclose(call(guidance, [time_of(ratio)] * 2), expected)
  mixed = call(guidance, [time_of(1.0), time_of(20.0)])
  np.testing.assert_allclose(mixed, [guided[0], plain[1]])


def test_an_interval_without_an_upper_end_holds_where_alpha_is_zero():
  process = Flow()
  guided = call(Guidance(3.0, interval_low=0.5), [1.0, 0.1], process=process)
  np.testing.assert_allclose(guided, [10 + 3 * (1 - 10), 2.0])
  outside = call(Guidance(3.0, interval_high=9.0), [1.0, 0.5], process=process)
  np.testing.assert_allclose(outside, [1.0, 10 + 3 * (2 - 10)])


def test_the_first_channels_alone_are_guided_as_in_dit():
  """The others are the estimate for the label, before and after conversion from the noise."""
  ones = np.ones((2, 2, 2, 4), np.float32)
  for prediction in ("x0", "eps"):
    network = lambda x, time, condition, key: 0 * x + condition.label[:, None, None, None] * 1.0  # noqa: E731
    denoiser = Denoiser(network, EDM, prediction)
    t = jnp.full(2, 0.5)
    plain, full, part = (
      np.asarray(guidance.bind(denoiser, LABELS, NULL)(jnp.asarray(ones), t))
      for guidance in (Guidance(1.0), Guidance(3.0), Guidance(3.0, channels=3))
    )
    np.testing.assert_array_equal(part[..., :3], full[..., :3])
    np.testing.assert_array_equal(part[..., 3:], plain[..., 3:])
    assert (full != plain).all()


def test_evaluations_are_counted_inside_the_interval_only():
  tableau = DDIM(steps=10).tableau(EDM)
  alpha, sigma = EDM.alpha_sigma(tableau.t)
  inside = int(((sigma / alpha >= 0.3) & (sigma / alpha <= 5.0)).sum())
  assert 0 < inside < 10
  guidance = Guidance(3.0, interval_low=0.3, interval_high=5.0)
  assert guidance.count(EDM, tableau.t) == 10 + inside
  assert Guidance(3.0).count(EDM, tableau.t) == 20
  assert Guidance(1.0, interval_low=0.3).count(EDM, tableau.t) == 10
  assert (guidance.num_evaluations, Guidance(1.0).num_evaluations) == (2, 1)


def test_rescaling_gives_the_spread_of_the_conditional_estimate():
  image = np.array([[1.0, -1.0], [2.0, 0.5]])
  full = Guidance(3.0, rescale=1.0).bind(model([]), LABELS, NULL)
  out = np.asarray(jax.jit(full)(ONES, np.ones(2, np.float32)))[..., 0]
  for label, found in zip((1.0, 2.0), out, strict=True):
    guided = (10 + 3 * (label - 10)) * image
    np.testing.assert_allclose(found.std(), (label * image).std(), rtol=1e-5)
    np.testing.assert_allclose(found, guided * (label * image).std() / guided.std(), rtol=1e-5)
  part = call(Guidance(3.0, rescale=0.7), [1.0, 1.0])
  plain = call(Guidance(3.0), [1.0, 1.0])
  np.testing.assert_allclose(part, 0.7 * out[:, 0, 0] + 0.3 * plain, rtol=1e-5)


def test_autoguidance_moves_away_from_the_guiding_model():
  asked, bad = [], []
  guide = model(bad, scale=0.5).denoise
  found = call(Guidance(2.0), [1.0, 1.0], asked, guiding_model=guide)
  np.testing.assert_allclose(found, [0.5 + 2 * 0.5, 1.0 + 2 * 1.0])
  assert (asked, bad) == ([2], [2])  # each model once, both with the labels


def test_autoguidance_serves_a_model_without_classes():
  guide = model([], 0.5, 4.0).denoise
  denoise = Guidance(2.0).bind(model([]), UNCONDITIONAL, guiding_model=guide)
  found = np.asarray(jax.jit(denoise)(ONES, np.ones(2, np.float32)))[:, 0, 0, 0]
  np.testing.assert_allclose(found, 2.0 + 2 * (3.0 - 2.0))


def test_a_weight_of_one_asks_no_second_model():
  asked, bad = [], []
  guide = model(bad).denoise
  found = call(Guidance(1.0, rescale=0.7), [1.0, 1.0], asked, guiding_model=guide)
  np.testing.assert_allclose(found, [1.0, 2.0])
  assert (asked, bad) == ([2], [])


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"interval_low": 2.0, "interval_high": 1.0}, "interval_low=2.0, interval_high=1.0"),
    ({"interval_low": -1.0}, "interval_low=-1.0"),
    ({"rescale": 1.5}, r"rescale=1.5 must be between 0 \(off\) and 1"),
    ({"channels": 0}, "channels=0 must be at least 1, or none for all"),
  ],
)
def test_meaningless_settings_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    Guidance(2.0, **options)


def test_named_arrays_are_dropped_as_labels_are():
  """Both halves in one batch; conditions with other members go one after the other."""
  asked = []

  def network(x, time, condition, key):
    asked.append(len(x))
    field = condition.fields.get("text")
    return 0 * x + (7.0 if field is None else field.sum((1, 2))[:, None])

  text = np.float32([[[1.0, 2.0]], [[3.0, 4.0]]])
  own = Condition(fields={"text": jnp.asarray(text)})
  denoiser, guidance = Denoiser(network, EDM, "x0"), Guidance(3.0)
  for null, away, evaluations in (
    (Condition(fields={"text": jnp.zeros((2, 1, 2))}), 0.0, [4]),
    (UNCONDITIONAL, 7.0, [2, 2]),
  ):
    asked.clear()
    found = jax.jit(guidance.bind(denoiser, own, null))(np.ones((2, 1), np.float32), jnp.ones(2))
    expected = away + 3 * (np.float32([3.0, 7.0]) - away)
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-6)
    assert asked == evaluations


def test_two_dimensional_points_are_guided():
  network = lambda x, time, condition, key: 0 * x + condition.label[:, None] * 1.0  # noqa: E731
  guidance = Guidance(3.0, interval_low=0.3, rescale=0.5)
  denoise = guidance.bind(Denoiser(network, EDM, "x0"), LABELS, NULL)
  low = jax.jit(denoise)(np.ones((2, 2), np.float32), np.full(2, time_of(0.2), np.float32))
  np.testing.assert_allclose(low, [[1.0, 1.0], [2.0, 2.0]])
