"""Compute with parameters that stay split over the devices, as between training steps.

Inside `spread_over`, a network gathers each of its arrays where it is used, at every call. Nothing
else orders these gathers: the compiler may do all of them first, and before the sampler's loop, and
a device would hold the whole network. So each one waits for a value that the network has computed
shortly before.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import eval_jaxpr
from jax.extend.core import ClosedJaxpr, Literal
from jax.sharding import Mesh, NamedSharding

from diffusion_jax.parallel import platforms, sharding
from diffusion_jax.parallel.microbatches import apply_on_each_device
from diffusion_jax.parallel.placement import placed_on
from diffusion_jax.types import Params

_mesh: ContextVar[Mesh | None] = ContextVar("spread_over", default=None)


@contextlib.contextmanager
def spread_over(mesh: Mesh) -> Iterator[None]:
  """Trace everything in the block for parameters that are split as in training."""
  token = _mesh.set(mesh)
  try:
    with placed_on(mesh):
      yield
  finally:
    _mesh.reset(token)


def jit_spread(function: Callable[..., Any], mesh: Mesh) -> Any:
  """Jit a function whose parameters are split over a mesh as in training."""
  is_split, platform = mesh.shape["fsdp"] > 1, mesh.devices.flat[0].platform
  options = platforms.memory_options(platform) if is_split else {}
  return jax.jit(spread_over(mesh)(function), compiler_options=options or None)


def gathering(apply: Callable[..., Any]) -> Callable[..., Any]:
  """Return a network's function that gathers each array of its parameters where it is used.

  It does so inside `spread_over` a mesh that splits the state. In a training step it lets each
  device sum its own gradients, see `apply_on_each_device`. It changes nothing elsewhere.

  Args:
    apply: (params, inputs [B ...], ...) -> outputs.
  """

  @functools.wraps(apply)
  def call(params: Params, *inputs: Any, **options: Any) -> Any:
    mesh = _mesh.get()
    if mesh is None or mesh.shape["fsdp"] == 1:
      return apply_on_each_device(apply, params, *inputs, **options)
    given = (params, inputs, options)
    traced, shape = jax.make_jaxpr(
      lambda given: apply(given[0], *given[1], **given[2]), return_shape=True
    )(given)
    whole = jax.tree.leaves(sharding.compute_shardings(mesh, params))
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(given)]
    layouts = whole + [None] * (len(leaves) - len(whole))
    outputs = _evaluate(traced, leaves, layouts, _Order())
    return jax.tree.unflatten(jax.tree.structure(shape), outputs)

  return call


class _Order:
  """Keeps the value that the next gather must wait for, computed before the last gather.

  Waiting for the value just computed would leave the links idle while the network computes.
  """

  def __init__(self):
    self._before: Any = None
    self._newest: Any = None

  def saw(self, value: Any) -> None:
    """Note a value that depends on the network's inputs."""
    if jnp.issubdtype(value.dtype, jnp.floating):
      self._newest = jax.lax.stop_gradient(value)
      self._before = self._newest if self._before is None else self._before

  def gather(self, array: Any, layout: NamedSharding) -> Any:
    """Return an array in its layout for computation."""
    if self._before is not None:
      array, _ = jax.lax.optimization_barrier((array, self._before))
      self._before = self._newest
    return jax.lax.with_sharding_constraint(array, layout)


def _evaluate(
  traced: ClosedJaxpr, values: Sequence[Any], layouts: Sequence[Any], order: _Order
) -> list[Any]:
  """Compute a traced function; arguments with a layout are gathered where they are used."""
  jaxpr = traced.jaxpr
  known = dict(zip(jaxpr.constvars, traced.consts, strict=True))
  known |= dict(zip(jaxpr.invars, values, strict=True))
  split = {v: s for v, s in zip(jaxpr.invars, layouts, strict=True) if s is not None}
  moving = {v for v in jaxpr.invars if v not in split}
  for variable in jaxpr.invars:
    if variable in moving:
      order.saw(known[variable])

  def read(variable: Any) -> Any:
    if isinstance(variable, Literal):
      return variable.val
    value = known[variable]
    return order.gather(value, split[variable]) if variable in split else value

  for eqn in jaxpr.eqns:
    named = [v for v in eqn.invars if not isinstance(v, Literal)]
    if eqn.primitive.name in ("jit", "pjit") and any(v in split for v in named):
      inner = [v.val if isinstance(v, Literal) else known[v] for v in eqn.invars]
      wanted = [None if isinstance(v, Literal) else split.get(v) for v in eqn.invars]
      results = _evaluate(eqn.params["jaxpr"], inner, wanted, order)
    else:
      alone = jaxpr.replace(constvars=[], invars=named, outvars=eqn.outvars, eqns=[eqn])
      results = eval_jaxpr(alone, (), *map(read, named))
    known |= dict(zip(eqn.outvars, results, strict=True))
    if any(v in moving for v in named):
      moving |= set(eqn.outvars)
      order.saw(results[0])
  return [read(v) for v in jaxpr.outvars]
