"""Count the FLOPs of a traced function: its convolutions and matrix products.

A multiplication with its addition is 2 FLOPs. A product with a zero of a border or of a dilation is
none, so that a convolution and both of its gradients count the same. Published figures often
include the borders: a 3x3 kernel on 32x32 pixels then has 4% more. Element-wise operations, sums
and draws are not counted, as usual for the MFU (Chowdhery et al. 2022, arXiv 2204.02311, appendix
B). What cannot be counted is named in the result.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex
from jax.extend.core import primitives

from diffusion_jax.core.shapes import checked_loss
from diffusion_jax.kernels.attention import plain_only
from diffusion_jax.training.objectives import Optimizers, trained_objectives, unpack_objectives
from diffusion_jax.training.train_state import TrainState
from diffusion_jax.types import Batch, GenerativeModel

OPAQUE = {
  "cholesky", "cholesky_update", "custom_linear_solve", "eig", "eigh", "fft", "hessenberg",
  "householder_product", "lu", "qr", "geqrf", "schur", "svd", "triangular_solve", "tridiagonal",
  "tridiagonal_solve",
}  # fmt: skip
"""JAX's primitives that have products, but not as a matrix product: they count as unknown."""

UNLISTED = {
  "addupdate", "all_gather_invariant", "broadcast_to", "check", "dce_sink", "debug_callback",
  "debug_print", "dimension_size", "empty", "freeze", "from_edtype", "inspect_sharding",
  "iota_2x32_shape", "layout_constraint", "mesh_cast", "mulhi", "new_ref", "optimization_barrier",
  "pbroadcast", "pcast", "philox2x32", "philox4x32", "platform_index", "psum_invariant", "pvary",
  "random_clone", "random_unwrap", "random_wrap", "reduce_scatter", "reduced_vary_cast", "relayout",
  "reshard", "scatter-sub", "split", "stack", "threefry4x32", "tie", "tile", "to_edtype", "unstack",
  "zeros_like",
}  # fmt: skip
NO_PRODUCTS = UNLISTED | (
  {value.name for value in vars(primitives).values() if isinstance(value, jex.Primitive)} - OPAQUE
)
"""JAX's primitives without products: its public list, and others of some releases."""


SPLASH = re.compile(r"splash_m[hq]a_(fwd|dq|dkv)_")
SPLASH_PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 4}
"""Kernel of splash attention -> matrix products in it, with those of the scores."""


class Count(NamedTuple):
  """FLOPs of a program.

  Attributes:
    flops: FLOPs of all that is known.
    unknown: names of what is not counted, sorted.
  """

  flops: float
  unknown: tuple[str, ...] = ()


class StepFlops(NamedTuple):
  """FLOPs of a training step per device, spread evenly; None if a part is unknown.

  Attributes:
    model: values and gradients of all losses, with nothing computed twice; for the MFU.
    executed: the whole step, with all that rematerialisation computes again; for the HFU.
    unknown: names of what cannot be counted.
  """

  model: float | None
  executed: float | None
  unknown: tuple[str, ...] = ()


def step_flops(
  generative: GenerativeModel,
  optimizers: Optimizers,
  state: TrainState,
  batch: Batch,
  step: jex.ClosedJaxpr,
  num_devices: int,
) -> StepFlops:
  """Count a training step.

  Args:
    generative, optimizers: what the step trains.
    state, batch: its arguments for all devices, arrays or shapes.
    step: the traced step, `jitted.trace(state, batch, ...).jaxpr`.
    num_devices: devices that share the work.
  """
  model, executed = loss_flops(generative, optimizers, state, batch), count_flops(step)
  unknown = _sum([model, executed]).unknown
  return StepFlops(_share(model, num_devices), _share(executed, num_devices), unknown)


def executed_flops(step: jex.ClosedJaxpr, num_devices: int) -> StepFlops:
  """Count a traced training step, without the model FLOPs, which need another trace."""
  count = count_flops(step)
  return StepFlops(None, _share(count, num_devices), count.unknown)


def _share(count: Count, num_devices: int) -> float | None:
  return None if count.unknown else count.flops / num_devices


def loss_flops(
  generative: GenerativeModel, optimizers: Optimizers, state: TrainState, batch: Batch
) -> Count:
  """Count value and gradient of each objective's loss on the whole batch, nothing twice."""
  shapes = lambda tree: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)  # noqa: E731
  trained = trained_objectives(generative, optimizers)
  params, batch = shapes(state.params), shapes(batch)
  average = shapes(state.ema) if generative.needs_average else None
  counts = []
  for t, aux in zip(trained, unpack_objectives(trained, shapes(state.aux)), strict=True):

    def loss(own: Any, params: Any, average: Any, aux: Any, batch: Batch, t: Any = t):
      key = jax.random.key(0)
      args = (t.merged(params, own), aux, key, batch)
      output = t.objective.loss(*args, train=True, average=average)
      return jnp.sum(checked_loss(output, len(batch.index))[0])

    gradient = jax.value_and_grad(without_recomputation(loss))
    with plain_only():  # fused attention computes its scores twice
      traced = jax.make_jaxpr(gradient)(t.own(params), params, average, aux, batch)
    counts.append(count_flops(traced))
  return _sum(counts)


