"""Pickles of NVlabs' EDM: a preconditioned U-Net, read without running its source.

Facts of NVlabs/edm: `training/networks.py` (names, preconditionings), `train.py` (recipes),
`generate.py` and README (samplers). Shapes tell the network, names the side of the images; what is
left, such as dropout, is among the arguments that the pickle keeps.
"""

import functools
import math
import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.models import UNet
from diffusion_jax.porting.fused_unet import by_part, told_shape, unet_pairs, unet_place
from diffusion_jax.porting.layout import Content, Described, FileLayout, Layout
from diffusion_jax.porting.tensors import Pair, Shape, Tensors
from diffusion_jax.types import ImageSpec, UserError

LABELS, AUGMENTATION = "model.map_label.weight", "model.map_augment.weight"
FREQUENCIES, STEPS = "model.map_noise.freqs", "u"
FILTER = ".resample_filter"

TOP = {
  "time1": "map_layer0", "time2": "map_layer1", "label": "map_label",
  "augmentation": "map_augment",
}  # fmt: skip
IN_BLOCK = {
  "norm1/group": "norm0", "conv1/conv": "conv0", "embed": "affine", "norm2/group": "norm1",
  "conv2/conv": "conv1", "shortcut": "skip", "norm/group": "norm2", "qkv": "qkv", "out": "proj",
}  # fmt: skip

FIRST = re.compile(r"model\.enc\.(\d+)x\1_conv\.weight")
BLOCK = re.compile(r"model\.enc\.(\d+)x\1_block(\d+)\.conv1\.weight")
SKIPPED = re.compile(r"model\.(enc|dec)\.\d+x\d+_aux_(skip|up|down)\..*")

NETWORKS = ("SongUNet", "DhariwalUNet")
PRECONDITIONINGS = ("EDMPrecond", "VPPrecond", "iDDPMPrecond")


class _Form(NamedTuple):
  """Facts on which the names of tensors depend.

  Attributes:
    side: side of the images.
    is_song: true for a SongUNet (DDPM++, NCSN++), false for a DhariwalUNet (ADM).
    filters: names of the buffers with the resampling filter.
  """

  side: int
  is_song: bool
  filters: tuple[str, ...]


def _pairs(network: UNet, shapes: Mapping[str, Shape], form: _Form) -> list[Pair]:
  levels = len(network.multipliers)

  def place(way: str, level: int, what: str) -> str:
    side = form.side >> level
    return f"model.{way}.{side}x{side}_{what}"

  def name_of(layer: str, leaf: str) -> str:
    at = unet_place(layer)
    outer = {
      "fourier": "model.map_noise", "conv_in/conv": place("enc", 0, "conv"),
      "norm_out/group": place("dec", 0, "aux_norm") if form.is_song else "model.out_norm",
      "conv_out/conv": place("dec", 0, "aux_conv") if form.is_song else "model.out_conv",
    }  # fmt: skip
    if layer == "fourier":
      return FREQUENCIES
    if not at.way:
      return f"{outer[layer] if layer in outer else f'model.{TOP[layer]}'}.{leaf}"
    if at.way == "middle":
      stem = place("dec", levels - 1, f"in{at.number}")
    elif at.kind == "input":
      return f"{place('enc', at.level + 1, 'aux_residual')}.{leaf}"
    elif at.kind == "half":
      stem = place("enc", at.level + 1, "down")
    elif at.kind == "double":
      stem = place("dec", at.level - 1, "up")
    else:
      stem = place("enc" if at.way == "down" else "dec", at.level, f"block{at.number}")
    return f"{stem}.{IN_BLOCK[at.part]}.{leaf}"

  return unet_pairs(shapes, name_of, attention_axes=2)


def _filter(network: UNet) -> np.ndarray:
  """Return the resampling filter as the buffers hold it; its values are exact."""
  taps = np.asarray(network.resample_filter, np.float32)
  return (np.outer(taps, taps) / np.sum(taps) ** 2)[None, None]


def _prepared(tensors: Tensors, network: UNet, spec: ImageSpec, form: _Form) -> Tensors:
  """Return the parameters alone, with ADM's classes as a table with zeros for the null class."""
  for name in form.filters:
    if not np.array_equal(tensors[name], _filter(network)):
      raise UserError(
        f"{name} is another filter than model.resample_filter={network.resample_filter}"
      )
  dropped = {*form.filters, STEPS}
  kept = {name: array for name, array in tensors.items() if name not in dropped}
  if not form.is_song and LABELS in kept:
    table = kept[LABELS].T
    kept[LABELS] = np.concatenate([table, np.zeros_like(table[:1])])
  return by_part(kept, network.recipe.heads, "channels")


def _restored(tensors: Tensors, network: UNet, num_labels: int, form: _Form) -> Tensors:
  """Invert `_prepared`, but for iDDPMPrecond's table of noise levels."""
  del num_labels  # a null class has no row there, since its one-hot vector is zero
  made = by_part(tensors, network.recipe.heads, "channels", back=True)
  if not form.is_song and LABELS in made:
    made[LABELS] = np.ascontiguousarray(made[LABELS][:-1].T)
  return {**made, **dict.fromkeys(form.filters, _filter(network))}


