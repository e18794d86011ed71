"""Ancestral sampling with variances that the network gives, on full and respaced grids."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_draws import normal
from one_step import coefficients

from diffusion_jax.core.broadcasting import expand
from diffusion_jax.processes import CosineVP, Denoiser, EDMProcess
from diffusion_jax.samplers import Ancestral, Guidance, editing
from diffusion_jax.types import Condition

PROCESS = CosineVP(num_timesteps=100)
STD = 0.5


@functools.cache
def keys(num):
  return jax.jit(jax.vmap(jax.random.fold_in, (None, 0)))(jax.random.key(0), np.arange(num))


def drawn(sampler, denoise, num, shape):
  """Images in NumPy; only the scan is compiled anew for each sampler, not the start."""
  return np.asarray(sampler.sample(denoise, PROCESS, keys(num), (num, *shape)).images)


def gaussian(process):
  """E[x0 | x_t] of data N(0, 1/4)."""

  def denoise(xt, t):
    alpha, sigma = (expand(c, xt) for c in process.alpha_sigma(t))
    return alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * xt

  return denoise


def with_logits(denoise, logits):
  """The same that answers with logits, a number or a function of t."""

  def answer(xt, t):
    value = logits(t) if callable(logits) else logits
    return denoise(xt, t), jnp.broadcast_to(value, xt.shape)

  return answer


@pytest.mark.parametrize("steps", [5, 100])
@pytest.mark.parametrize(("logits", "fixed"), [(-1.0, "fixed_small"), (1.0, "fixed_large")])
def test_the_ends_of_the_logits_are_the_fixed_variances(steps, logits, fixed):
  """Of the respaced steps too: beta and beta tilde between the points of the grid."""
  learned, other = (Ancestral(steps, v, clip=False) for v in ("learned", fixed))
  found = drawn(learned, with_logits(gaussian(PROCESS), logits), 3, (4, 4, 1))
  expected = drawn(other, gaussian(PROCESS), 3, (4, 4, 1))
  np.testing.assert_allclose(found, expected, atol=1e-5)


def best_logits(process, grid):
  """Of Var(x_s | x_t) for each step of a grid, as a function of t."""
  alpha, sigma = grid.alpha[:-1], grid.sigma[:-1]
  then, sigma_then = grid.alpha[1:], grid.sigma[1:]
  added = sigma**2 - (alpha / then) ** 2 * sigma_then**2
  gain = then * added / sigma**2
  left = STD**2 * sigma**2 / (alpha**2 * STD**2 + sigma**2)
  best = added * sigma_then**2 / sigma**2 + gain**2 * left
  small, large = np.log(added * sigma_then**2 / sigma**2), np.log(added)
  table = np.float32(2 * (np.log(best) - small) / (large - small) - 1)
  times = np.float32(grid.t[:-1])
  nearest = lambda t: jnp.argmin(jnp.abs(times - t[:, None]), axis=1)  # noqa: E731
  return lambda t: jnp.asarray(table)[nearest(t)][:, None, None, None]


@pytest.mark.parametrize("steps", [4, 10, 50])
def test_with_the_best_variances_a_few_steps_keep_the_spread(steps):
  """x_s is then drawn from p(x_s | x_t) itself, however long the step; fixed ones miss it."""
  sampler = Ancestral(steps, "learned", final="min_time", clip=False)
  grid = sampler.grid(PROCESS)
  denoise = with_logits(gaussian(PROCESS), best_logits(PROCESS, grid))
  exact = math.hypot(float(grid.alpha[-1]) * STD, float(grid.sigma[-1]))
  images = drawn(sampler, denoise, 400, (8, 8, 1))
  error = exact / np.sqrt(2 * images.size)
  assert abs(images.std() - exact) < 4 * error
  for variance in ("fixed_small", "fixed_large"):
    other = Ancestral(steps, variance, final="min_time", clip=False)
    spread = np.std(drawn(other, gaussian(PROCESS), 400, (8, 8, 1)))
    assert steps == 50 or abs(spread - exact) > 6 * error


def test_each_dimension_has_its_own_variance():
  """One step from x_1, whose noise is seen by itself: the spread follows the logits."""
  sampler = Ancestral(2, "learned", final="min_time", clip=False)
  logits = np.float32([-1.0, 0.0, 1.0, 3.0])[None, None, None, :]
  nothing = lambda xt, t: (0.0 * xt, jnp.broadcast_to(logits, xt.shape))  # noqa: E731
  tableau = sampler.tableau(PROCESS)
  images = drawn(sampler, nothing, 4000, (1, 1, 4))
  v = 0.5 * (logits.ravel() + 1)
  first, second = (tableau.state.noise[i] ** 2 * np.exp(v * tableau.width[i]) for i in (0, 1))
  carried = tableau.state.xt[1] ** 2 * (tableau.state.xt[0] ** 2 + first)
  expected = np.sqrt(carried + second)
  np.testing.assert_allclose(images.std((0, 1, 2)), expected, rtol=5 / np.sqrt(2 * 4000))
  assert expected[3] > 1.5 * expected[0]


def test_the_step_to_the_data_adds_no_noise():
  sampler = Ancestral(5, "learned", clip=False)
  tableau = sampler.tableau(PROCESS)
  assert (tableau.state.noise[-1], tableau.width[-1]) == (0.0, 0.0)
  assert (tableau.width[:-1] > 0).all()
  denoise = with_logits(gaussian(PROCESS), 5.0)
  out = jax.jit(lambda keys: sampler.sample(denoise, PROCESS, keys, (len(keys), 2, 2, 1), True))(
    keys(2)
  )
  np.testing.assert_allclose(out.images, np.asarray(out.estimates)[-1], atol=1e-6)


def test_it_is_one_scan():
  sampler = Ancestral(7, "learned")
  text = str(
    jax.make_jaxpr(
      lambda k: (
        sampler.sample(with_logits(gaussian(PROCESS), 0.0), PROCESS, k, (len(k), 2, 2, 1)).images
      )
    )(keys(2))
  )
  assert text.count(" scan[") == 1


def test_auto_is_what_the_network_allows():
  assert Ancestral().fit(True).variance == "learned"
  assert Ancestral().fit(False).variance == "fixed_large"
  assert Ancestral(variance="fixed_small").fit(True).variance == "fixed_small"
  for process in (PROCESS, EDMProcess()):
    auto, fixed = Ancestral(steps=9), Ancestral(steps=9, variance="fixed_large")
    np.testing.assert_array_equal(
      coefficients(auto, process).noise, coefficients(fixed, process).noise
    )


def test_inpainting_keeps_what_is_known():
  known = normal(3, 2, 3, 3, 1)
  is_known = np.arange(9).reshape(1, 3, 3, 1) % 2 == np.zeros((2, 1, 1, 1))
  denoise, sampler = with_logits(gaussian(PROCESS), 0.3), Ancestral(6, "learned", clip=False)
  run = jax.jit(lambda *args: editing.inpaint(denoise, PROCESS, *args, sampler).images)
  out = np.asarray(run(keys(2), known, is_known))
  np.testing.assert_allclose(out[is_known], known[is_known], atol=1e-6)
  assert np.abs(out - known)[~is_known].min() > 1e-4


# ---- Guidance -----------------------------------------------------------------------------------

LABELS, NULL = Condition(jnp.asarray([1, 2])), Condition(jnp.asarray([10, 10]))


def labelled(asked, process):
  """x0 is the label, the logits a tenth of it."""

  def network(x, time, condition, key):
    asked.append(x.shape[0])
    value = expand(condition.label * 1.0, x) + 0 * x
    return jnp.concatenate([value, 0.1 * value], axis=-1)

  return Denoiser(network, process, "x0", learned_variance=True)


@pytest.mark.parametrize(
  ("guidance", "process", "estimates", "evaluations"),
  [
    (Guidance(), PROCESS, [1, 2], [2]),
    (Guidance(3.0), PROCESS, [10 - 27, 10 - 24], [4]),
    (Guidance(3.0, interval_high=2.0), EDMProcess(), [10 - 27, 10 - 24], [4, 2]),
    (Guidance(3.0, interval_low=2.0), EDMProcess(), [1, 2], [4, 2]),
  ],
)
def test_guidance_moves_means_and_takes_the_conditional_variance(
  guidance, process, estimates, evaluations
):
  asked = []
  denoise = guidance.bind(labelled(asked, process), LABELS, NULL, with_variance=True)
  t = np.full(2, process.time_of(np.float64(0.0)), np.float32)
  xt = np.zeros((2, 2, 2, 1), np.float32)
  x0, logits = map(np.asarray, jax.jit(denoise)(xt, t))
  np.testing.assert_allclose(x0[:, 0, 0, 0], estimates, rtol=1e-6)
  np.testing.assert_allclose(logits[:, 0, 0, 0], [0.1, 0.2], rtol=1e-6)
  assert asked == evaluations
  plain = guidance.bind(labelled([], process), LABELS, NULL)
  np.testing.assert_array_equal(jax.jit(plain)(xt, t), x0)


def test_autoguidance_takes_the_good_models_variance():
  guide = lambda xt, t, condition: 0 * xt + 5.0  # noqa: E731
  guidance = Guidance(2.0, against="model")
  denoise = guidance.bind(labelled([], PROCESS), LABELS, NULL, guide, with_variance=True)
  x, t = np.zeros((2, 2, 2, 1), np.float32), np.ones(2, np.float32)
  x0, logits = map(np.asarray, jax.jit(denoise)(x, t))
  np.testing.assert_allclose(x0[:, 0, 0, 0], [5 - 8, 5 - 6])
  np.testing.assert_allclose(logits[:, 0, 0, 0], [0.1, 0.2], rtol=1e-6)
