"""Checks of a user's own parts by tracing them: shapes and types of all that they return.

Nothing is compiled or computed. A config of this package's parts alone is not traced.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.core import rng
from diffusion_jax.core.own_code import is_own, own_code
from diffusion_jax.core.shapes import checked_loss, describe_value, float_array
from diffusion_jax.training.objectives import trained_objectives, unpack_objectives
from diffusion_jax.training.optimizers import update_rule
from diffusion_jax.types import Batch, Condition, GenerativeModel, ImageSpec, Params

NUM = 3
"""Number of examples of the traces, no usual size of an axis."""

NUM_TIMES = 5
"""Number of times at which a process is checked, another number than NUM."""

NETWORKS = ("model", "autoencoder", "process", "decoder")
SAMPLING = ("sampler", "guidance", *NETWORKS)
LOSSES = ("loss", *NETWORKS)


def check_process(sections: Mapping[str, Any]) -> None:
  """Check the shapes and signs of a process's coefficients, if it is a user's own.

  Args:
    sections: config section -> instance.

  Raises:
    UserError: the process raises, or returns something of another kind, shape or sign.
  """
  own = _own(sections, ("process",))
  with own_code(own), np.errstate(all="ignore"):
    for process in own.values():
      _check_coefficients(process)


def check_sampling(sections: Mapping[str, Any], model: GenerativeModel, spec: ImageSpec) -> None:
  """Check parts that draw samples, if one of them is a user's own.

  Args:
    sections: config section -> instance.
    model: the model made of them.
    spec: shape of the data.

  Raises:
    UserError: a part raises, or returns something of another kind, shape or type.
  """
  own = _own(sections, SAMPLING)
  if not own:
    return
  params, _ = _parameters(sections, model)
  condition = _condition(model, spec)
  if "denoise" in model.capabilities and _own(sections, NETWORKS):
    with own_code(_own(sections, NETWORKS)):
      takes = "end_time" in sections["model"].takes
      at_once = condition._replace(end_time=jnp.zeros(NUM) if takes else None)
      xt, t = jnp.zeros((NUM, *spec.shape)), jnp.full(NUM, 0.5)
      jax.eval_shape(lambda params: model.denoise(params, xt, t, at_once), params)
  guided = "guidance" in sections and sections["guidance"].against == "model"
  if not guided:  # else the guiding model is known only to `sample`
    with own_code(own):
      _check_samples(model, params, condition, spec)


def check_training(
  sections: Mapping[str, Any],
  optimizers: Mapping[str, Any],
  num_steps: int,
  model: GenerativeModel,
  spec: ImageSpec,
) -> None:
  """Check losses and optimizers, if one of the parts they use is a user's own.

  Args:
    sections: config section -> instance.
    optimizers: those sections that are optimizers.
    num_steps: length of the run.
    model: the model made of the sections.
    spec: shape of the training data.

  Raises:
    UserError: a part raises, or returns something of another kind, shape or type.
  """
  own = _own(sections, (*LOSSES, *optimizers))
  if not own:
    return
  params, aux = _parameters(sections, model)
  if _own(sections, LOSSES):
    with own_code(_own(sections, LOSSES)):
      _check_losses(model, optimizers, params, aux, spec)
  for t in trained_objectives(model, optimizers):
    with own_code({t.objective.optimizer: t.optimizer}):
      _check_rule(t.optimizer, num_steps, t.own(params))


def _own(sections: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
  """Return those of the named sections whose part is defined outside this package."""
  return {name: sections[name] for name in names if name in sections and is_own(sections[name])}


def _parameters(sections: Mapping[str, Any], model: GenerativeModel) -> tuple[Params, Any]:
  """Return shapes of the parameters and of the loss's state, after a check of the former."""
  with own_code(_own(sections, LOSSES)):
    params, aux = jax.eval_shape(lambda: model.init(jax.random.key(0)))
    leaves = jax.tree_util.tree_leaves_with_path(params)
    for path, leaf in leaves:
      if leaf.dtype != jnp.float32:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        raise ValueError(
          f"init returned the parameter {name} as {describe_value(leaf)}; needed float32: compute "
          "in another type by a cast in apply"
        )
    if not leaves:
      raise ValueError("init returned no parameters; needed at least one array to train")
  return params, aux


