"""Moving averages of the parameters against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.training.ema import EMA
from diffusion_jax.training.optimizers import Adam
from diffusion_jax.training.power_function_ema import exponent_of
from diffusion_jax.training.train_state import create_state


def run(ema, values, start=0.0):
  """All averages of a parameter that takes these values after successive updates."""
  params = {"w": jnp.float32(start)}
  offsets = {name: {"w": jnp.float32(0)} for name in ("ema", *ema.names())}
  update = jax.jit(ema.update)
  for step, value in enumerate(values):
    old, params = params, {"w": jnp.float32(value)}
    offsets = update(offsets, old, params, jnp.int32(step))
  return {name: float(params["w"] + tree["w"]) for name, tree in offsets.items()}


def test_ema_is_the_weighted_sum_of_the_past():
  """decay^n x_0 + (1 - decay) sum_k decay^(n - k) x_k, of several decays at once."""
  values = [3.0, -1.0, 4.0, 1.0, -5.0]
  found = run(EMA(0.9, more_decays=(0.5, 0.99)), values, start=2.0)
  assert list(found) == ["decay:0.5", "decay:0.99", "ema"]
  for name, decay in (("ema", 0.9), ("decay:0.5", 0.5), ("decay:0.99", 0.99)):
    exact = decay**5 * 2.0
    exact += (1 - decay) * sum(decay ** (4 - k) * v for k, v in enumerate(values))
    np.testing.assert_allclose(found[name], exact, rtol=1e-5)


def test_more_averages_do_not_change_the_first():
  values = np.random.default_rng(0).normal(size=20)
  alone = run(EMA(0.9), values)["ema"]
  assert run(EMA(0.9, more_decays=(0.5,), profiles=(0.05, 0.1)), values)["ema"] == alone


def test_ema_warmup_forgets_the_start_sooner():
  """The first updates weigh 9/11, 9/12, ...: score_sde counts an update before it weighs it."""
  weights = jax.jit(EMA(0.99, warmup=True).weights)
  new = [weights(np.int32(n))["ema"] for n in (0, 1, 7, 10_000)]
  np.testing.assert_allclose(new, [9 / 11, 9 / 12, 0.5, 0.01], rtol=1e-6)
  assert float(jax.jit(EMA(0.99).weights)(np.int32(0))["ema"]) == pytest.approx(0.01)


@pytest.mark.parametrize("width", [0.05, 0.1, 0.28])
def test_a_power_function_average_is_the_integral_over_the_run(width):
  """(gamma + 1) / t^(gamma + 1) times the integral of tau^gamma theta(tau), theta = tau in closed
  form: (gamma + 1) / (gamma + 2) t. Steps sample tau at their ends: half a step is added.
  """
  num, gamma = 500, exponent_of(width)
  found = run(EMA(profiles=(width,)), np.arange(1, num + 1))[f"profile:{width}"]
  np.testing.assert_allclose(found, (gamma + 1) / (gamma + 2) * num + 0.5, rtol=2e-5)


def test_a_power_function_average_forgets_the_initial_parameters_at_once():
  assert run(EMA(profiles=(0.1,)), [3.0], start=1e6)["profile:0.1"] == 3.0


@pytest.mark.parametrize("step", [10, 10**4, 10**7])
def test_the_weight_of_the_newest_keeps_its_digits(step):
  """1 - (1 - 1/t)^(gamma + 1), where 1 - 1/t itself has few digits left in float32."""
  found = EMA(profiles=(0.05,)).weights(jnp.int32(step - 1))["profile:0.05"]
  exact = -np.expm1((exponent_of(0.05) + 1) * np.log1p(-1 / step))
  np.testing.assert_allclose(found, exact, rtol=1e-6)


def test_a_new_state_averages_the_initial_parameters():
  params = {"w": jnp.ones(3)}
  state = create_state(params, {}, Adam().create(10).init(params))
  assert state.step == 0
  assert (state.ema["w"] == 1).all()
  assert list(state.offsets) == ["ema"]
  more = create_state(params, {}, Adam().create(10).init(params), EMA(profiles=(0.05,)).names())
  assert (more.offsets["profile:0.05"]["w"] == 0).all()


@pytest.mark.costly
def test_averages_follow_a_million_updates():
  """Against the same averages in float64, of parameters that drift by 1% with and without noise.

  They are off by less than 2e-3 of their own distance to the parameters, or by a few roundings of
  a parameter. An average that is stored as itself is far off, which is why they are not.
  """
  num, ema = 10**6, EMA(0.999999, more_decays=(0.99999,), profiles=(0.05, 0.25))
  start = np.random.default_rng(0).normal(size=32).astype(np.float32)
  start[:8] /= 100  # or a drift of 1e-8 an update would be rounded away
  noise = jnp.repeat(jnp.float32([0.0, 1e-6, 1e-5, 1e-4]), 8)

  @jax.jit
  def walk(params):
    def update(step, carry):
      old, offsets, exact, naive = carry
      key = jax.random.fold_in(jax.random.key(0), step)
      new = old + jnp.float32(0.01 / num) + noise * jax.random.normal(key, (32,), jnp.float32)
      offsets = ema.update(offsets, old, new, step)
      weights = {name: w.astype(jnp.float64) for name, w in ema.weights(step).items()}
      exact = {n: a + weights[n] * (new.astype(jnp.float64) - a) for n, a in exact.items()}
      return new, offsets, exact, naive + ema.weights(step)["ema"] * (new - naive)

    names = ("ema", *ema.names())
    zeros, starts = (dict.fromkeys(names, x) for x in (params * 0, params.astype(jnp.float64)))
    return jax.lax.fori_loop(jnp.int32(0), jnp.int32(num), update, (params, zeros, starts, params))

  with jax.enable_x64(True):
    params, offsets, exact, naive = jax.device_get(walk(jnp.asarray(start)))
  assert params.dtype == offsets["ema"].dtype == np.float32
  for name, average in exact.items():
    distance = average - params
    error = np.abs(params.astype(np.float64) + offsets[name] - average)
    assert (error < 2e-3 * np.abs(distance).max() + 4 * 2.0**-24).all(), name
  size = lambda x: np.sqrt(np.mean(x**2))  # noqa: E731
  errors = [size(found - exact["ema"]) for found in (params + offsets["ema"], naive)]
  assert 100 * errors[0] < errors[1]


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"decay": 1.0}, "decay=1.0 must be at least 0 and below 1"),
    ({"more_decays": (0.9, -0.5)}, "more_decays=-0.5 must be at least 0"),
    ({"decay": 0.9, "more_decays": (0.9,)}, "more_decays=0.9 must differ"),
    ({"profiles": (0.05, 0.3)}, "profiles=0.3 must be above 0 and at most 0.28"),
    ({"profiles": (0.1, 0.1)}, "profiles=0.1,0.1 must differ"),
    ({"snapshot_every_steps": 5}, "snapshot_every_steps=5 .* needs profiles"),
    ({"profiles": (0.1,), "snapshot_every_steps": 0}, "snapshot_every_steps=0 must be at least 1"),
  ],
)
def test_impossible_averages_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    EMA(**fields)
