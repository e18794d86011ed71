"""Parts that a run could not find or read again are refused before it starts."""

import dataclasses
import sys
import types
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.losses import DenoisingLoss, Simple
from diffusion_jax.processes import LinearVP
from diffusion_jax.runs.storable import check_storable
from diffusion_jax.runs.stored import load_experiment
from diffusion_jax.samplers import DDIM
from diffusion_jax.types import UserError


@dataclasses.dataclass(frozen=True)
class Own(DenoisingLoss):
  shape: Callable[..., Any] | None = None
  table: Any = None

  def error(self, model, noised, predicted):
    return jnp.zeros(len(noised.x0))


@dataclasses.dataclass(frozen=True)
class WithoutABase:
  """A part that keeps the contract by hand, and so is checked only where it is used."""

  weight: float = 1.0

  needs_derivative = needs_variance = needs_levels = needs_average = gives_end_time = False
  trains_schedule = minimised_by_mean = False
  init, initial_state, __call__ = Own.init, Own.initial_state, Own.__call__


def experiment(**parts):
  return load_experiment("smoke", []).replace(**parts)


def refused(**parts):
  built = experiment(**parts)
  with pytest.raises(UserError) as raised:
    check_storable(built.sections, built.layout)
  return str(raised.value)


def test_a_class_inside_a_function_is_refused():
  @dataclasses.dataclass(frozen=True)
  class Inside(Own):
    pass

  assert "loss=Inside: it is defined inside a function" in refused(loss=Inside())
  assert "put it into a file" in refused(loss=Inside())


def test_a_class_that_was_defined_again_is_refused():
  old = dataclasses.make_dataclass("Own", [], bases=(Own,), frozen=True)
  old.__module__ = __name__
  assert "test_storable:Own is another class by now" in refused(loss=old())


@pytest.mark.parametrize("field", [{"shape": abs}, {"table": np.ones(3)}, {"table": {1, 2}}])
def test_a_field_that_json_cannot_hold_is_refused(field):
  assert f"loss: {next(iter(field))} is " in refused(loss=Own(**field))
  assert "config.json cannot hold" in refused(loss=Own(**field))


def test_a_class_of_a_notebook_is_trained_with_a_warning(monkeypatch):
  cls = dataclasses.make_dataclass("Own", [], bases=(Own,), frozen=True)
  cls.__module__ = "__main__"
  monkeypatch.setitem(sys.modules, "__main__", types.SimpleNamespace(Own=cls))
  built = experiment(loss=cls())
  check_storable(built.sections, built.layout)
  assert "loss=Own is defined in this notebook or script" in built.warnings()["warning"]
  assert experiment(loss=Simple()).warnings() == {}


def test_a_built_part_is_checked_whatever_its_class():
  with pytest.raises(UserError, match="loss: WithoutABase: weight is 'x'; it must be a number"):
    experiment(loss=WithoutABase("x"))  # pyright: ignore[reportArgumentType]
  built = experiment(loss=WithoutABase(np.float32(2))).sections["loss"]  # pyright: ignore
  assert type(built.weight) is float


def test_scalars_of_jax_are_stored_as_numbers():
  process = LinearVP(50)
  object.__setattr__(process, "num_timesteps", jnp.asarray(50))
  built = experiment(process=process, sampler=DDIM(steps=4))
  assert type(built.sections["process"].num_timesteps) is int
  check_storable(built.sections, built.layout)
  assert isinstance(process.num_timesteps, jax.Array)
