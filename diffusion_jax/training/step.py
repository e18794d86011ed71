"""The jitted train and eval steps; losses return one value per example, averaged here."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from diffusion_jax.core import rng
from diffusion_jax.core.parts import Part
from diffusion_jax.core.rng import Stream
from diffusion_jax.core.settings import Facts, setting
from diffusion_jax.core.shapes import checked_loss
from diffusion_jax.parallel import microbatches, platforms, sharding
from diffusion_jax.parallel.placement import placed_on
from diffusion_jax.training.ema import EMA
from diffusion_jax.training.objectives import (
  Optimizers,
  Trained,
  named_scalars,
  pack_objectives,
  trained_objectives,
  unpack_objectives,
)
from diffusion_jax.training.optimizers import Rates, apply_updates, update_rule
from diffusion_jax.training.throughput import VOTES
from diffusion_jax.training.train_state import TrainState, create_state
from diffusion_jax.types import Aux, Batch, GenerativeModel, Key, Params, UserError

Scalars = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class Training(Part):
  """Length, batch size and seed of a training run.

  Attributes:
    num_steps: number of steps of the run.
    batch_size: number of images in the global batch.
    seed: seed of the parameters, the data order and every draw.
    accumulation_steps: number of microbatches that one batch is split into to save memory. Times
      and noise of each image stay the same.
    max_skipped_in_a_row: number of successive non-finite updates after which the run stops.
  """

  num_steps: int = setting(100_000, may_change=True)
  batch_size: int = 128
  seed: int = 0
  accumulation_steps: int = setting(1, may_change=True)
  max_skipped_in_a_row: int = setting(20, may_change=True)

  setting_facts: ClassVar[Facts] = Facts(affects_figures=False, affects_samples=False)

  def __post_init__(self):
    for name in ("num_steps", "batch_size", "accumulation_steps", "max_skipped_in_a_row"):
      if getattr(self, name) < 1:
        raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
    if not 0 <= self.seed < 2**31:
      raise ValueError(f"seed={self.seed} must be between 0 and 2^31 - 1")


class Hyperparameters(NamedTuple):
  """Numbers passed to the compiled step as arguments, so that new values do not recompile it.

  Attributes:
    seed: seed of all draws, uint32.
    optimizer: see `Optimizer.rates`; a dict by name for several objectives.
    ema: see `EMA.rates`.
  """

  seed: Any
  optimizer: Rates | Mapping[str, Rates]
  ema: Rates


def hyperparameters(
  model: GenerativeModel, optimizers: Optimizers, ema: EMA, training: Training
) -> Hyperparameters:
  """Return a config's hyperparameters as NumPy scalars."""
  trained = trained_objectives(model, optimizers)
  rates = [t.optimizer.rates(training.num_steps) for t in trained]
  return Hyperparameters(
    np.asarray(training.seed, np.uint32), pack_objectives(trained, rates), ema.rates()
  )


def make_init(
  model: GenerativeModel,
  optimizers: Optimizers,
  training: Training,
  averages: Sequence[str] = (),
) -> Callable[..., TrainState]:
  """Return a function (seed, params=None) -> state of step 0.

  The state has the first average and those in `averages`. With `params` it begins with these in
  place of random ones.
  """
  trained = trained_objectives(model, optimizers)

  def init(seed: Any, params: Params | None = None) -> TrainState:
    drawn, aux = model.init(rng.stream(jax.random.key(seed), Stream.INIT))
    first = drawn if params is None else params
    states = [update_rule(t.optimizer, training.num_steps).init(t.own(first)) for t in trained]
    return create_state(first, aux, pack_objectives(trained, states), averages)

  return init