def _layout_of(form: _Form) -> Layout:
  pairs, prepared = functools.partial(_pairs, form=form), functools.partial(_prepared, form=form)
  return Layout("edm", pairs, prepared, functools.partial(_restored, form=form))


class _Module(NamedTuple):
  """A pickled module's own facts.

  Attributes:
    kind: its class, "" if the file tells nothing.
    values: arguments of its constructor and its attributes.
    network: class of its network, "" if the file does not tell it.
  """

  kind: str
  values: Mapping[str, Any]
  network: str

  def number(self, name: str, default: float) -> float:
    """Return a number among the values; the default if there is none."""
    value = self.values.get(name)
    return float(value) if isinstance(value, int | float) else default


def _module(facts: Any) -> _Module:
  if not isinstance(facts, Mapping) or not isinstance(facts.get("class_name"), str):
    return _Module("", {}, "")
  values = {**_dict(facts, "init_kwargs"), **_dict(facts, "attributes")}
  return _Module(facts["class_name"], values, str(_dict(facts, "modules").get("model", "")))


def _dict(facts: Mapping[str, Any], name: str) -> Mapping[str, Any]:
  found = facts.get(name)
  return found if isinstance(found, Mapping) else {}


def _preconditioned(facts: Mapping[str, Any]) -> _Module:
  """Return the preconditioned network's facts: of the file itself, or of one of its entries."""
  found = [_module(facts), *(_module(facts.get(name)) for name in ("ema", "net"))]
  return next((module for module in found if module.kind), found[0])


def _describe(content: Content) -> Described:
  """Return the network from names and shapes, the rest from the pickle's own facts."""
  module = _preconditioned(content.facts)
  if module.kind and module.kind not in PRECONDITIONINGS:
    known = ", ".join(PRECONDITIONINGS)
    raise UserError(
      f"{content.where}: the preconditioning {module.kind} is not supported; {known} are"
    )
  if module.network and module.network not in NETWORKS:
    known = " and ".join(NETWORKS)
    raise UserError(f"{content.where}: the network {module.network} is not supported; {known} are")
  names = content.tensors.keys()
  side = _side(content)
  is_song = f"model.dec.{side}x{side}_aux_conv.weight" in names
  form = _Form(side, is_song, tuple(name for name in names if name.endswith(FILTER)))
  network = _network(content, form) | {"dropout": module.number("dropout", 0.1)}
  classes = told_shape(content, LABELS, 2)[1] if LABELS in names else 0
  spec = ImageSpec(side, side, told_shape(content, _first(side), 4)[1], 256, classes)
  sections = _recipe(module, _module(content.facts.get("loss_fn")), form)
  sections["generative"] |= {
    "conditional": bool(classes), "label_dropout": module.number("label_dropout", 0.0),
  }  # fmt: skip
  assumed = ["sampler.steps"]
  assumed += [] if module.kind else ["generative.prediction", "model.dropout"]
  if AUGMENTATION in names:
    augmented = _module(content.facts.get("augment_pipe"))
    probability = augmented.number("p", 0.12 if side == 32 else 0.15)
    sections["generative"] |= {"augmentation": probability}
    assumed += [] if augmented.kind else ["generative.augmentation"]
  sections["model"] = {**network, **sections.get("model", {})}
  return Described(sections, spec, tuple(assumed), _layout_of(form))


def _first(side: int) -> str:
  return f"model.enc.{side}x{side}_conv.weight"


def _side(content: Content) -> int:
  sides = [int(found[1]) for name in content.tensors if (found := FIRST.fullmatch(name))]
  if len(sides) != 1:
    raise UserError(f"{content.where} has no tensor model.enc.<side>x<side>_conv.weight, as EDM's")
  return sides[0]


