"""Parts check their fields when they are built, as a config's values are checked."""

import dataclasses
import json
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import likelihood, losses, models, processes, samplers
from diffusion_jax.core.config import to_dict
from diffusion_jax.core.parts import Part

NAN, INF = float("nan"), float("inf")


@dataclasses.dataclass(frozen=True)
class Outside(losses.DenoisingLoss):
  """A part of another package, with a check of its own that calls no other."""

  kind: Literal["soft", "hard"] = "soft"
  pair: tuple[int, float] = (1, 0.5)
  several: list[int] = dataclasses.field(default_factory=list)
  table: "np.ndarray | None" = None
  sloppy: float = None  # pyright: ignore[reportAssignmentType]

  def __post_init__(self):
    assert isinstance(self.several, list)

  def error(self, model, noised, predicted):
    return jnp.zeros(len(noised.x0))


class Mixed:
  def __post_init__(self):
    pass


@dataclasses.dataclass(frozen=True)
class FromAMixin(Mixed, Part):
  rate: float = 1.0


def built(cls, **fields):
  """Build a part; the tests' import hook would refuse wrong types before the part does."""
  part = object.__new__(cls)
  for field in dataclasses.fields(cls):
    value = [] if field.default is dataclasses.MISSING else field.default
    object.__setattr__(part, field.name, fields.get(field.name, value))
  part.__post_init__()
  return part


@pytest.mark.parametrize(
  ("cls", "fields", "message"),
  [
    (losses.FlowMatching, {"times": "nope"}, "times is 'nope'; it must be one of uniform, log"),
    (samplers.Heun, {"coordinate": "nope"}, "one of auto, noise, flow"),
    (samplers.Heun, {"spacing": "karas"}, "spacing is 'karas'; it must be one of auto"),
    (samplers.Heun, {"final": "nope"}, "one of data, min_time"),
    (samplers.UniPC, {"variant": "zz"}, "one of bh1, bh2"),
    (samplers.Ancestral, {"variance": "zz"}, "variance is 'zz'"),
    (likelihood.ProbabilityFlow, {"trace": "exakt"}, "one of exact, hutchinson"),
    (samplers.Heun, {"steps": 0}, "steps=0 must be at least 1"),
    (samplers.DDIM, {"steps": -1}, "steps=-1 must be at least 1"),
    (samplers.Heun, {"steps": 2.5}, "steps is 2.5; it must be an integer"),
    (samplers.Heun, {"steps": "5"}, "steps is '5'; it must be an integer"),
    (samplers.Heun, {"steps": True}, "steps is True; it must be an integer"),
    (samplers.Heun, {"steps": np.float32(5)}, r"steps is 5.0; it must be an integer"),
    (samplers.Heun, {"clip": 1}, "clip is 1; it must be true or false"),
    (samplers.Heun, {"rho": NAN}, "rho is nan; it must be a finite number"),
    (samplers.Heun, {"rho": 0.0}, "rho=0.0 must be positive"),
    (samplers.Heun, {"s_max": INF}, "s_max is inf; it must be finite, and none or a number"),
    (losses.MinSNR, {"gamma": NAN}, "gamma is nan"),
    (processes.Flow, {"shift": NAN}, "shift is nan"),
    (processes.Flow, {"shift": jnp.float32(NAN)}, "shift is nan"),
    (samplers.Guidance, {"weight": NAN}, "weight is nan"),
    (processes.EDMProcess, {"sigma_max": INF}, "sigma_max is inf"),
    (processes.LinearVP, {"num_timesteps": 2.5}, "num_timesteps is 2.5"),
    (models.UNet, {"multipliers": 2}, "multipliers is 2; it must be a list, each an integer"),
    (Outside, {"kind": "loud"}, "Outside: kind is 'loud'; it must be one of soft, hard"),
    (Outside, {"pair": (1,)}, r"pair is \(1,\); it must have 2 items"),
    (Outside, {"several": [1, "a"]}, "several is 'a'; it must be an integer"),
    (Outside, {"sloppy": "x"}, "sloppy is 'x'; it must be a number"),
    (FromAMixin, {"rate": "x"}, "rate is 'x'"),
    (models.UNet, {"channels_per_head": 0}, "channels_per_head must be at least 1"),
    (models.VDMUNet, {"time_scale": -1.0}, "time_scale=-1.0 must be positive"),
  ],
)
def test_a_value_that_a_field_does_not_allow_is_refused_when_the_part_is_built(
  cls, fields, message
):
  with pytest.raises(ValueError, match=message):
    built(cls, **fields)


def test_numbers_of_numpy_are_stored_as_pythons():
  sampler = built(samplers.DDIM, steps=np.int64(4), eta=np.float32(0.5))
  assert sampler == samplers.DDIM(steps=4, eta=0.5)
  assert json.loads(json.dumps(to_dict(sampler, samplers.SAMPLERS)))["steps"] == 4
  assert built(models.UNet, multipliers=np.array([1, 2])).multipliers == (1, 2)
  assert type(built(processes.Flow, shift=2).shift) is float


def test_what_a_config_cannot_hold_and_what_is_traced_is_left_alone():
  table = np.ones(3)
  part = built(Outside, table=table)
  assert part.table is table
  assert part.sloppy is None

  def twice(weight):
    return built(samplers.Guidance, weight=weight).weight * 2.0

  assert jax.jit(twice)(3.0) == 6.0
  assert isinstance(built(processes.Flow, shift=jnp.float32(2)).shift, jax.Array)