def without_recomputation(function: Callable[..., Any]) -> Callable[..., Any]:
  """Wrap a function of arrays: its gradient keeps what `jax.checkpoint` would recompute."""

  def kept(*args: Any) -> Any:
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
    values = jex.jaxpr_as_fun(_keep_all(closed))(*jax.tree.leaves(args))
    return jax.tree.unflatten(jax.tree.structure(shapes), values)

  return kept


def _keep_all(value: Any) -> Any:
  """Return a jaxpr, or a sequence of them, with every checkpoint's policy to keep everything."""
  if isinstance(value, jex.Jaxpr):  # from jax 0.12 on, the closed ones too
    return value.replace(eqns=[_with_all_kept(equation) for equation in value.eqns])
  if isinstance(value, jex.ClosedJaxpr):
    return value.replace(jaxpr=_keep_all(value.jaxpr))
  if type(value) in (tuple, list):
    return type(value)(_keep_all(part) for part in value)
  return value


def _with_all_kept(equation: Any) -> Any:
  params = {name: _keep_all(value) for name, value in equation.params.items()}
  if equation.primitive is primitives.remat_p:
    params["policy"] = jax.checkpoint_policies.everything_saveable
  return equation.replace(params=params)


def count_flops(jaxpr: jex.Jaxpr | jex.ClosedJaxpr) -> Count:
  """Count a traced function for all devices together, with every loop in full.

  A conditional counts as its dearest branch, and a sharded function once per shard. A Pallas kernel
  counts by its cost estimate. A loop counts as unknown if its length is not written in the program,
  as do kernels without an estimate, calls to other libraries, and matrix decompositions.

  Args:
    jaxpr: traced function, e.g. from `jax.make_jaxpr`.
  """
  return _sum(_equation(equation) for equation in jaxpr.eqns)


def _equation(equation: Any) -> Count:
  name = equation.primitive.name
  if name in RULES:
    return RULES[name](equation)
  if name in OPAQUE:
    return Count(0.0, (name,))
  inner = list(jex.jaxprs_in_params(equation.params))
  if not inner and name not in NO_PRODUCTS:
    return Count(0.0, (name,))
  return _sum(count_flops(part) for part in inner)


def _sum(counts: Iterable[Count]) -> Count:
  counts = list(counts)
  unknown = {name for count in counts for name in count.unknown}
  return Count(sum((count.flops for count in counts), 0.0), tuple(sorted(unknown)))


def _times(number: int, count: Count) -> Count:
  return count._replace(flops=number * count.flops) if number else Count(0.0)


def _convolution(equation: Any) -> Count:
  params, out = equation.params, equation.outvars[0].aval.shape
  image, kernel = (v.aval.shape for v in equation.invars)
  numbers = params["dimension_numbers"]
  axes = zip(*(spec[2:] for spec in numbers), strict=True)
  steps = zip(*(params[n] for n in ("window_strides", "padding", "lhs_dilation", "rhs_dilation")),
              strict=True)  # fmt: skip
  taps = math.prod(
    _taps(image[i], kernel[k], out[o], *step) for (i, k, o), step in zip(axes, steps, strict=True)
  )
  batch, features, *_ = numbers.out_spec
  inputs = kernel[numbers.rhs_spec[1]]  # of one group
  return Count(2.0 * out[batch] * out[features] * inputs * taps)


def _taps(
  size: int,
  kernel: int,
  out: int,
  stride: int,
  padding: tuple[int, int],
  spread: int,
  dilation: int,
) -> int:
  """Count the pairs of an output and a tap that meet an element of the input, along one axis."""
  at = stride * np.arange(out)[:, None] + dilation * np.arange(kernel) - padding[0]
  return int(np.sum((at >= 0) & (at <= (size - 1) * spread) & (at % spread == 0)))


def _dot(equation: Any) -> Count:
  return _product(equation, equation.params["dimension_numbers"], ())


def _ragged_dot(equation: Any) -> Count:
  """Count a product of groups of rows with a matrix each; the groups share all rows."""
  numbers = equation.params["ragged_dot_dimension_numbers"]
  return _product(equation, numbers.dot_dimension_numbers, numbers.rhs_group_dimensions)


