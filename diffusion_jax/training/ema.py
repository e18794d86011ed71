"""Moving averages of the parameters."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from diffusion_jax.core.parts import Part
from diffusion_jax.core.settings import Facts, setting
from diffusion_jax.training.optimizers import Rates
from diffusion_jax.training.power_function_ema import MAX_WIDTH, exponent_of
from diffusion_jax.types import Params


@dataclasses.dataclass(frozen=True)
class EMA(Part):
  """Moving averages of the parameters, updated once per step.

  Attributes:
    decay: weight of the past in the average that is sampled and evaluated.
    warmup: shorter average at the start: min(decay, (1 + n) / (10 + n)) at the n-th update, from n
      = 1 on, as in Song et al. 2021's code (score_sde), so that a short run's average forgets the
      initial parameters. It applies to all decays.
    half_life_steps: number of updates after which a parameter's weight has halved, in place of
      `decay`: half-life in images / batch size. Karras et al. 2022 (arXiv 2206.00364), appendix
      F.2.
    half_life_ramp: largest half-life as a fraction of the updates so far, 0.05 in the same paper;
      none: no ramp.
    more_decays: decays of additional averages.
    profiles: relative widths sigma_rel of power-function averages to track, such as 0.05, 0.1:
      averages over about the last sigma_rel of the run so far (Karras et al. 2024, arXiv
      2312.02696). Two of them with snapshots give averages of any width after the run.
    snapshot_every_steps: number of steps between two snapshots of the power-function averages,
      which are kept permanently beside the checkpoints; the last step always has one. None: no
      snapshots.
  """

  decay: float = setting(0.9999, may_change=True)
  warmup: bool = setting(False, may_change=True)
  half_life_steps: float | None = setting(None, may_change=True)
  half_life_ramp: float | None = setting(None, may_change=True)
  more_decays: tuple[float, ...] = ()
  profiles: tuple[float, ...] = ()
  snapshot_every_steps: int | None = setting(None, may_change=True)

  # more_decays and profiles may not change: an average cannot start in mid-run
  setting_facts: ClassVar[Facts] = Facts(affects_figures=False, affects_samples=False)

  def __post_init__(self):
    for name, decay in (("decay", self.decay), *(("more_decays", d) for d in self.more_decays)):
      if not 0 <= decay < 1:
        raise ValueError(f"{name}={decay} must be at least 0 and below 1")
    self._check_half_life()
    for width in self.profiles:
      if not 0 < width <= MAX_WIDTH:
        raise ValueError(f"profiles={width} must be above 0 and at most {MAX_WIDTH}, e.g. 0.05,0.1")
    for name, values in (
      ("more_decays", (self.decay, *self.more_decays)),
      ("profiles", self.profiles),
    ):
      if len(set(values)) < len(values):
        listed = ",".join(map(str, getattr(self, name)))
        raise ValueError(f"{name}={listed} must differ from each other and from decay")
    every = self.snapshot_every_steps
    if every is not None and (every < 1 or not self.profiles):
      raise ValueError(
        f"snapshot_every_steps={every} must be at least 1 and needs profiles such as 0.05,0.1"
      )

  def _check_half_life(self) -> None:
    half_life, ramp = self.half_life_steps, self.half_life_ramp
    if half_life is not None and (half_life <= 0 or self.warmup):
      raise ValueError(
        f"half_life_steps={half_life} must be positive, and has half_life_ramp in place of warmup; "
        "set `ema.warmup=False`"
      )
    if ramp is not None and (half_life is None or ramp <= 0):
      raise ValueError(
        f"half_life_ramp={ramp} must be positive, e.g. 0.05, and needs half_life_steps; set "
        "`ema.half_life_ramp=None` to disable it"
      )

  def names(self) -> list[str]:
    """Return the names of the averages after the first, e.g. "decay:0.999", "profile:0.05"."""
    return [f"decay:{d}" for d in self.more_decays] + [f"profile:{w}" for w in self.profiles]

  def rates(self) -> Rates:
    """Return the numbers that a compiled step takes as arguments, as float32 scalars.

    For each average: 1 - decay, or the exponent plus one of a power function. For the first also
    half_life_steps and half_life_ramp, if they are set.
    """
    numbers = {"ema": 1.0 - self.decay}
    numbers |= {f"decay:{d}": 1.0 - d for d in self.more_decays}
    numbers |= {f"profile:{w}": exponent_of(w) + 1.0 for w in self.profiles}
    for name in ("half_life_steps", "half_life_ramp"):
      if (value := getattr(self, name)) is not None:
        numbers[name] = value
    return {name: np.asarray(value, np.float32) for name, value in numbers.items()}

  def update(
    self,
    offsets: Mapping[str, Params],
    old: Params,
    new: Params,
    step: Int[Array, ""],
    rates: Rates | None = None,
  ) -> dict[str, Params]:
    """Return each average minus the parameters after an update.

    An average a <- a + w (p - a) stored directly stops moving once w |p - a| is below half of its
    last digit; in a run of a million updates this is most of the way. The stored difference
    d = a - p, updated as d <- (1 - w) (d + old p - new p), has the precision of the difference,
    and its error is a thousand times smaller at w = 1e-6.

    Args:
      offsets: name -> average minus parameters, the first named "ema"; each has the structure of
        the parameters.
      old, new: parameters before and after the update.
      step: number of earlier updates.
      rates: `rates()` as traced arguments of a compiled step; None: as constants.
    """
    weights = self.weights(step, rates)

    def mix(old: Array, new: Array, *distances: Array) -> dict[str, Array]:
      pairs = zip(offsets, distances, strict=True)
      moved = {name: distance + (old - new) for name, distance in pairs}
      return {name: distance - weights[name] * distance for name, distance in moved.items()}

    mixed = jax.tree.map(mix, old, new, *offsets.values())
    inner = jax.tree.structure(dict.fromkeys(offsets, 0))
    return jax.tree.transpose(jax.tree.structure(new), inner, mixed)

  def weights(
    self, step: Int[Array, ""], rates: Rates | None = None
  ) -> dict[str, Float[Array, ""]]:
    """Return the weight of the new parameters in each average, after `step` earlier updates.

    A decay d gives 1 - d. A half-life h gives 1 - 2^(-1/h); with a ramp the first weight is 1. A
    power function at time t = step + 1 gives 1 - (1 - 1/t)^(gamma + 1), equation 127 of the paper,
    in a form that keeps float32 precision for large t.
    """
    rates = self.rates() if rates is None else rates
    before = jnp.log1p(-1.0 / (step + 1).astype(jnp.float32))
    weights = {"ema": self._of_first(step, rates)}
    weights |= {f"decay:{d}": self._of_decay(rates[f"decay:{d}"], step) for d in self.more_decays}
    for width in self.profiles:
      weights[f"profile:{width}"] = -jnp.expm1(rates[f"profile:{width}"] * before)
    return weights

  def _of_first(self, step: Int[Array, ""], rates: Rates) -> Float[Array, ""]:
    if self.half_life_steps is None:
      return self._of_decay(rates["ema"], step)
    half_life = jnp.asarray(rates["half_life_steps"])
    if self.half_life_ramp is not None:
      half_life = jnp.minimum(half_life, jnp.maximum(rates["half_life_ramp"] * step, 1e-8))
    return -jnp.expm1(-jnp.log(2.0) / half_life)

  def _of_decay(self, rate: Any, step: Int[Array, ""]) -> Float[Array, ""]:
    constant = jnp.asarray(rate)
    return jnp.maximum(constant, 9.0 / (11.0 + step)) if self.warmup else constant
