"""What a training run carries from step to step: parameters, optimizer, averages and counters."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from diffusion_jax.core.registry import Registry
from diffusion_jax.training.power_function_ema import MAX_WIDTH, exponent_of
from diffusion_jax.types import Aux, Params

Rates = Mapping[str, Any]
"""Float32 scalars by name: NumPy's, or traced arguments of a compiled step."""

FIXED = ("autoencoder", "latent_scale", "frequencies")
"""Names of parameters that are saved with a model and never trained."""


AS_OFFSETS = {"tracked_as": "offsets"}
"""Mark of stored averages that were tracked as differences; older ones have more rounding."""


class TrainState(NamedTuple):
  """One atomic unit; all floats are float32.

  Attributes:
    step: batches consumed so far, the skipped ones included.
    params: trained parameters.
    opt_state: of the optimizer.
    aux: state that the loss carries.
    num_skipped: updates skipped for a non-finite loss or gradient.
    num_skipped_in_a_row: the same since the last good update.
    offsets: each average minus the parameters, by its name: "ema", which is sampled and evaluated,
      and those of `EMA.names`. Differences, because a float32 average that moves by less than half
      of its last digit in an update would stand still; see `EMA.update`.
  """

  step: Int[Array, ""]
  params: Params
  opt_state: Any
  aux: Aux
  num_skipped: Int[Array, ""]
  num_skipped_in_a_row: Int[Array, ""]
  offsets: Mapping[str, Params]

  @property
  def ema(self) -> Params:
    """The average that is sampled and evaluated, computed anew at each access."""
    return average(self.params, self.offsets["ema"])


