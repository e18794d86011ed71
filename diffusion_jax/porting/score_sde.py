"""The U-Nets of yang-song/score_sde: DDPM, DDPM++ and NCSN++, from flax and PyTorch files.

A flax file is the msgpack of a training state with `params_ema`; its modules are numbered by class,
"ResnetBlockBigGANpp_3". A PyTorch file has one list of all modules, "all_modules.7", in the same
order. Facts read from the original's program: a VE model gets log(sigma) of images between 0 and 1
and returns sigma times the score, so its last layer's sign is turned; the average's rate is 0.999
for VE and 0.9999 for VP and sub-VP. Source: Song et al. 2021 (arXiv 2011.13456).
"""

import itertools
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.porting.flax_names import side_of, with_flat_norms
from diffusion_jax.porting.layout import Content, Described, FileLayout, Layout
from diffusion_jax.porting.score_sde_modules import Modules, flax_modules, is_torch, torch_modules
from diffusion_jax.porting.tensors import Pair, Shape, Tensors
from diffusion_jax.types import ImageSpec, UserError

IN_BLOCK = {
  "norm1/group": "GroupNorm_0", "conv1/conv": "Conv_0", "embed": "Dense_0",
  "norm2/group": "GroupNorm_1", "conv2/conv": "Conv_1",
}  # fmt: skip
IN_ATTENTION = {
  "norm/group": "GroupNorm_0", "query": "NIN_0", "key": "NIN_1", "value": "NIN_2", "out": "NIN_3",
}  # fmt: skip


class Kind(NamedTuple):
  """A kind of module of the original's networks.

  Attributes:
    flax: its class there.
    layers: names of our layers in it -> names of theirs; "" for the module itself.
  """

  flax: str
  layers: Mapping[str, str]


SHARED = {
  "fourier": Kind("GaussianFourierProjection", {"": ""}), "dense": Kind("Dense", {"": ""}),
  "conv": Kind("Conv", {"conv": ""}), "norm": Kind("GroupNorm", {"group": ""}),
}  # fmt: skip
KINDS = {
  "ncsnpp": SHARED | {
    "block": Kind("ResnetBlockBigGANpp", {**IN_BLOCK, "shortcut": "Conv_2"}),
    "attention": Kind("AttnBlockpp", IN_ATTENTION),
    "input": Kind("Downsample", {"conv": "Conv2d_0"}),
  },
  "ddpm": SHARED | {
    "block": Kind("ResnetBlockDDPM", {**IN_BLOCK, "shortcut": "NIN_0"}),
    "attention": Kind("AttnBlock", IN_ATTENTION), "half": Kind("Downsample", {"conv": "Conv_0"}),
    "double": Kind("Upsample", {"conv3/conv": "Conv_0"}),
  },
}  # fmt: skip
"""The original's network -> kinds of modules."""


def _places(network: Any, present: Collection[str]) -> Iterator[tuple[str, str]]:
  """Yield our modules and their kinds in the original's order.

  Args:
    network: config of the network.
    present: names of our modules.
  """
  last, resized = len(network.multipliers) - 1, network.resampling == "block"
  yield from [("fourier", "fourier")] if network.embedding == "fourier" else []
  yield from [("time1", "dense"), ("time2", "dense"), ("conv_in", "conv")]
  for level in range(last + 1):
    for i in range(network.num_blocks):
      yield from _with_attention(f"down{level}_block{i}", present)
    if level < last:
      yield f"down{level}_half", "block" if resized else "half"
      yield from [(f"down{level}_input", "input")] if network.input_residual else []
  yield from [("middle_block0", "block"), ("middle_attention", "attention")]
  yield "middle_block1", "block"
  for level in range(last, -1, -1):
    for i in range(network.num_blocks + 1):
      yield from _with_attention(f"up{level}_block{i}", present)
    if level:
      yield f"up{level}_double", "block" if resized else "double"
  yield from [("norm_out", "norm"), ("conv_out", "conv")]


def _with_attention(place: str, present: Collection[str]) -> Iterator[tuple[str, str]]:
  yield place, "block"
  if (attention := f"{place}_attention") in present:
    yield attention, "attention"