def make_train_step(
  model: GenerativeModel, optimizers: Optimizers, ema: EMA, training: Training, mesh: Mesh
) -> Callable[[TrainState, Batch, Hyperparameters], tuple[TrainState, Scalars]]:
  """Return a function that makes one update, or skips it if it is not finite.

  An update is the gradient of the mean loss, clipping, optimizer and EMA.
  Loss and gradient norm decide if an update is finite: with a finite norm every optimizer here has
  finite moments. Checking each new parameter would find no more, and XLA would copy the check, with
  one term per parameter, into every fusion that writes a part of the state: 90% of DDPM's program
  on a CPU. With several objectives, none is updated if any is not finite.

  Returns:
    A pure function (state, batch, hyperparameters) -> (state, scalars), to be jitted with
    `jit_train_step`. The scalars are loss and its metrics, grad_norm before clipping (the mean over
    the microbatches if each is clipped), learning_rate, num_skipped and num_skipped_in_a_row.
    Scalars of further objectives are prefixed by their names.
  """
  trained = trained_objectives(model, optimizers)

  @placed_on(mesh)
  def train_step(
    state: TrainState, batch: Batch, numbers: Hyperparameters
  ) -> tuple[TrainState, Scalars]:
    key = rng.numbered(rng.stream(jax.random.key(numbers.seed), Stream.TRAINING), state.step)
    gathered = sharding.compute_shardings(mesh, state.params)
    params = jax.lax.with_sharding_constraint(state.params, gathered)
    at = _Point(model, params, key, batch, training, _averaged(model, state, gathered))
    updates, new_params = state.step - state.num_skipped, state.params
    opt_states, auxes, scalars = [], [], []
    rows = (unpack_objectives(trained, x) for x in (numbers.optimizer, state.opt_state, state.aux))
    for t, rates, opt_state, aux in zip(trained, *rows, strict=True):
      grads, measured, aux = _clipped_gradient(at, t, aux, rates, mesh)
      change, opt_state = update_rule(t.optimizer, training.num_steps, rates).update(
        grads, opt_state, t.own(state.params)
      )
      new_params = t.merged(new_params, apply_updates(t.own(new_params), change))
      measured["learning_rate"] = t.optimizer.rate(training.num_steps, rates)(updates)
      opt_states, auxes, scalars = [*opt_states, opt_state], [*auxes, aux], [*scalars, measured]
    finite = functools.reduce(
      jnp.logical_and, [jnp.isfinite(s[name]) for s in scalars for name in ("loss", "grad_norm")]
    )
    offsets = ema.update(state.offsets, state.params, new_params, updates, numbers.ema)
    candidate = state._replace(
      params=new_params,
      opt_state=pack_objectives(trained, opt_states),
      aux=pack_objectives(trained, auxes),
      offsets=offsets,
    )
    state = _advance(finite, candidate, state)
    return state, named_scalars(trained, scalars) | {
      "num_skipped": state.num_skipped,
      "num_skipped_in_a_row": state.num_skipped_in_a_row,
    }

  return train_step


class _Point(NamedTuple):
  """The inputs at which a step's gradients are taken."""

  model: GenerativeModel
  params: Params
  key: Key
  batch: Batch
  training: Training
  average: Params | None = None


def _averaged(model: GenerativeModel, state: TrainState, shardings: Any) -> Params | None:
  if not model.needs_average:
    return None
  return jax.lax.with_sharding_constraint(state.ema, shardings)


def _clipped_gradient(at: _Point, t: Trained, aux: Aux, rates: Rates, mesh: Mesh):
  """Return one objective's gradient for its own parameters, its scalars and its state."""
  clip_norm = rates.get("clip_norm")
  clip_parts = t.optimizer.clip_scope == "microbatch"
  grads, scalars, aux = _gradient(at, t, aux, mesh, clip_parts, clip_norm)
  kept = sharding.state_shardings(mesh, grads)
  grads = jax.lax.with_sharding_constraint(grads, kept)  # reduced to where they are used
  norm = optax.tree.norm(grads)
  if not clip_parts:
    grads, scalars["grad_norm"] = clip_by_norm(grads, norm, clip_norm), norm
  return grads, scalars, aux