@dataclasses.dataclass(frozen=True)
class Adam:
  """Adam with linear warm-up, a schedule and a gradient clip.

  Attributes:
    learning_rate: after the warm-up.
    b1, b2, eps: of Kingma and Ba 2015 (arXiv 1412.6980).
    weight_decay: decoupled (Loshchilov and Hutter 2019).
    warmup_steps: the rate rises linearly from 0 over so many updates.
    schedule: what follows: constant, or down to 0 along a line or half a cosine.
    decay_steps: the update at which a falling schedule reaches 0; none: the run's last.
    clip_norm: largest global norm of a gradient; none: no clipping.
    clip_scope: `global` clips the batch's gradient; `microbatch` clips each of
      training.accumulation_steps parts before they are averaged, as the original DDPM did on
      each of its 8 replicas.
    decay: parameters that weight_decay acts on: `kernels`, arrays of two or more axes; `non_bias`,
      all that are not named bias, so also scales of norms and a schedule's numbers, as in VDM's
      program. Never those that no gradient trains (FIXED).
  """

  learning_rate: float = 2e-4
  b1: float = 0.9
  b2: float = 0.999
  eps: float = 1e-8
  weight_decay: float = 0.0
  warmup_steps: int = 0
  schedule: Literal["constant", "cosine", "linear"] = "constant"
  decay_steps: int | None = None
  clip_norm: float | None = 1.0
  clip_scope: Literal["global", "microbatch"] = "global"
  decay: Literal["kernels", "non_bias"] = "kernels"

  def __post_init__(self):
    if self.learning_rate <= 0 or self.eps <= 0:
      raise ValueError(f"learning_rate={self.learning_rate}, eps={self.eps} must be positive")
    if not (0 <= self.b1 < 1 and 0 <= self.b2 < 1):
      raise ValueError(f"b1={self.b1}, b2={self.b2} must be at least 0 and below 1")
    if self.weight_decay < 0 or self.warmup_steps < 0:
      raise ValueError("weight_decay and warmup_steps must not be negative")
    if self.clip_norm is not None and self.clip_norm <= 0:
      raise ValueError(f"clip_norm={self.clip_norm} must be positive, or none")
    if self.decay_steps is not None and self.decay_steps <= self.warmup_steps:
      raise ValueError(f"decay_steps={self.decay_steps} must exceed the warm-up")

  def rates(self, num_steps: int) -> Rates:
    """Return the numbers that a compiled step takes as arguments, for a run of `num_steps`.

    They are float32 scalars: learning_rate, weight_decay, warmup_steps, for a falling schedule
    decay_steps (the length of its falling part) and, unless it is None, clip_norm.
    """
    names = ("learning_rate", "weight_decay", "warmup_steps")
    numbers = {name: getattr(self, name) for name in names}
    if self.schedule != "constant":
      numbers["decay_steps"] = max((self.decay_steps or num_steps) - self.warmup_steps, 1)
    if self.clip_norm is not None:
      numbers["clip_norm"] = self.clip_norm
    return {name: np.asarray(value, np.float32) for name, value in numbers.items()}

  def rate(self, num_steps: int, rates: Rates | None = None) -> optax.Schedule:
    """Return the learning rate as a function of the number of updates made.

    Args:
      num_steps: length of the run.
      rates: `rates(num_steps)` as traced arguments of a compiled step; None: as constants.
    """
    rates = self.rates(num_steps) if rates is None else rates
    shape = {
      "linear": lambda progress: 1.0 - progress,
      "cosine": lambda progress: 0.5 * (1.0 + jnp.cos(jnp.pi * progress)),
    }

    def schedule(updates: Any) -> Any:
      after, factor = updates - rates["warmup_steps"], 1.0
      if self.schedule != "constant":
        factor = shape[self.schedule](jnp.clip(after / rates["decay_steps"], 0.0, 1.0))
      rising = updates / jnp.maximum(rates["warmup_steps"], 1.0)
      return rates["learning_rate"] * jnp.where(after < 0, rising, factor)

    return schedule

  def create(self, num_steps: int, rates: Rates | None = None) -> optax.GradientTransformation:
    """Return the update rule without the clip, which the step applies since it has the norm.

    Args:
      num_steps: length of the run.
      rates: `rates(num_steps)` as traced arguments of a compiled step; None: as constants.
    """
    rates = self.rates(num_steps) if rates is None else rates
    decay = optax.add_decayed_weights(rates["weight_decay"], mask=self.decayed)
    return optax.chain(
      optax.scale_by_adam(self.b1, self.b2, self.eps),
      decay,  # with a weight of 0 too: its state must not depend on it, or no run could change it
      optax.scale_by_learning_rate(self.rate(num_steps, rates)),
    )

  def decayed(self, params: Params) -> Any:
    """Return a tree of booleans: the parameters that weight decay acts on."""

    def decays(path: Any, leaf: Any) -> bool:
      name = jax.tree_util.keystr(path, simple=True, separator="/").rpartition("/")[2]
      if name in FIXED:
        return False
      return name != "bias" if self.decay == "non_bias" else leaf.ndim > 1

    return jax.tree_util.tree_map_with_path(decays, params)


OPTIMIZERS = Registry("optimizer", object, {"adam": Adam})


