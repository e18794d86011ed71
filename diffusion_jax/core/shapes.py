"""Checks of what a function of the caller returned, by shape and type alone.

Both are known while JAX traces, so a compiled program does not contain the checks.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.types import LossOutput


def describe_value(value: Any) -> str:
  """Return "float32[8,2]" for an array, "tuple (float32[8,2], int)", or the name of a type."""
  if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
    return f"key[{','.join(map(str, value.shape))}]"
  if hasattr(value, "dtype") and hasattr(value, "shape"):
    return f"{np.dtype(value.dtype).name}[{','.join(map(str, value.shape))}]"
  if type(value) in (tuple, list):
    return f"{type(value).__name__} ({', '.join(describe_value(item) for item in value[:4])})"
  return "None" if value is None else type(value).__name__


def float_array(value: Any, shape: tuple[int, ...], name: str, dtype: Any = None) -> Any:
  """Return an array of floats, after a check of its shape.

  Args:
    value: array that a function returned.
    shape: shape that it must have.
    name: what returned it, for the message, e.g. "network".
    dtype: float type of the result; None: float32 if it is half precision, else its own.

  Raises:
    ValueError: it is no array of floats, or has another shape; both are named.
  """
  fits = isinstance(value, jax.Array | np.ndarray) and value.shape == tuple(shape)
  if not fits or not jnp.issubdtype(value.dtype, jnp.floating):
    needed = jax.ShapeDtypeStruct(tuple(shape), dtype or jnp.float32)
    raise ValueError(f"{name} returned {describe_value(value)}; needed {describe_value(needed)}")
  return value.astype(dtype or jnp.promote_types(value.dtype, jnp.float32))


def per_example(value: Any, num: int, name: str) -> None:
  """Check values per example: float32 [num], not half precision, which a mean would round.

  Raises:
    ValueError: it is something else; it and what is needed are named.
  """
  is_array = isinstance(value, jax.Array | np.ndarray) and value.shape == (num,)
  if not is_array or value.dtype not in (jnp.float32, jnp.float64):
    raise ValueError(f"{name} returned {describe_value(value)}; needed float32[{num}], one value "
                     "per example")  # fmt: skip


def checked_loss(output: Any, num: int) -> LossOutput:
  """Return what a loss returned for `num` examples.

  Raises:
    ValueError: it is no `LossOutput`, or has not one number per example; a mean would hide that.
  """
  if not isinstance(output, LossOutput):
    raise ValueError(f"loss returned {describe_value(output)}; needed LossOutput(values)")
  per_example(output.values, num, "loss")
  for name, value in output.metrics.items():
    if np.shape(value) != (num,):
      raise ValueError(
        f"loss returned the metric '{name}' as {describe_value(value)}; needed one value per "
        f"example, float32[{num}]"
      )
  return output
