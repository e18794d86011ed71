"""The checkpoints of google-research/vdm: score network and learned noise schedule.

A checkpoint is flax's msgpack of the training state: `params`, `ema_params` and `opt_state`. Facts
read from the original's program: the network's second input is 0 for an image without augmentation,
so its row of the first dense layer is left out here and zero when written; the noise schedule by a
network is another expression of the same curve than `learned_monotone`, so its numbers are
converted. Source: Kingma et al. 2021 (arXiv 2107.00630), github.com/google-research/vdm.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from diffusion_jax.porting.flax_names import shape_of, side_of, with_flat_norms
from diffusion_jax.porting.layout import Content, Described, FileLayout, Layout
from diffusion_jax.porting.tensors import Pair, Shape, Tensors
from diffusion_jax.types import ImageSpec, UserError

IN_BLOCK = {
  "norm1/group": "GroupNorm_0", "conv1/conv": "conv1", "embed": "cond_proj",
  "norm2/group": "GroupNorm_1", "conv2/conv": "conv2", "shortcut": "nin_shortcut",
  "norm/group": "GroupNorm_0", "query": "q", "key": "k", "value": "v", "out": "proj_out",
}  # fmt: skip
TOP = {
  "time1": "dense0", "time2": "dense1", "conv_in/conv": "conv_in", "norm_out/group": "GroupNorm_0",
  "conv_out/conv": "conv_out",
}  # fmt: skip
MIDDLE = {
  "middle_block0": "mid.block_1", "middle_attention": "mid.attn_1", "middle_block1": "mid.block_2",
}  # fmt: skip
FIRST = "score_model/dense0/kernel"
DOWN = re.compile(r"score_model/down\.block_\d+/conv1/kernel")
EXPONENTS = {1: (), 5: (6, 7)}
"""Input channels over the image's channels -> exponents of the Fourier features."""


def _pairs(network: Any, shapes: Mapping[str, Shape]) -> list[Pair]:
  """Return the table of a model's parameters, network and schedule, and the tensors."""
  del network
  return [
    Pair((path,), (_name(path),), (1,) if shape == () else shape, turns=False)
    for path, shape in shapes.items()
  ]


def _name(path: str) -> str:
  part, _, rest = path.partition("/")
  if part == "process":
    return f"gamma/{rest}"
  layer, _, leaf = rest.rpartition("/")
  if layer in TOP:
    return f"score_model/{TOP[layer]}/{leaf}"
  place, _, inner = layer.partition("/")
  stem = MIDDLE.get(place) or re.sub(r"(\d+)$", r".block_\1", place)
  return f"score_model/{stem}/{IN_BLOCK[inner]}/{leaf}"


def _prepared(tensors: Tensors, network: Any, spec: ImageSpec) -> Tensors:
  del spec
  made = dict(with_flat_norms(tensors))
  if FIRST in made and len(made[FIRST]) == network.channels + 1:
    made[FIRST] = made[FIRST][:-1]
  return _with_converted_schedule(made) if "gamma/l2/kernel" in made else made


def _restored(tensors: Tensors, network: Any, num_labels: int) -> Tensors:
  del network, num_labels
  if "gamma/l1/weight" in tensors:
    raise UserError(
      "`process.name=learned_monotone`: VDM's checkpoints have another network of the schedule"
    )
  first = tensors[FIRST]
  return {**tensors, FIRST: np.concatenate([first, np.zeros_like(first[:1])])}


def _with_converted_schedule(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Return the tensors with the schedule's network in the terms of `LearnedMonotone`.

  There gamma(t) = |a| t + b + sum_j |c_j| (2 sigmoid(|k_j| (2 t - 1) + d_j) - 1) / F.
  """
  names = {"a": "l1/kernel", "b": "l1/bias", "k": "l2/kernel", "d": "l2/bias", "c": "l3/kernel"}
  found = {key: np.ravel(tensors.pop(f"gamma/{name}")) for key, name in names.items()}
  a, b, k, d, c = (found[key].astype(np.float64) for key in "abkdc")
  a, k, c = np.abs(a), np.abs(k), np.abs(c) / len(c)
  ends = [a * t + b + np.sum(c * np.tanh(0.5 * (k * (2 * t - 1) + d))) for t in (0.0, 1.0)]
  made = {
    "b": ends[0], "w": ends[1] - ends[0], "l1/weight": np.ones(1), "l1/bias": np.zeros(1),
    "l2/weight": 2 * k, "l2/bias": d - k, "l3/weight": 2 * c / a,
  }  # fmt: skip
  return tensors | {f"gamma/{name}": value.astype(np.float32) for name, value in made.items()}


def _recognises(names: Collection[str]) -> bool:
  return FIRST in names and "score_model/conv_in/kernel" in names


def _describe(content: Content) -> Described:
  tensors, where = content.tensors, content.where
  *_, inputs, channels = shape_of(tensors, "score_model/conv_in/kernel", 4, where)
  data_channels = shape_of(tensors, "score_model/conv_out/kernel", 4, where)[-1]
  factor, rest = divmod(inputs, data_channels)
  if rest or factor not in EXPONENTS:
    raise UserError(
      f"{where}: the first convolution has {inputs} inputs for {data_channels} channels of the "
      "image; known are 5 for each (Fourier features 2^6 and 2^7) and 1"
    )
  if any(".attn_0/" in name for name in tensors):
    raise UserError(
      f"{where}: it has attention after every block (with_attention=True); vdm_unet has it in the "
      "middle only"
    )
  side = side_of(content.image_size, where)
  num_blocks = sum(DOWN.match(name) is not None for name in tensors)
  sections = {
    "generative": {"name": "diffusion", "prediction": "eps"},
    "process": _schedule(tensors, where),
    "model": {
      "name": "vdm_unet", "channels": channels, "num_blocks": num_blocks,
      "fourier_exponents": EXPONENTS[factor], "dropout": 0.1, "norm_groups": 32,
    },
    "loss": {"name": "vdm"},
    "sampler": {
      "name": "ancestral", "steps": 1000, "variance": "fixed_small", "spacing": "uniform",
      "final": "min_time", "clip": False,
    },
    "probability_flow": {"dequantization": "truncated_normal"},
  }  # fmt: skip
  assumed = ("model.dropout", "process.gamma_min", "process.gamma_max")
  return Described(sections, ImageSpec(side, side, data_channels, 256, 0), assumed)


def _schedule(tensors: Tensors, where: str) -> dict[str, Any]:
  process = {"gamma_min": -13.3, "gamma_max": 5.0, "image_scale": 255 / 256}
  if "gamma/w" in tensors:
    return {"name": "learned_linear", **process}
  if "gamma/l2/kernel" not in tensors:
    raise UserError(
      f"{where} has no learned noise schedule (gamma/w, or gamma/l1 to gamma/l3); a fixed one is "
      "not supported"
    )
  for name in ("gamma/l1/bias", "gamma/l2/bias"):
    shape_of(tensors, name, 1, where)
  *_, width = [shape_of(tensors, f"gamma/l{i}/kernel", 2, where)[-1] for i in (1, 3, 2)]
  return {"name": "learned_monotone", "width": width, **process}


VDM = FileLayout(Layout("vdm", _pairs, _prepared, _restored), _recognises, _describe)