@dataclasses.dataclass(frozen=True)
class EMA:
  """Moving averages of the parameters, one update a step.

  Attributes:
    decay: weight of the past in the average that is sampled and evaluated.
    warmup: start shorter: min(decay, (1 + n) / (10 + n)) at the n-th update, from n = 1 on, as in
      Song et al. 2021's code (score_sde), so that a short run's average forgets the initial
      parameters. It holds for all decays.
    half_life_steps: in place of `decay`: updates after which a parameter's weight has halved, that
      is half-life in images / batch size. Karras et al. 2022 (arXiv 2206.00364), appendix F.2.
    half_life_ramp: with it, the half-life is at most this share of the updates so far, as there:
      0.05; none: no ramp.
    more_decays: of further averages that are tracked beside it.
    profiles: relative widths sigma_rel of power-function averages that are tracked, such as
      0.05, 0.1: averages over about the last sigma_rel of the run so far (Karras et al. 2024, arXiv
      2312.02696). Two of them and snapshots give averages of any width when the run is done.
    snapshot_every_steps: between two snapshots of the power-function averages, which are kept for
      good beside the checkpoints; the last step always has one. None: no snapshots.
  """

  decay: float = 0.9999
  warmup: bool = False
  half_life_steps: float | None = None
  half_life_ramp: float | None = None
  more_decays: tuple[float, ...] = ()
  profiles: tuple[float, ...] = ()
  snapshot_every_steps: int | None = None

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
        "set --config.ema.warmup=false"
      )
    if ramp is not None and (half_life is None or ramp <= 0):
      raise ValueError(
        f"half_life_ramp={ramp} must be positive, e.g. 0.05, and needs half_life_steps; set "
        "--config.ema.half_life_ramp=none to leave it"
      )

  def names(self) -> list[str]:
    """The averages beside the first: "decay:0.999", "profile:0.05"."""
    return [f"decay:{d}" for d in self.more_decays] + [f"profile:{w}" for w in self.profiles]

  def rates(self) -> Rates:
    """Return the numbers that a compiled step takes as arguments, float32 scalars.

    Of each average: 1 - decay, or the exponent plus one of a power function. Of the first also
    half_life_steps and half_life_ramp, where they are set.
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
    """Return each average minus the parameters, after an update, in one pass.

    An average a <- a + w (p - a) that is stored as itself no longer moves once w |p - a| is below
    half of its last digit: in a run of a million updates that is most of its way. The difference
    d = a - p, as d <- (1 - w) (d + old p - new p), has the digits of the difference, and its
    error is a thousand times smaller at w = 1e-6.

    Args:
      offsets: name -> average minus parameters, the first as "ema"; each has the structure of the
        parameters.
      old, new: the parameters before and after the update.
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
    """Weight of the newest parameters in each average, at the update after `step` earlier ones.

    Of a decay d: 1 - d. Of a half-life h: 1 - 2^(-1/h); with a ramp the first is 1. Of a power
    function at time t = step + 1: 1 - (1 - 1/t)^(gamma + 1), equation 127 of the paper; written so
    that float32 keeps its digits for large t.
    """
    rates = self.rates() if rates is None else rates
    before = jnp.log1p(-1.0 / (step + 1).astype(jnp.float32))
    found = {"ema": self._of_first(step, rates)}
    found |= {f"decay:{d}": self._of_decay(rates[f"decay:{d}"], step) for d in self.more_decays}
    for width in self.profiles:
      found[f"profile:{width}"] = -jnp.expm1(rates[f"profile:{width}"] * before)
    return found

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


def create_state(
  params: Params,
  aux: Aux,
  optimizer: optax.GradientTransformation,
  averages: Sequence[str] = (),
) -> TrainState:
  """The state before the first step; all averages start at the initial parameters.

  Args:
    params, aux: the model's.
    optimizer: the update rule.
    averages: names of those beside the first.
  """
  return TrainState(
    step=jnp.int32(0),
    params=params,
    opt_state=optimizer.init(params),
    aux=aux,
    num_skipped=jnp.int32(0),
    num_skipped_in_a_row=jnp.int32(0),
    offsets={name: jax.tree.map(jnp.zeros_like, params) for name in ("ema", *averages)},
  )


@jax.jit
def average(params: Params, offset: Params) -> Params:
  """Return an average from its distance to the parameters, see `TrainState.offsets`."""
  return jax.tree.map(jnp.add, params, offset)


def holds_averages(leaves: Iterable[str]) -> bool:
  """Return whether stored leaves hold averages themselves, as early versions stored them."""
  return any(name.startswith("ema/") for name in leaves)


def with_averages(state: TrainState) -> dict[str, Any]:
  """Return the tree of a state, or of its shapes, as early versions stored it."""
  offsets = dict(state.offsets)
  fields = {name: value for name, value in state._asdict().items() if name != "offsets"}
  return {**fields, "ema": offsets.pop("ema"), "averages": offsets}


def from_averages(stored: Mapping[str, Any]) -> TrainState:
  """Return the state that a tree of `with_averages` holds."""
  fields = dict(stored)
  averages = {"ema": fields.pop("ema"), **fields.pop("averages")}
  offsets = {name: _difference(tree, fields["params"]) for name, tree in averages.items()}
  return TrainState(**fields, offsets=offsets)


@jax.jit
def _difference(tree: Params, other: Params) -> Params:
  return jax.tree.map(jnp.subtract, tree, other)


def count_parameters(params: Params) -> int:
  """Number of trained numbers."""
  return sum(leaf.size for leaf in jax.tree.leaves(params))