def _flax_pairs(network: Any, shapes: Mapping[str, Shape]) -> list[Pair]:
  """Return the table for flax files, whose axes are ours."""
  return list(_pairs(network, shapes, is_flax=True))


def _torch_pairs(network: Any, shapes: Mapping[str, Shape]) -> list[Pair]:
  """Return the table for PyTorch files."""
  return list(_pairs(network, shapes, is_flax=False))


def _pairs(network: Any, shapes: Mapping[str, Shape], is_flax: bool) -> Iterator[Pair]:
  kinds = KINDS["ncsnpp" if network.resampling == "block" else "ddpm"]
  counts: Counter[str] = Counter()
  stems: dict[str, tuple[str, Kind]] = {}
  present = {path.partition("/")[0] for path in shapes}
  for index, (place, name) in enumerate(_places(network, present)):
    kind = kinds[name]
    stem = f"{kind.flax}_{counts[kind.flax]}" if is_flax else f"all_modules.{index}"
    stems[place] = stem, kind
    counts[kind.flax] += 1
  for path, shape in shapes.items():
    place, _, rest = path.partition("/")
    inner, _, leaf = rest.rpartition("/")
    stem, kind = stems[place]
    layer = kind.layers[inner]
    one_pixel = layer == "Conv_2"
    if is_flax:
      name = "/".join(filter(None, (stem, layer, _flax_leaf(layer, leaf))))
      wanted = (1, 1, *shape) if one_pixel and leaf == "kernel" else None
    else:
      name = ".".join(filter(None, (stem, layer, _torch_leaf(layer, leaf))))
      wanted = (shape[1], shape[0], 1, 1) if one_pixel and leaf == "kernel" else None
    turns = not (is_flax or layer.startswith("NIN_"))
    yield Pair((path,), (name,), wanted, turns)


def _flax_leaf(layer: str, leaf: str) -> str:
  if layer.startswith("NIN_"):
    return {"kernel": "W", "bias": "b"}[leaf]
  if layer.startswith("Conv2d_") and leaf == "kernel":
    return "weight"
  return "W" if leaf == "frequencies" else leaf


def _torch_leaf(layer: str, leaf: str) -> str:
  if layer.startswith("NIN_"):
    return {"kernel": "W", "bias": "b"}[leaf]
  return {"frequencies": "W", "bias": "bias"}.get(leaf, "weight")


def _prepared(tensors: Tensors, network: Any, spec: ImageSpec) -> Tensors:
  del spec
  plain = {name.removeprefix("module."): value for name, value in tensors.items()}
  return _with_sign(with_flat_norms(plain), network)


def _restored(tensors: Tensors, network: Any, num_labels: int) -> Tensors:
  del num_labels
  return _with_sign(tensors, network)


def _with_sign(tensors: Tensors, network: Any) -> Tensors:
  """Return the tensors with the other sign of the last layer of a VE model, which is exact."""
  if network.embedding != "fourier":
    return tensors
  if is_torch(tensors):
    last = max(int(name.split(".")[1]) for name in tensors if name.startswith("all_modules."))
    stem = f"all_modules.{last}."
  else:
    stem = "Conv_1/"
  return {n: np.negative(value) if n.startswith(stem) else value for n, value in tensors.items()}


def _describe_flax(content: Content) -> Described:
  return _described(content, flax_modules(content.tensors, content.where))


def _describe_torch(content: Content) -> Described:
  return _described(content, torch_modules(content.tensors, content.where))


