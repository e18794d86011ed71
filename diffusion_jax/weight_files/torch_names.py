"""Names that a pickle of weights may use, each with a function that makes something inert."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from diffusion_jax.weight_files.inert import (
  DTYPES,
  Damaged,
  Encoded,
  Module,
  Namespace,
  NumpyArray,
  NumpyType,
  Refused,
  Storage,
  Tensor,
  as_bytes,
)
from diffusion_jax.weight_files.pickles import Name, no_name

STORAGE_TYPES = {
  "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16",
  "BFloat16Storage": "bfloat16", "LongStorage": "int64", "IntStorage": "int32",
  "ShortStorage": "int16", "CharStorage": "int8", "ByteStorage": "uint8", "BoolStorage": "bool",
  "ComplexFloatStorage": "complex64", "ComplexDoubleStorage": "complex128",
  "UntypedStorage": "uint8",
}  # fmt: skip
"""Type of each allowed storage class."""

TORCH_NAMES = {"double": "float64", "float": "float32", "half": "float16", "long": "int64"}
"""Second names of PyTorch's types."""

MAX_PATH = 1000
"""Maximum length of a path; it is made anew from its parts, which may come from the memo."""

NUMPY_CODES = {np.dtype(kind).str[1:]: kind for kind in DTYPES.values() if kind.kind in "fiubc"}
"""Allowed types of NumPy by their short names: "f4"."""


def storage_dtype(name: Any) -> np.dtype:
  """Return the type of a storage class.

  Raises:
    Damaged: it is none.
  """
  if type(name) is not Name or name.text not in STORAGE_TYPES:
    raise Damaged("a storage is of an unknown kind")
  return DTYPES[STORAGE_TYPES[name.text]]


def inert_name(module: str, name: str) -> Any:
  """Return the inert replacement of a name in a PyTorch file.

  Raises:
    Refused: weights need no such name.
  """
  if (module, name) in _NAMES:
    return _NAMES[module, name]
  if module == "torch" and TORCH_NAMES.get(name, name) in DTYPES:
    return f"torch.{name}"
  if module.startswith("torch.nn.modules.") and name.isidentifier():
    return Name(name, lambda: Module(name))
  return no_name(module, name)


def _not_called(*_: Any) -> Any:
  raise Refused("it makes a storage in an unknown way")


def _dict(*args: Any) -> dict[Any, Any]:
  if args:
    raise Refused("it makes a dict in an unknown way")
  return {}


def _set(items: Any = None) -> list[Any]:
  """Return the elements themselves: a copy per call would fill the memory."""
  items = [] if items is None else items
  if type(items) is not list:
    raise Refused("it makes a set in an unknown way")
  return items


def _rebuild_tensor(storage, offset, shape, strides, requires_grad, hooks, metadata=None) -> Any:
  del requires_grad, hooks, metadata
  if type(storage) is not Storage or type(shape) is not tuple or type(strides) is not tuple:
    raise Damaged("a tensor has no storage or no shape")
  return Tensor(storage, storage.dtype, offset, shape, strides)


def _rebuild_tensor_of_type(
  storage, offset, shape, strides, requires_grad, hooks, dtype: Any, metadata=None
) -> Any:
  tensor = _rebuild_tensor(storage, offset, shape, strides, requires_grad, hooks, metadata)
  name = str(dtype).removeprefix("torch.")
  tensor.dtype = DTYPES[TORCH_NAMES.get(name, name)]
  return tensor


def _rebuild_parameter(data, requires_grad=True, hooks=None, state=None) -> Any:
  del requires_grad, hooks, state
  if type(data) is not Tensor:
    raise Damaged("a parameter has no tensor")
  return data


def _rebuild_from_type(function, kind, args, state=None) -> Any:
  del state
  is_plain = type(kind) is Name and kind.make is _rebuild_parameter
  if type(function) is not Name or not is_plain or type(args) is not tuple:
    raise Refused("it has a tensor of an unknown class")
  return _rebuild_parameter(function.make(*args))