def _product(equation: Any, numbers: Any, groups: Sequence[int]) -> Count:
  left, right = (v.aval.shape for v in equation.invars[:2])
  (_, contracted), (_, batch) = numbers
  free = set(range(len(right))) - {*contracted, *batch, *groups}
  return Count(2.0 * math.prod(left) * math.prod(right[axis] for axis in free))


def _scan(equation: Any) -> Count:
  return _times(equation.params["length"], count_flops(equation.params["jaxpr"]))


def _while(equation: Any) -> Count:
  body, test = (count_flops(equation.params[name]) for name in ("body_jaxpr", "cond_jaxpr"))
  if body == test == Count(0.0):
    return body
  length = _length(equation)
  if length is None:
    return Count(0.0, ("a while loop of unknown length", *_sum([body, test]).unknown))
  return _sum([_times(length, body), _times(length + 1, test)])


def _length(equation: Any) -> int | None:
  """Return the length of `while counter < end: counter += 1` between two literals, else None."""
  params = equation.params
  test, body = params["cond_jaxpr"].jaxpr, params["body_jaxpr"].jaxpr
  num_test, num_body = params["cond_nconsts"], params["body_nconsts"]
  start = equation.invars[num_test + num_body :]
  if len(test.eqns) != 1 or test.eqns[0].primitive.name != "lt":
    return None
  before, after = body.invars[num_body:], body.outvars

  def constant(variable: Any) -> Any:
    """Return a loop constant's literal, looked up outside the loop."""
    if isinstance(variable, jex.Literal):
      return variable
    index = test.invars.index(variable)
    if index < num_test:
      return equation.invars[index]
    carried = index - num_test
    return start[carried] if after[carried] is before[carried] else None

  counter, end = test.eqns[0].invars
  if isinstance(counter, jex.Literal) or test.invars.index(counter) < num_test:
    return None
  index = test.invars.index(counter) - num_test
  adds = [e for e in body.eqns if e.primitive.name == "add" and e.outvars[0] is after[index]]
  by_one = adds and adds[0].invars[0] is before[index] and _literal(adds[0].invars[1]) == 1
  first, last = _literal(start[index]), _literal(constant(end))
  return max(last - first, 0) if by_one and first is not None and last is not None else None


def _literal(variable: Any) -> int | None:
  return int(variable.val) if isinstance(variable, jex.Literal) else None


def _dearest_branch(equation: Any) -> Count:
  counts = [count_flops(branch) for branch in equation.params["branches"]]
  return Count(max(count.flops for count in counts), _sum(counts).unknown)


def _sharded(equation: Any) -> Count:
  params = equation.params
  sizes: Mapping[str, int] = params["mesh"].shape
  axes = params.get("newly_manual_axes", params.get("manual_axes", sizes))
  return _times(math.prod(sizes[axis] for axis in axes), count_flops(params["jaxpr"]))


def _pallas(equation: Any) -> Count:
  estimate = equation.params.get("cost_estimate")
  if estimate is None:
    name = str(equation.params.get("name") or equation.params.get("name_and_src_info"))
    if found := SPLASH.match(name):
      shapes = [v.aval.shape for v in equation.invars]
      query, key, *_ = (shape for shape in shapes if len(shape) >= 3 and shape[-2] > 1)
      return _attention(SPLASH_PRODUCTS[found[1]], query, key[-2])
    return Count(0.0, (f"pallas_call '{name}' without cost_estimate",))
  return Count(float(estimate.flops))


def _cudnn_attention(equation: Any) -> Count:
  """Count cuDNN's attention over [B N H D]; its backward pass computes the scores again."""
  query, key = (v.aval.shape for v in equation.invars[:2])
  return _attention(5 if "bwd" in equation.primitive.name else 2, query, key[1])


def _attention(num_products: int, query: Sequence[int], num_keys: int) -> Count:
  return Count(2.0 * num_products * math.prod(query) * num_keys)


def _foreign(equation: Any) -> Count:
  return Count(0.0, (f"ffi_call '{equation.params.get('target_name')}'",))


RULES: Mapping[str, Callable[[Any], Count]] = {
  "conv_general_dilated": _convolution,
  "dot_general": _dot,
  "ragged_dot_general": _ragged_dot,
  "scan": _scan,
  "while": _while,
  "cond": _dearest_branch,
  "shard_map": _sharded,
  "pallas_call": _pallas,
  "dot_product_attention_fwd": _cudnn_attention,
  "dot_product_attention_fwd_wrapper": _cudnn_attention,
  "dot_product_attention_bwd": _cudnn_attention,
  "dot_product_attention_bwd_wrapper": _cudnn_attention,
  "ffi_call": _foreign,
}
