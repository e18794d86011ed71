"""Operations of the convolutions and matrix products in a traced function."""

import math
from typing import Any


def product_flops(jaxpr: Any) -> float:
  """Two a multiplication, borders included, every scan in full, of a cond the dearest arm."""
  return sum(_flops(equation) for equation in jaxpr.eqns)


def _flops(equation: Any) -> float:
  name, params = equation.primitive.name, equation.params
  if name == "conv_general_dilated":
    kernel, numbers = equation.invars[1].aval.shape, params["dimension_numbers"]
    out_features = kernel[numbers.rhs_spec[0]]
    return 2.0 * equation.outvars[0].aval.size * math.prod(kernel) / out_features
  if name == "dot_general":
    (contracted, _), _ = params["dimension_numbers"]
    shape = equation.invars[0].aval.shape
    return 2.0 * equation.outvars[0].aval.size * math.prod(shape[i] for i in contracted)
  if name == "cond":
    return max(product_flops(branch.jaxpr) for branch in params["branches"])
  if name == "while":
    raise ValueError("the length of a while loop is not known")
  inner = params.get("jaxpr") or params.get("call_jaxpr")
  if inner is None:
    return 0.0
  return params.get("length", 1) * product_flops(getattr(inner, "jaxpr", inner))