def jit_train_step(train_step: Callable, state: Any, mesh: Mesh, voting: bool = False) -> Any:
  """Jit a train step over the mesh and donate its input state.

  Args:
    train_step: (state, batch, hyperparameters) -> (state, scalars).
    state: a TrainState of arrays or ShapeDtypeStructs.
    mesh: the devices.
    voting: True adds a fourth argument, votes [batch shards], whose sum is returned among the
      scalars: all processes learn of a process's request at the same step.
  """
  layout, rows = sharding.state_shardings(mesh, state), sharding.batch_sharding(mesh)
  whole = sharding.replicated(mesh)

  def vote(state: TrainState, batch: Batch, numbers: Hyperparameters, votes: Int[Array, "S"]):
    state, scalars = train_step(state, batch, numbers)
    return state, scalars | {VOTES: votes.sum()}

  return jax.jit(
    vote if voting else train_step,
    in_shardings=(layout, rows, whole, rows) if voting else (layout, rows, whole),
    out_shardings=(layout, whole),
    donate_argnums=0,
    compiler_options=platforms.compiler_options(mesh.devices.flat[0].platform),
  )


def clip_by_norm(
  grads: Params, norm: Float[Array, ""], limit: float | Float[Array, ""] | None
) -> Params:
  """Scale gradients down to a global norm of at most `limit`; None changes nothing."""
  if limit is None:
    return grads
  factor = jnp.minimum(1.0, limit / jnp.maximum(norm, 1e-30))
  return jax.tree.map(lambda g: g * factor, grads)


def _advance(finite: Bool[Array, ""], new: TrainState, old: TrainState) -> TrainState:
  """Return the new state if the update was finite, else the old one with the skip counted."""
  kept = jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)
  skipped = jnp.where(finite, 0, 1)
  return kept._replace(
    step=old.step + 1,
    num_skipped=old.num_skipped + skipped,
    num_skipped_in_a_row=jnp.where(finite, 0, old.num_skipped_in_a_row + 1),
  )


def _gradient(at: _Point, t: Trained, aux: Aux, mesh: Mesh, clip_parts: bool, clip_norm: Any):
  """Return gradient and scalars of the mean loss, processing microbatches sequentially.

  Gradients of microbatches are summed in float32 on each replica alone, and over the replicas once.
  To clip each, or log its norm, it must be summed over the devices first.
  """
  num_microbatches = at.training.accumulation_steps
  batches = None if num_microbatches == 1 else split_batch(at.batch, num_microbatches)
  options: dict[str, Any] = {"train": True, "average": at.average}
  if batches is not None and at.model.needs_batch_mean:
    statistics = functools.partial(at.model.batch_statistics, at.params, at.key, train=True)
    options["batch_mean"] = _batch_mean(statistics, batches)

  def objective(group_params, aux, part):
    params = t.merged(at.params, group_params)
    output = t.objective.loss(params, aux, at.key, part, **options)
    losses, metrics, aux = checked_loss(output, len(part.index))
    scalars = {"loss": losses, **metrics}
    means = {n: masked_mean(v, part.mask) for n, v in scalars.items()}
    return means["loss"], (means, aux)

  own = t.own(at.params)

  def one(aux, part):
    grads, (scalars, aux) = jax.grad(objective, has_aux=True)(own, aux, part)
    norm = optax.tree.norm(grads)
    grads = clip_by_norm(grads, norm, clip_norm) if clip_parts else grads
    return aux, (grads, scalars | {"grad_norm": norm})

  if batches is None:
    aux, (grads, scalars) = one(aux, at.batch)
    return grads, scalars, aux
  if clip_parts or microbatches.num_replicas(mesh) == 1:
    grads, scalars, aux = _accumulate(one, aux, batches)
    return _in_types_of(own, grads), scalars, aux
  copies = microbatches.copies_of(mesh, own)

  def one_by_device(aux, part):
    def with_copies(own, copies):
      with microbatches.computing_with(mesh, own, copies):
        return objective(own, aux, part)

    (shared, rows), (scalars, aux) = jax.grad(with_copies, (0, 1), has_aux=True)(own, copies)
    return aux, ((shared, microbatches.split_rows(mesh, rows)), scalars)

  (shared, rows), scalars, aux = _accumulate(one_by_device, aux, batches)
  grads = jax.tree.map(lambda s, r: s + jnp.sum(r, axis=0), shared, rows)
  return _in_types_of(own, grads), scalars, aux


