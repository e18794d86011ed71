"""Averages by their half-life, constant and rising with the run, against what a half-life is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.training.ema import EMA


def run(ema, values, start=0.0):
  """The average of a parameter that takes these values after successive updates."""
  params, offsets, found = {"w": jnp.float32(start)}, {"ema": {"w": jnp.float32(0)}}, []
  update = jax.jit(ema.update)
  for step, value in enumerate(values):
    old, params = params, {"w": jnp.float32(value)}
    offsets = update(offsets, old, params, jnp.int32(step))
    found.append(float(params["w"] + offsets["ema"]["w"]))
  return np.asarray(found)


def test_the_past_has_halved_after_a_half_life():
  found = run(EMA(half_life_steps=8.0), [0.0] * 24, start=1.0)
  np.testing.assert_allclose(found[[7, 15, 23]], [0.5, 0.25, 0.125], rtol=1e-5)


def test_a_long_half_life_keeps_its_digits():
  """That of EDM in steps: float32 holds 1 - 2^(-1/h) to its own precision."""
  weight = EMA(half_life_steps=500_000 / 512).weights(jnp.int32(10**6))["ema"]
  np.testing.assert_allclose(float(weight), -np.expm1(-np.log(2.0) * 512 / 500_000), rtol=1e-6)


def test_with_a_ramp_the_first_update_forgets_the_start():
  found = run(EMA(half_life_steps=100.0, half_life_ramp=0.05), [3.0, 4.0], start=-1e6)
  assert found[0] == 3.0
  np.testing.assert_allclose(found[1], 4.0, atol=1e-5)  # 2^-20 of the past is left


@pytest.mark.parametrize("step", [20, 100, 1000, 2000, 50_000])
def test_a_ramp_limits_the_half_life_to_a_share_of_the_run(step):
  """At a constant rate, what is older than the half-life then has half of the weight."""
  weight = float(EMA(half_life_steps=100.0, half_life_ramp=0.05).weights(jnp.int32(step))["ema"])
  half_life = min(100, step // 20)
  np.testing.assert_allclose((1 - weight) ** half_life, 0.5, rtol=1e-4)


def test_other_averages_keep_their_own_lengths():
  plain = EMA(more_decays=(0.9,), profiles=(0.1,)).weights(jnp.int32(7))
  other = EMA(half_life_steps=3.0, more_decays=(0.9,), profiles=(0.1,)).weights(jnp.int32(7))
  assert plain["ema"] != other["ema"]
  assert {n: plain[n] for n in plain if n != "ema"} == {n: other[n] for n in other if n != "ema"}


@pytest.mark.parametrize(
  ("fields", "words"),
  [
    ({"half_life_steps": 0.0}, "half_life_steps=0.0 must be positive"),
    ({"half_life_steps": 5.0, "warmup": True}, "set `ema.warmup=False`"),
    ({"half_life_ramp": 0.05}, "half_life_ramp=0.05 .* needs half_life_steps"),
    ({"half_life_steps": 5.0, "half_life_ramp": 0.0}, "half_life_ramp=0.0 must be positive"),
  ],
)
def test_impossible_lengths_are_refused(fields, words):
  with pytest.raises(ValueError, match=words):
    EMA(**fields)
