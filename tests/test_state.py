"""Optimizer, schedules and the average of the parameters, against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.state import EMA, Adam, create_state


def test_adam_follows_its_paper():
  """Algorithm 1 of Kingma and Ba 2015 in float64, over a few gradients."""
  grads = np.asarray([0.3, -2.0, 0.5, 4.0])
  m = v = 0.0
  x = 1.0
  transform = Adam(learning_rate=0.1).create(100)
  params, state = jnp.float32(1.0), transform.init(jnp.float32(1.0))
  for t, g in enumerate(grads, start=1):
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
    x -= 0.1 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    update, state = transform.update(jnp.float32(g), state, params)
    params = params + update
    np.testing.assert_allclose(params, x, rtol=1e-5)


def test_warmup_rises_from_zero_and_then_holds():
  rate = Adam(learning_rate=2e-4, warmup_steps=5000).rate(800_000)
  found = [float(rate(step)) for step in (0, 2500, 5000, 700_000)]
  np.testing.assert_allclose(found, [0, 1e-4, 2e-4, 2e-4], rtol=1e-5)


@pytest.mark.parametrize(("schedule", "middle"), [("linear", 0.5), ("cosine", 0.5)])
def test_falling_schedules_reach_zero_at_the_runs_end(schedule, middle):
  rate = Adam(learning_rate=1.0, warmup_steps=10, schedule=schedule).rate(110)
  found = [float(rate(step)) for step in (10, 60, 110)]
  np.testing.assert_allclose(found, [1, middle, 0], atol=1e-6)


def test_decay_steps_may_be_named():
  rate = Adam(learning_rate=1.0, schedule="linear", decay_steps=10).rate(1000)
  np.testing.assert_allclose([float(rate(5)), float(rate(50))], [0.5, 0], atol=1e-6)


def test_weight_decay_is_decoupled_and_spares_biases():
  transform = Adam(learning_rate=0.1, weight_decay=0.5).create(10)
  params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
  updates, _ = transform.update(
    jax.tree.map(jnp.zeros_like, params), transform.init(params), params
  )
  np.testing.assert_allclose(updates["kernel"], -0.05)
  np.testing.assert_allclose(updates["bias"], 0.0)


def test_ema_is_the_weighted_sum_of_the_past():
  """decay^n x_0 + (1 - decay) sum_k decay^(n - k) x_k."""
  values = [3.0, -1.0, 4.0, 1.0, -5.0]
  average = {"w": jnp.float32(2.0)}
  for step, value in enumerate(values):
    average = EMA(0.9).update(average, {"w": jnp.float32(value)}, jnp.int32(step))
  exact = 0.9**5 * 2.0 + 0.1 * sum(0.9 ** (4 - k) * v for k, v in enumerate(values))
  np.testing.assert_allclose(average["w"], exact, rtol=1e-5)


def test_ema_warmup_forgets_the_start_sooner():
  decays = [float(EMA(0.99, warmup=True).decay_at(jnp.int32(n))) for n in (0, 8, 10_000)]
  np.testing.assert_allclose(decays, [0.1, 0.5, 0.99], rtol=1e-6)
  assert float(EMA(0.99).decay_at(jnp.int32(0))) == pytest.approx(0.99)


def test_a_new_state_averages_the_initial_parameters():
  params = {"w": jnp.ones(3)}
  state = create_state(params, {}, Adam().create(10))
  assert state.step == 0
  assert (state.ema["w"] == 1).all()
  assert state.ema["w"].unsafe_buffer_pointer() != params["w"].unsafe_buffer_pointer()


@pytest.mark.parametrize(
  "fields",
  [
    {"learning_rate": 0.0},
    {"b1": 1.0},
    {"warmup_steps": -1},
    {"clip_norm": 0.0},
    {"decay_steps": 5, "warmup_steps": 5},
  ],
)
def test_impossible_optimizers_are_refused(fields):
  with pytest.raises(ValueError, match=next(iter(fields))):
    Adam(**fields)


def test_impossible_decay_is_refused():
  with pytest.raises(ValueError, match="decay=1"):
    EMA(1.0)