def _in_types_of(params: Params, grads: Params) -> Params:
  return jax.tree.map(lambda p, g: g.astype(p.dtype), params, grads)


def _batch_mean(values_of: Callable[[Batch], Array], batches: Batch) -> Array:
  """Return the mean over the examples of all microbatches, processed sequentially."""

  def total(part: Batch) -> tuple[Array, Array]:
    values = values_of(part)
    mask = jnp.reshape(part.mask, (-1,) + (1,) * (values.ndim - 1))
    return jnp.sum(values * mask, axis=0), jnp.sum(part.mask)

  sums, nums = jax.lax.map(total, batches)
  return jnp.sum(sums, axis=0) / jnp.maximum(jnp.sum(nums), 1.0)


def _accumulate(one: Callable, aux, batches: Batch):
  """Return the mean results of `one` over the microbatches, in float32, and the last state."""

  def step(carry, part):
    aux, total = carry
    aux, result = one(aux, part)
    return (aux, jax.tree.map(lambda t, r: t + r.astype(t.dtype), total, result)), None

  first = jax.tree.map(lambda x: x[0], batches)
  zeros = jax.tree.map(
    lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)),
    jax.eval_shape(one, aux, first)[1],
  )
  (aux, total), _ = jax.lax.scan(step, (aux, zeros), batches)
  grads, scalars = jax.tree.map(lambda x: x / len(batches.index), total)
  return grads, scalars, aux


def split_batch(batch: Batch, num_microbatches: int) -> Batch:
  """Split a batch into [parts, B / parts, ...], with every parts-th example in one part.

  Strided, so that each device keeps its own examples.
  """
  return jax.tree.map(
    lambda x: jnp.moveaxis(
      x.reshape(x.shape[0] // num_microbatches, num_microbatches, *x.shape[1:]), 1, 0
    ),
    batch,
  )


def masked_mean(values: Float[Array, "B"], mask: Float[Array, "B"]) -> Float[Array, ""]:
  """Return the mean over the examples that are not padding."""
  return jnp.sum(values * mask) / jnp.maximum(jnp.sum(mask), 1.0)


def measured_likelihoods(generative: GenerativeModel, names: Sequence[str]) -> list[str]:
  """Return those of `names` that a model has; only the default "elbo" may be missing.

  Raises:
    UserError: the model does not have another of the names.
  """
  for name in names:
    if name not in generative.likelihoods and name != "elbo":
      has = ",".join(generative.likelihoods)
      raise UserError(
        f"eval.training_likelihoods names '{name}', which this model does not have; it has "
        f"{has or 'none'}: `eval.training_likelihoods={has or 'none'}`"
      )
  return [name for name in names if name in generative.likelihoods]


def make_eval_step(
  generative: GenerativeModel, likelihoods: Sequence[str]
) -> Callable[[Params, Aux, Batch, Any], Scalars]:
  """Return a function for held-out metrics per example, with one fixed noise per example.

  Args:
    generative: the model.
    likelihoods: names in `generative.likelihoods` to measure as well.

  Returns:
    (params, aux, batch, seed of the noise) -> name -> values [B]: "loss", the loss's metrics, and
    "name/term" of each of these likelihoods in bits/dim.
  """

  def eval_step(params: Params, aux: Aux, batch: Batch, seed: Any) -> Scalars:
    key: Key = rng.stream(jax.random.key(seed), Stream.HELD_OUT)
    output = generative.loss(params, aux, key, batch, train=False)
    losses, metrics, _ = checked_loss(output, len(batch.index))
    values = {"loss": losses, **metrics}
    keys = rng.example_keys(rng.stream(key, Stream.LIKELIHOOD), batch.index)
    for name in likelihoods:
      estimate = generative.likelihoods[name](params, keys, batch)
      values[f"{name}/bits_per_dim"] = estimate.bits_per_dim
      values |= {f"{name}/{n}": v for n, v in estimate.terms.items() if v.ndim == 1}
    return values

  return eval_step
