"""Update rules and their schedules against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.core.trees import named_leaves
from diffusion_jax.training.optimizers import OPTIMIZERS, Adam, apply_updates
from diffusion_jax.types import UserError


def test_adam_follows_its_paper():
  """Algorithm 1 of Kingma and Ba 2015 in float64, over a few gradients."""
  grads = np.asarray([0.3, -2.0, 0.5, 4.0])
  m = v = 0.0
  x = 1.0
  transform = Adam(learning_rate=0.1).create(100)
  params, state = jnp.float32(1.0), transform.init(jnp.float32(1.0))
  step = jax.jit(transform.update)
  for t, g in enumerate(grads, start=1):
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
    x -= 0.1 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    update, state = step(jnp.float32(g), state, params)
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
  zeros = jax.tree.map(np.zeros_like, params)
  updates, _ = jax.jit(
    lambda grads, params: transform.update(grads, transform.init(params), params)
  )(zeros, params)
  np.testing.assert_allclose(updates["kernel"], -0.05)
  np.testing.assert_allclose(updates["bias"], 0.0)


@pytest.mark.parametrize("decay", ["kernels", "non_bias"])
def test_what_weight_decay_acts_on(decay):
  """VDM's program decays every parameter but those named bias; none that is never trained."""
  trained = {
    "network": {"conv": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)},
                "norm": {"group": {"scale": jnp.ones(2), "bias": jnp.ones(2)}},
                "biased": {"bias": jnp.ones((2, 2))},
                "stacked_block": {"kernel": jnp.ones((3, 2, 2)), "bias": jnp.ones((3, 2))}},
    "process": {"b": jnp.ones(()), "w": jnp.ones(())},
  }  # fmt: skip
  fixed = {"autoencoder": jnp.ones(9), "latent_scale": jnp.ones(()),
           "fourier": {"frequencies": jnp.ones(4)}}  # fmt: skip
  params = {**trained, **fixed}
  optimizer = Adam(learning_rate=0.1, weight_decay=0.5, decay=decay)
  transform = optimizer.create(10)
  zeros = jax.tree.map(np.zeros_like, params)
  updates, _ = jax.jit(
    lambda grads, params: transform.update(grads, transform.init(params), params)
  )(zeros, params)
  kernels = {"network/conv/kernel", "network/stacked_block/kernel"}
  moved = {name for name, leaf in named_leaves(updates).items() if np.asarray(leaf).any()}
  if decay == "kernels":
    assert moved == {*kernels, "network/biased/bias"}
  else:
    assert moved == {*kernels, "network/norm/group/scale", "process/b", "process/w"}
  other = Adam(decay="kernels" if decay == "non_bias" else "non_bias").create(10)
  same = jax.tree.structure(transform.init(params)) == jax.tree.structure(other.init(params))
  assert same  # so that a run may change it


def test_no_rule_moves_what_is_never_trained():
  """Bit for bit, also where a rule gives no number."""
  params = {"kernel": jnp.ones(2), "latent_scale": jnp.float32(-0.0),
            "time": {"frequencies": jnp.ones(3), "scale": jnp.ones(3)}}  # fmt: skip
  updates = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), params)
  found = apply_updates(params, updates)
  for name, leaf in named_leaves(found).items():
    fixed = np.asarray(leaf).tobytes() == np.asarray(named_leaves(params)[name]).tobytes()
    assert fixed == (name in ("latent_scale", "time/frequencies"))


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


def test_an_optimizer_from_outside_has_the_schedule_and_its_own_rule():
  cls = OPTIMIZERS.find("plug_ins:SignDescent", "config.optimizer.name")
  transform = cls(learning_rate=0.5, warmup_steps=2).create(10)
  grads, state = jnp.float32([3.0, -0.1]), transform.init(jnp.zeros(2))
  for rate in (0.0, 0.25, 0.5):
    updates, state = transform.update(grads, state)
    np.testing.assert_allclose(updates, [-rate, rate])


def test_an_optimizer_without_a_rule_is_one_line():
  with pytest.raises(UserError, match=r"NoRule: create is missing \(Return the optax update rule"):
    OPTIMIZERS.find("plug_ins:NoRule", "config.optimizer.name")