def _device(kind: Any, index: Any = None) -> str:
  if type(kind) is not str or len(kind) > 20 or not (index is None or type(index) is int):
    raise Damaged("a device has no name")
  return kind if index is None else f"{kind}:{index % 10**6}"


def _size(sizes: Any) -> tuple[Any, ...]:
  if type(sizes) is not tuple:
    raise Damaged("a size is no tuple")
  return sizes


def _encoded(text: Any, encoding: Any) -> Encoded:
  if type(text) is not str or encoding != "latin1":
    raise Refused("it encodes a text in an unknown way")
  return Encoded(text)


def _numpy_type(code: Any, *_: Any) -> NumpyType:
  if type(code) is not str or code.lstrip("<|=") not in NUMPY_CODES:
    raise Refused(f"it has NumPy values of the type {code!r:.20}")
  return NumpyType(NUMPY_CODES[code.lstrip("<|=")])


def _numpy_scalar(kind: Any, content: Any) -> Any:
  if type(kind) is not NumpyType or type(content) not in (bytes, Encoded):
    raise Refused("it has a NumPy value that is no number")
  if len(content) != kind.dtype.itemsize:
    raise Damaged("a NumPy value has another length than its type")
  return np.frombuffer(as_bytes(content), kind.dtype)[0].item()


def _numpy_array(*_: Any) -> NumpyArray:
  return NumpyArray()


def _numpy_from_buffer(content: Any, kind: Any, shape: Any, order: Any) -> NumpyArray:
  array = NumpyArray()
  array.set_state((1, shape, kind, order == "F", content))
  return array


def _path(*parts: Any) -> str:
  if any(type(part) is not str for part in parts) or sum(map(len, parts)) > MAX_PATH:
    raise Damaged("a path is no short text")
  return "/".join(parts).replace("//", "/", 1)


def _named(module: str, name: str, make: Any) -> dict[tuple[str, str], Any]:
  return {(module, name): Name(name, make)}


_NAMES: Mapping[tuple[str, str], Any] = {
  **_named("collections", "OrderedDict", _dict),
  **_named("builtins", "set", _set), **_named("__builtin__", "set", _set),
  **_named("builtins", "frozenset", _set), **_named("__builtin__", "frozenset", _set),
  **_named("_codecs", "encode", _encoded),
  **_named("argparse", "Namespace", lambda: Namespace("Namespace")),
  **_named("pathlib", "PosixPath", _path), **_named("pathlib", "PurePosixPath", _path),
  **_named("torch._utils", "_rebuild_tensor_v2", _rebuild_tensor),
  **_named("torch._utils", "_rebuild_tensor_v3", _rebuild_tensor_of_type),
  **_named("torch._utils", "_rebuild_parameter", _rebuild_parameter),
  **_named("torch._utils", "_rebuild_parameter_with_state", _rebuild_parameter),
  **_named("torch._tensor", "_rebuild_from_type_v2", _rebuild_from_type),
  **_named("torch.nn.parameter", "Parameter", _rebuild_parameter),
  **_named("torch", "Tensor", _rebuild_parameter),
  **_named("torch", "Size", _size), **_named("torch", "device", _device),
  **_named("numpy", "dtype", _numpy_type),
  **_named("numpy", "ndarray", _not_called),
  **{key: name for core in ("numpy.core", "numpy._core") for key, name in {
    **_named(f"{core}.multiarray", "scalar", _numpy_scalar),
    **_named(f"{core}.multiarray", "_reconstruct", _numpy_array),
    **_named(f"{core}.numeric", "_frombuffer", _numpy_from_buffer)}.items()},
  **{key: name for kind in STORAGE_TYPES for key, name in
     _named("torch", kind, _not_called).items()},
  **_named("torch.storage", "UntypedStorage", _not_called),
}  # fmt: skip
"""All names that a PyTorch file may use."""
