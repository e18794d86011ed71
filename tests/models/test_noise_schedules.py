"""Learned schedules rise whatever their parameters, and start at the ends that they are given."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_draws import moved

from diffusion_jax.core.trees import named_leaves
from diffusion_jax.models import NOISE_SCHEDULES, LearnedLinear, LearnedMonotone

GRID = np.linspace(0, 1, 501, dtype=np.float32)
SCHEDULES = {
  "learned_linear": LearnedLinear(gamma_min=-13.3, gamma_max=5.0),
  "learned_monotone": LearnedMonotone(gamma_min=-13.3, gamma_max=5.0),
}


class Compiled:
  """A schedule's functions, compiled, and how its parameters start."""

  def __init__(self, schedule):
    self.gamma = jax.jit(schedule.gamma)
    self.rate = jax.jit(jax.vmap(jax.grad(schedule.gamma, argnums=1), (None, 0)))
    self.init = jax.jit(schedule.init)
    self.params = jax.tree.map(np.asarray, self.init(jax.random.key(0)))


@pytest.fixture(scope="module", params=SCHEDULES)
def schedule(request):
  assert type(SCHEDULES[request.param]) is NOISE_SCHEDULES[request.param]
  return Compiled(SCHEDULES[request.param])


def test_it_starts_at_the_given_ends(schedule):
  params = schedule.params
  ends = schedule.gamma(params, np.float32([0.0, 1.0]))
  np.testing.assert_allclose(ends, [-13.3, 5.0], rtol=1e-6)
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("seed", range(5))
def test_it_rises_whatever_its_parameters(schedule, seed):
  params = moved(schedule.params, 3, seed)  # of both signs, far from their start
  assert (np.asarray(schedule.rate(params, GRID)) > 0).all()
  values = np.asarray(schedule.gamma(params, GRID))
  assert np.diff(values).min() > -np.abs(values).max() * 2e-6  # the rounding


def test_it_rises_at_its_start_from_point_to_point(schedule):
  params = schedule.init(jax.random.key(3))
  assert (np.diff(schedule.gamma(params, GRID)) > 0).all()


@pytest.mark.parametrize("seed", range(3))
def test_trained_ends_are_b_and_b_plus_the_size_of_w(schedule, seed):
  params = moved(schedule.params, 3, seed)
  params["w"] = -np.abs(params["w"])
  ends = schedule.gamma(params, np.float32([0.0, 1.0]))
  np.testing.assert_allclose(ends, [params["b"], params["b"] - params["w"]], rtol=1e-5)


def test_the_interior_trains_the_shape_alone_and_gamma_the_ends_alone():
  schedule = LearnedMonotone(width=16)
  params = jax.jit(schedule.init)(jax.random.key(0))
  gradients = {f: jax.jit(jax.grad(f)) for f in (schedule.interior_gamma, schedule.gamma)}

  def gradient(function, t):
    return named_leaves(jax.tree.map(np.asarray, gradients[function](params, np.float32(t))))

  inside, start, end = (gradient(schedule.interior_gamma, t) for t in (0.3, 0.0, 1.0))
  ends = gradient(schedule.gamma, 0.3)
  for name, value in inside.items():
    assert (value != 0).all() == (name not in ("b", "w")), name
    assert (ends[name] != 0).all() == (name in ("b", "w")), name
    np.testing.assert_allclose([start[name], end[name]], 0, atol=1e-5)
  interior, gamma = (jax.jit(f)(params, GRID) for f in (schedule.interior_gamma, schedule.gamma))
  np.testing.assert_array_equal(interior, gamma)


def test_the_linear_schedule_is_a_line():
  schedule = SCHEDULES["learned_linear"]
  found = jax.jit(lambda key, t: schedule.gamma(schedule.init(key), t))(jax.random.key(0), GRID)
  np.testing.assert_allclose(found, -13.3 + 18.3 * GRID, rtol=1e-5, atol=1e-5)


def test_the_network_can_bend():
  """Trained for a while, it fits a schedule that is far from a line."""
  schedule = LearnedMonotone(gamma_min=-1.0, gamma_max=1.0, width=64)
  target = 2 * GRID**4 - 1

  def loss(params):
    return jnp.mean((schedule.interior_gamma(params, jnp.asarray(GRID)) - target) ** 2)

  def step(params, _):
    slopes = jax.grad(loss)(params)
    return jax.tree.map(lambda p, g: p - 0.3 * g, params, slopes), None

  @jax.jit
  def train(key):
    params = schedule.init(key)
    trained, _ = jax.lax.scan(step, params, None, 500)
    return loss(params), loss(trained)

  before, after = map(float, train(jax.random.key(0)))
  assert after < 0.2 * before


def test_any_shape_of_times(schedule):
  grid = np.asarray(schedule.gamma(schedule.params, GRID[:6].reshape(2, 3)))
  assert grid.shape == (2, 3)
  np.testing.assert_allclose(grid[1, 2], schedule.gamma(schedule.params, GRID[5]), rtol=1e-6)


@pytest.mark.parametrize("schedule", [LearnedLinear, LearnedMonotone])
def test_ends_in_the_wrong_order_are_refused(schedule):
  with pytest.raises(ValueError, match=r"gamma_min=5\.0 must be below gamma_max=-13\.3"):
    schedule(gamma_min=5.0, gamma_max=-13.3)


def test_a_schedule_needs_a_width():
  with pytest.raises(ValueError, match="width=0"):
    LearnedMonotone(width=0)