def _described(content: Content, found: Modules) -> Described:
  """Return the sections for the modules of a file."""
  side, where = side_of(content.image_size, content.where), content.where
  _check_rate(content.facts, found, where)
  if any(width % found.channels for width in found.widths):
    raise UserError(
      f"{where}: its levels' widths {list(found.widths)} must be multiples of {found.channels}"
    )
  levels, is_guess = attended_levels(found, side, where)
  model = {
    "name": "unet", "channels": found.channels, "dropout": 0.1, "decoder_attention": "last",
    "multipliers": tuple(width // found.channels for width in found.widths),
    "num_blocks": found.num_blocks, "norm_epsilon": 1e-6,
    "attention_resolutions": tuple(side // 2**level for level in levels),
  }  # fmt: skip
  assumed = ["model.attention_resolutions"] * is_guess + ["model.dropout"]
  if found.has_blocks_between:
    model |= {
      "resampling": "block", "resample_projection": True, "skip_scale": math.sqrt(0.5),
      "resample_filter": (1, 3, 3, 1) if found.input_residual else (1, 1),
      "input_residual": found.input_residual, "init": "edm", "norm_groups": None,
    }  # fmt: skip
    assumed += ["model.resample_filter", "model.skip_scale"]
  else:
    model |= {"init": "ddpm", "norm_groups": 32, "downsample_padding": (0, 1)}
  process = {"name": "vp", "beta_min": 0.1, "beta_max": 20.0, "min_time": 1e-5}
  if found.is_fourier:
    # images from -1 to 1 here and from 0 to 1 there: twice the noise
    process = {"name": "ve", "sigma_min": 0.02, "sigma_max": 100.0}
    model |= {"embedding": "fourier", "noise_multiplier": 2, "fourier_scale": 16.0}
    model |= {"time_scale": 4.0, "time_offset": -math.log(2.0)}
  sections = {
    "generative": {"name": "diffusion", "prediction": "eps"},
    "process": process,
    "model": model,
    "loss": {"name": "simple"},
    "sampler": {"name": "probability_flow", "rtol": 1e-5, "atol": 1e-5},
  }
  told = ("name", "min_time") if found.is_fourier else ("min_time",)
  assumed += [f"process.{field}" for field in process if field not in told]
  spec = ImageSpec(side, side, found.data_channels, 256, 0)
  return Described(sections, spec, tuple(assumed))


def _check_rate(facts: Mapping[str, Any], found: Modules, where: str) -> None:
  """Refuse VE models with numbered noise levels, whose weights look like those of VP models."""
  average = facts.get("ema")
  rate = average.get("decay") if isinstance(average, Mapping) else facts.get("ema_rate")
  if not found.is_fourier and isinstance(rate, float) and abs(rate - 0.999) < 1e-5:
    raise UserError(
      f"{where}: its average has the rate 0.999 of the VE models, and no Fourier embedding: such a "
      "model (ve/cifar10_ncsnpp, ve/cifar10_ddpm) is told the number of one of 1,000 noise levels, "
      "which is not supported"
    )


def attended_levels(found: Modules, side: int, where: str) -> tuple[tuple[int, ...], bool]:
  """Return the levels with attention, and whether other levels fit the file as well.

  A PyTorch file tells the order of modules; in a flax file only their widths and number do, and of
  several levels the one of 16 pixels, the original's, is taken.
  """
  if found.attended is not None:
    return found.attended, False
  per_level = found.num_blocks + 1
  number, rest = divmod(len(found.attention_widths) - 1, per_level)
  wanted = found.attention_widths[: number * found.num_blocks : found.num_blocks]
  fitting = [
    levels
    for levels in itertools.combinations(range(len(found.widths)), max(number, 0))
    if [found.widths[level] for level in levels] == list(wanted)
  ]
  if rest or not fitting:
    raise UserError(
      f"{where}: {len(found.attention_widths)} attention blocks of the widths "
      f"{list(found.attention_widths)} fit no levels of {found.num_blocks} blocks; attention is "
      "after each block on the way down and once a level on the way up"
    )
  usual = [levels for levels in fitting if 16 in (side // 2**level for level in levels)]
  return (usual or fitting)[0], len(fitting) > 1


def _is_flax(names: Collection[str]) -> bool:
  return any(name.startswith(("ResnetBlockBigGANpp_0/", "ResnetBlockDDPM_0/")) for name in names)


FLAX = FileLayout(Layout("score_sde", _flax_pairs, _prepared, _restored), _is_flax, _describe_flax)
TORCH = FileLayout(
  Layout("score_sde (PyTorch)", _torch_pairs, _prepared, _restored, ("sigmas",)),
  is_torch,
  _describe_torch,
)
