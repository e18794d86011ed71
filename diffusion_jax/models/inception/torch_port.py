"""Parameters of the FID Inception network from the PyTorch file of its weights.

pytorch-fid and torch-fidelity share one file: pt_inception-2015-12-05-6726825d.pth. Its arrays are
rewritten into a faster network that computes the same function:

- each batch norm, a fixed affine map at evaluation, goes into its convolution;
- the 1x1 convolutions of a block with the same input become one;
- an average pool followed by a 1x1 convolution is that convolution followed by the pool: both are
  linear, the pool's weights sum to one and are the same for all channels, and the second order
  pools fewer channels. (A maximum does not commute: that block keeps its convolution apart.)
"""

from collections.abc import Mapping

import numpy as np

from diffusion_jax.types import Params, UserError

TorchState = Mapping[str, np.ndarray]
"""A PyTorch state dict: name -> array."""

BATCH_NORM_EPSILON = 1e-3

MAX_POOLED = ("Mixed_7c",)
"""Blocks whose pool branch takes the maximum instead of the average."""

Shape = tuple[int, int, int, int]
"""Shape of a convolution: channels out, channels in, height, width."""

NORM = ("weight", "bias", "running_mean", "running_var")
"""Parts of a batch norm."""

ENTRY = (
  "branch1x1", "branch5x5_1", "branch3x3dbl_1", "branch3x3_1", "branch7x7_1", "branch7x7dbl_1",
  "branch7x7x3_1", "branch_pool",
)  # fmt: skip
"""1x1 convolutions of a block's input."""

STEM: Mapping[str, Shape] = {
  "Conv2d_1a_3x3": (32, 3, 3, 3),
  "Conv2d_2a_3x3": (32, 32, 3, 3),
  "Conv2d_2b_3x3": (64, 32, 3, 3),
  "Conv2d_3b_1x1": (80, 64, 1, 1),
  "Conv2d_4a_3x3": (192, 80, 3, 3),
}


def _shapes_a(width: int, pool: int) -> dict[str, Shape]:
  return {
    "branch1x1": (64, width, 1, 1),
    "branch5x5_1": (48, width, 1, 1),
    "branch5x5_2": (64, 48, 5, 5),
    "branch3x3dbl_1": (64, width, 1, 1),
    "branch3x3dbl_2": (96, 64, 3, 3),
    "branch3x3dbl_3": (96, 96, 3, 3),
    "branch_pool": (pool, width, 1, 1),
  }


def _shapes_b() -> dict[str, Shape]:
  return {
    "branch3x3": (384, 288, 3, 3),
    "branch3x3dbl_1": (64, 288, 1, 1),
    "branch3x3dbl_2": (96, 64, 3, 3),
    "branch3x3dbl_3": (96, 96, 3, 3),
  }


def _shapes_c(width: int) -> dict[str, Shape]:
  return {
    "branch1x1": (192, 768, 1, 1),
    "branch7x7_1": (width, 768, 1, 1),
    "branch7x7_2": (width, width, 1, 7),
    "branch7x7_3": (192, width, 7, 1),
    "branch7x7dbl_1": (width, 768, 1, 1),
    "branch7x7dbl_2": (width, width, 7, 1),
    "branch7x7dbl_3": (width, width, 1, 7),
    "branch7x7dbl_4": (width, width, 7, 1),
    "branch7x7dbl_5": (192, width, 1, 7),
    "branch_pool": (192, 768, 1, 1),
  }


def _shapes_d() -> dict[str, Shape]:
  return {
    "branch3x3_1": (192, 768, 1, 1),
    "branch3x3_2": (320, 192, 3, 3),
    "branch7x7x3_1": (192, 768, 1, 1),
    "branch7x7x3_2": (192, 192, 1, 7),
    "branch7x7x3_3": (192, 192, 7, 1),
    "branch7x7x3_4": (192, 192, 3, 3),
  }


def _shapes_e(width: int) -> dict[str, Shape]:
  return {
    "branch1x1": (320, width, 1, 1),
    "branch3x3_1": (384, width, 1, 1),
    "branch3x3_2a": (384, 384, 1, 3),
    "branch3x3_2b": (384, 384, 3, 1),
    "branch3x3dbl_1": (448, width, 1, 1),
    "branch3x3dbl_2": (384, 448, 3, 3),
    "branch3x3dbl_3a": (384, 384, 1, 3),
    "branch3x3dbl_3b": (384, 384, 3, 1),
    "branch_pool": (192, width, 1, 1),
  }