def _network(content: Content, form: _Form) -> dict[str, Any]:
  """Return the section of the network, except for its dropout."""
  names, side = content.tensors.keys(), form.side
  if skipped := next((name for name in names if SKIPPED.fullmatch(name)), None):
    raise UserError(f"{content.where} has {skipped}: skip encoders and decoders are not supported")
  blocks = [(int(m[1]), int(m[2])) for name in names if (m := BLOCK.fullmatch(name))]
  sides = sorted({block[0] for block in blocks}, reverse=True)
  if not sides or sides != [side >> level for level in range(len(sides))]:
    raise UserError(f"{content.where} has blocks at the sides {sides}, not from {side} down")
  num_blocks = len(blocks) // len(sides)
  if set(blocks) != {(n, number) for n in sides for number in range(num_blocks)}:
    raise UserError(f"{content.where} has not the same blocks at all sides of {sides}")
  (width, in_channels, *_), lowest = told_shape(content, _first(side), 4), sides[-1]
  widths = [told_shape(content, f"model.enc.{n}x{n}_block0.conv1.weight", 4)[0] for n in sides]
  (embedded, noise), affine = (
    told_shape(content, f"model.{name}.weight", 2)
    for name in ("map_layer0", f"dec.{lowest}x{lowest}_in0.affine")
  )
  if any(w % width for w in (*widths, embedded, noise)):
    raise UserError(
      f"{content.where}: widths {widths} and embeddings of {noise} and {embedded} channels must "
      f"be multiples of the first width, {width}"
    )
  attended = tuple(n for n in sides if f"model.enc.{n}x{n}_block0.qkv.weight" in names)
  out = f"dec.{side}x{side}_aux_conv" if form.is_song else "out_conv"
  network = {
    "name": "unet", "channels": width, "multipliers": tuple(w // width for w in widths),
    "num_blocks": num_blocks, "attention_resolutions": attended,
    "adaptive_scale": affine[0] > widths[-1], "resampling": "block",
    "resample_filter": _taps(content, form), "resample_projection": form.is_song,
    "input_residual": any("_aux_residual." in name for name in names),
    "noise_multiplier": noise // width, "embedding_multiplier": embedded // width,
    "norm_groups": None,
    "learned_variance": told_shape(content, f"model.{out}.weight", 4)[0] == 2 * in_channels,
    "augmentation_labels": told_shape(content, AUGMENTATION, 2)[1] if AUGMENTATION in names else 0,
  }  # fmt: skip
  if not form.is_song:
    return network | {
      "channels_per_head": 64, "embedding": "positional_adm", "init": "adm", "norm_epsilon": 1e-5,
    }  # fmt: skip
  return network | {
    "decoder_attention": "last", "skip_scale": math.sqrt(0.5), "label_embedding": "one_hot",
    "embedding": "fourier" if FREQUENCIES in names else "positional", "init": "edm",
    "norm_epsilon": 1e-6,
  }  # fmt: skip


def _taps(content: Content, form: _Form) -> tuple[int, ...]:
  """Return the filter by its length; `_prepared` compares the values."""
  sizes = {told_shape(content, name, 4)[-1] for name in form.filters}
  return (1, 3, 3, 1) if sizes == {4} else (1, 1)


def _recipe(module: _Module, loss: _Module, form: _Form) -> dict[str, Any]:
  """Return prediction, process, loss and sampler of a preconditioning."""
  if module.kind == "VPPrecond":
    return _vp_recipe(module)
  if module.kind == "iDDPMPrecond":
    return _iddpm_recipe(module)
  data = module.number("sigma_data", 0.5)
  low, high = module.number("sigma_min", 0.0), module.number("sigma_max", math.inf)
  return {
    "generative": {"name": "diffusion", "prediction": "edm", "sigma_data": data},
    "process": {"name": "edm", "sigma_min": max(0.002, low), "sigma_max": min(80.0, high)},
    "loss": {
      "name": "edm", "log_sigma_mean": loss.number("P_mean", -1.2),
      "log_sigma_std": loss.number("P_std", 1.2), "sigma_data": data,
    },
    "sampler": _heun(form),
  }  # fmt: skip


def _heun(form: _Form) -> dict[str, Any]:
  """Return the sampler settings of EDM's README for the data set, told by side and network."""
  sampler: dict[str, Any] = {"name": "heun", "spacing": "karras", "rho": 7.0}
  if form.is_song:
    return sampler | {"steps": 18 if form.side <= 32 else 40}
  return sampler | {"steps": 256, "s_churn": 40.0, "s_min": 0.05, "s_max": 50.0, "s_noise": 1.003}


def _vp_recipe(module: _Module) -> dict[str, Any]:
  """Return the settings of VPPrecond: it predicts eps and embeds the time (M - 1) t."""
  first = module.number("beta_min", 0.1)
  return {
    "generative": {"name": "diffusion", "prediction": "eps"},
    "process": {
      "name": "vp", "beta_min": first, "beta_max": first + module.number("beta_d", 19.9),
      "min_time": module.number("epsilon_t", 1e-5),
    },
    "model": {"time_scale": (module.number("M", 1000.0) - 1) / 999},
    "loss": {"name": "simple"},
    "sampler": {"name": "heun", "spacing": "karras", "rho": 7.0, "steps": 18},
  }  # fmt: skip


def _iddpm_recipe(module: _Module) -> dict[str, Any]:
  """Return the settings of iDDPMPrecond: it predicts eps on a cosine schedule."""
  num_timesteps = round(module.number("M", 1000.0))
  return {
    "generative": {"name": "diffusion", "prediction": "eps"},
    "process": {
      "name": "cosine_vp", "num_timesteps": num_timesteps, "offset": module.number("C_2", 0.008),
      "max_beta": 1 - module.number("C_1", 0.001),
    },
    "loss": {"name": "hybrid", "weight": 1 / num_timesteps},
    "sampler": {
      "name": "ancestral", "steps": min(250, num_timesteps), "spacing": "linspace",
      "variance": "learned", "clip": True,
    },
    "vlb": {"variance": "learned", "clip": True},
  }  # fmt: skip


def _is_edm(names: Collection[str]) -> bool:
  return "model.map_layer0.weight" in names and "model.map_layer1.weight" in names


EDM_PICKLE = FileLayout(_layout_of(_Form(0, True, ())), _is_edm, _describe)
"""Layout of NVlabs' EDM; that of a file has its side, see `Described.layout`."""
