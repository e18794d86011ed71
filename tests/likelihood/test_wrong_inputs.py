"""Losses and likelihoods say which argument they cannot use."""

import re
import types

import jax
import jax.numpy as jnp
import pytest

from diffusion_jax.likelihood import ContinuousBound, ProbabilityFlow, VariationalBound
from diffusion_jax.losses import VDM, FlowMatching, FullBound, Hybrid, Simple, Uncertainty
from diffusion_jax.processes import Denoiser, Flow, LinearVP, check_inputs
from diffusion_jax.types import Examples

FLOW = Denoiser(lambda x, *_: x, Flow(), "velocity")
STEPS = Denoiser(lambda x, *_: x, LinearVP(num_timesteps=4))
EXAMPLES, KEYS = Examples(jnp.ones((8, 2))), jax.random.split(jax.random.key(0), 8)


@pytest.mark.parametrize(
  ("estimator", "model", "line"),
  [
    (VariationalBound(), FLOW, "VariationalBound needs a process with steps; use ContinuousBound"),
    (ContinuousBound(), STEPS, "ContinuousBound needs a process in continuous time; use Variation"),
    (ProbabilityFlow(), STEPS, "ProbabilityFlow needs a process in continuous time; use Variation"),
  ],
)
def test_an_estimator_says_which_process_it_needs(estimator, model, line):
  with pytest.raises(ValueError, match=line) as caught:
    estimator.estimate(model, EXAMPLES, KEYS)
  assert f"process={model.process}: " in str(caught.value)


@pytest.mark.parametrize(
  "call",
  [
    *(loss for loss in (Simple(), FlowMatching(), VDM(), Hybrid(), FullBound(), Uncertainty())),
    ContinuousBound().estimate,
    ProbabilityFlow().estimate,
  ],
  ids=lambda c: type(getattr(c, "__self__", c)).__name__,
)
@pytest.mark.parametrize(
  ("keys", "line"),
  [
    (jax.random.key(0), "keys: one key for 8 examples; give one per example"),
    (KEYS[:3], "keys: keys of shape (3,) for 8 examples"),
    (jax.random.PRNGKey(0), "an old-style key"),
  ],
)
def test_every_example_has_a_key(call, keys, line):
  options = {"loss_params": {"weight": jnp.zeros(2)}} if isinstance(call, Uncertainty) else {}
  with pytest.raises(ValueError, match=re.escape(line)):
    call(FLOW, EXAMPLES, keys, **options)


def test_arrays_are_no_examples():
  with pytest.raises(ValueError, match=r"examples is float32\[8,2\]; give Examples\(x0\)"):
    check_inputs(FLOW, EXAMPLES.x0, KEYS)
  with pytest.raises(ValueError, match=r"give Denoiser\(network, process\)"):
    check_inputs(None, EXAMPLES, KEYS)


@pytest.mark.parametrize(
  ("arguments", "line"),
  [
    ((jnp.zeros((8, 2), jnp.uint8),), "x0 is uint8[8, 2]; needed floats [B ...]"),
    ((jnp.zeros(()),), "x0 is float32[]; needed floats [B ...]"),
    ((jnp.ones((8, 2)), {"label": 1}), "condition={'label': 1}: write it as Condition(label="),
    ((jnp.ones((8, 2)), None), "condition=None: write it as Condition(label="),
  ],
)
def test_examples_are_floats_with_a_condition(arguments, line):
  """On an object of another class, since the tests' type checker would refuse it before."""
  with pytest.raises(ValueError, match=re.escape(line)):
    bare(Examples.__init__)(types.SimpleNamespace(), *arguments)


def bare(function):
  """Return a function without the wrappers of the tests' type checker."""
  while hasattr(function, "__wrapped__"):
    function = function.__wrapped__
  return function