BLOCKS: Mapping[str, Mapping[str, Shape]] = {
  "Mixed_5b": _shapes_a(192, 32), "Mixed_5c": _shapes_a(256, 64), "Mixed_5d": _shapes_a(288, 64),
  "Mixed_6a": _shapes_b(),
  "Mixed_6b": _shapes_c(128), "Mixed_6c": _shapes_c(160), "Mixed_6d": _shapes_c(160),
  "Mixed_6e": _shapes_c(192),
  "Mixed_7a": _shapes_d(),
  "Mixed_7b": _shapes_e(1280), "Mixed_7c": _shapes_e(2048),
}  # fmt: skip


def from_torch(state: TorchState) -> Params:
  """Convert weights under their PyTorch names to parameters for `apply`.

  Args:
    state: 94 convolutions (`X.conv.weight`, O I H W), their batch norms (`X.bn.weight`, `bias`,
      `running_mean`, `running_var`) and `fc.weight`, `fc.bias`: 472 arrays. Entries named
      `num_batches_tracked` are ignored.

  Returns:
    A nested dict of float32 arrays, block -> layer -> kernel (H W I O) and bias.

  Raises:
    UserError: a name is missing or unknown, an array has another shape, or a value is not finite.
  """
  _check(state)
  params: dict[str, dict] = {"fc": {"kernel": _float32(state["fc.weight"].T)}}
  for name in STEM:
    params[name] = _folded(state, [name])
  for block, layers in BLOCKS.items():
    params[block] = _block_params(state, block, list(layers))
  return params


def _block_params(state: TorchState, block: str, layers: list[str]) -> dict[str, dict]:
  """Return a block's layers, with the 1x1 convolutions of its input merged."""
  entry = [name for name in layers if name in ENTRY]
  if block in MAX_POOLED:
    entry.remove("branch_pool")
  params = {n: _folded(state, [f"{block}.{n}"]) for n in layers if n not in entry}
  if entry:
    params["entry"] = _folded(state, [f"{block}.{n}" for n in entry])
  return params


def _folded(state: TorchState, names: list[str]) -> dict[str, np.ndarray]:
  """Merge convolutions side by side, each with its batch norm folded in; in float64."""
  pairs = [_folded_one(state, name) for name in names]
  kernels, biases = zip(*pairs, strict=True)
  return {"kernel": _float32(np.concatenate(kernels, -1)), "bias": _float32(np.concatenate(biases))}


def _folded_one(state: TorchState, name: str) -> tuple[np.ndarray, np.ndarray]:
  scale, shift, mean, variance = (state[f"{name}.bn.{part}"].astype(np.float64) for part in NORM)
  factor = scale / np.sqrt(variance + BATCH_NORM_EPSILON)
  kernel = state[f"{name}.conv.weight"].astype(np.float64).transpose(2, 3, 1, 0)
  return kernel * factor, shift - mean * factor


def _float32(x: np.ndarray) -> np.ndarray:
  return np.ascontiguousarray(x, np.float32)


def torch_shapes() -> dict[str, tuple[int, ...]]:
  """Return the shape of each of the 472 arrays by its PyTorch name."""
  layers = {f"{b}.{n}": shape for b, names in BLOCKS.items() for n, shape in names.items()}
  shapes: dict[str, tuple[int, ...]] = {"fc.weight": (1008, 2048), "fc.bias": (1008,)}
  for name, shape in (*STEM.items(), *layers.items()):
    shapes[f"{name}.conv.weight"] = shape
    shapes |= {f"{name}.bn.{part}": shape[:1] for part in NORM}
  return shapes


def _check(state: TorchState) -> None:
  shapes = torch_shapes()
  stored = {name for name in state if not name.endswith("num_batches_tracked")}
  if stored != shapes.keys():
    missing, unknown = sorted(shapes.keys() - stored), sorted(stored - shapes.keys())
    raise UserError(
      f"these are not the weights of the FID Inception network: {len(missing)} of its "
      f"{len(shapes)} arrays are missing{_first(missing)}, {len(unknown)} are unknown"
      f"{_first(unknown)}; use pt_inception-2015-12-05-6726825d.pth"
    )
  for name, shape in shapes.items():
    if state[name].shape != shape or not np.isfinite(state[name]).all():
      raise UserError(
        f"Inception weights: {name} has shape {state[name].shape}, expected {shape} and finite "
        "values; use pt_inception-2015-12-05-6726825d.pth"
      )


def _first(names: list[str]) -> str:
  return f" ({names[0]}{', ...' if len(names) > 1 else ''})" if names else ""