def _check_coefficients(process: Any) -> None:
  """Check values at a few times, in NumPy and in JAX."""
  bound = process.bind(process.init(jax.random.key(0)))
  if bound is None:
    raise ValueError("bind returned None; needed the process for given parameters")
  low = max(float(bound.min_time), 1e-3)
  for xp in (np, jnp):
    t = xp.linspace(low, 1.0, NUM_TIMES)
    pair = bound.alpha_sigma(t)
    if not isinstance(pair, tuple) or len(pair) != 2:
      raise ValueError(f"alpha_sigma returned {describe_value(pair)}; needed (alpha, sigma)")
    found = {"alpha of alpha_sigma": pair[0], "sigma of alpha_sigma": pair[1]}
    for name in ("log_snr", "network_time", "time_at"):
      found[name] = getattr(bound, name)(t)
    found["time_of"] = bound.time_of(found["log_snr"])
    for name, value in found.items():
      if np.shape(value) != t.shape:
        needed = f"needed one number per time, float[{len(t)}]"
        raise ValueError(f"{name} returned {describe_value(value)} for {NUM_TIMES} times; {needed}")
  times = np.linspace(low, 1.0, NUM_TIMES)
  alpha, sigma = (np.asarray(c) for c in bound.alpha_sigma(times))
  if (alpha < 0).any() or (sigma <= 0).any() or not np.isfinite([alpha, sigma]).all():
    raise ValueError(
      f"alpha_sigma returned alpha {alpha.tolist()}, sigma {sigma.tolist()} at t = "
      f"{times.tolist()}; alpha must not be negative, and sigma must be positive"
    )


def _condition(model: GenerativeModel, spec: ImageSpec) -> Condition:
  """Return a condition of NUM examples with all that the model is given."""
  label = jnp.zeros(NUM, jnp.int32) if model.num_classes else None
  shapes = {name: spec.fields[name] for name in model.fields}
  fields = {name: jnp.zeros((NUM, *f.shape), f.dtype) for name, f in shapes.items()}
  return Condition(label, fields=fields)


def _check_samples(
  model: GenerativeModel, params: Params, condition: Condition, spec: ImageSpec
) -> None:
  def draw(params: Params) -> Any:
    keys = rng.sample_keys(0, np.arange(NUM))
    return float_array(model.sample(params, keys, condition).images, (NUM, *spec.shape), "sample")

  jax.eval_shape(draw, params)


def _check_losses(
  model: GenerativeModel, optimizers: Mapping[str, Any], params: Params, aux: Any, spec: ImageSpec
) -> None:
  """Check the loss measured, and each objective's loss with its gradient."""
  shape, kind = model.trains_on or (spec.shape, jnp.float32 if spec.num_levels is None else "uint8")
  fields = {name: jnp.zeros((NUM, *f.shape), f.dtype) for name, f in spec.fields.items()}
  rows, image = jnp.zeros(NUM, jnp.int32), jnp.zeros((NUM, *shape), kind)
  batch = Batch(image, rows, jnp.ones(NUM), jnp.arange(NUM, dtype=jnp.uint32), fields)
  average = params if model.needs_average else None

  def measured(params: Params, aux: Any) -> Any:
    output = model.loss(params, aux, jax.random.key(0), batch, train=False)
    return checked_loss(output, NUM).values

  jax.eval_shape(measured, params, aux)
  trained = trained_objectives(model, optimizers)
  for t, state in zip(trained, unpack_objectives(trained, aux), strict=True):

    def mean(own: Params, params: Params, average: Any, state: Any, t: Any = t) -> Any:
      options = {"train": True, "average": average}
      output = t.objective.loss(t.merged(params, own), state, jax.random.key(0), batch, **options)
      output = checked_loss(output, NUM)
      return output.values.mean(), output.state

    gradient = jax.grad(mean, has_aux=True)
    _, after = jax.eval_shape(gradient, t.own(params), params, average, state)
    _check_same("the loss's state after a step", state, after)


def _check_rule(optimizer: Any, num_steps: int, params: Params) -> None:
  """Check an optimizer's numbers, its state and its updates of some parameters."""
  rates = optimizer.rates(num_steps)
  rule = update_rule(optimizer, num_steps, rates)
  state = jax.eval_shape(rule.init, params)
  change, after = jax.eval_shape(rule.update, params, state, params)
  _check_same("the updates", params, change)
  _check_same("the optimizer's state after a step", state, after)
  rate = optimizer.rate(num_steps, rates)(jnp.zeros((), jnp.int32))
  if np.shape(rate) != ():
    raise ValueError(f"rate returned {describe_value(rate)}; needed one number")


def _check_same(name: str, wanted: Any, given: Any) -> None:
  """Raise a ValueError if trees differ in structure, shape or type."""
  (_, one), (leaves, other) = jax.tree.flatten(wanted), jax.tree_util.tree_flatten_with_path(given)
  if one != other:
    raise ValueError(f"{name}: other names or structure than at the start")
  for (path, leaf), old in zip(leaves, jax.tree.leaves(wanted), strict=True):
    if (leaf.shape, leaf.dtype) != (old.shape, old.dtype):
      place = jax.tree_util.keystr(path, simple=True, separator="/")
      raise ValueError(f"{name}: {place} is {describe_value(leaf)}; needed {describe_value(old)}")
