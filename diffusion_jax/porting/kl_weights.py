"""The autoencoder KL of diffusers and of CompVis' files: its config and tensors, both ways.

Both libraries store every layer of the latents and of attention as a convolution of one pixel.
"""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from diffusion_jax.models import AutoencoderKL, Gaussian
from diffusion_jax.models.layers import num_groups
from diffusion_jax.porting.diffusers_unet import with_new_names
from diffusion_jax.porting.layout import (
  Content,
  Described,
  DiffusersLayout,
  FileLayout,
  Layout,
  Sections,
)
from diffusion_jax.porting.tensors import Pair, Shape, Tensors
from diffusion_jax.runs.experiment import Experiment
from diffusion_jax.types import ImageSpec, UserError

STABLE_DIFFUSION_SCALE = 0.18215
"""scaling_factor of Stable Diffusion 1 and 2 and of DiT and SiT, diffusers' default."""

PREFIX = "first_stage_model."
"""Prefix of the autoencoder's tensors in a file of a whole latent diffusion model."""

OF_TRAINING = ("loss.", "model_ema.")
"""Prefixes of tensors that only training needs: perceptual loss, discriminator, counters."""

STD = 0.1
"""Deviation of the observation model; the original has none: it trains by L1 and LPIPS.

It is about the error of Stable Diffusion's reconstructions, 24 dB, on the axis from -1 to 1.
"""


class Names(NamedTuple):
  """The names that one library gives to the parts of encoder and decoder.

  Attributes:
    places: place in our networks -> the library's, for a level (`rising` counts the levels from the
      last one), the block i of a level, and `number`, i + 1.
    layers: layer in a block of ours -> the library's.
  """

  places: Mapping[str, str]
  layers: Mapping[str, str]


COMMON = {
  "norm1/group": "norm1", "norm2/group": "norm2", "conv1/conv": "conv1", "conv2/conv": "conv2",
}  # fmt: skip
DIFFUSERS = Names(
  {
    "encoder/block": "encoder.down_blocks.{level}.resnets.{i}",
    "encoder/half": "encoder.down_blocks.{level}.downsamplers.0.conv",
    "decoder/block": "decoder.up_blocks.{rising}.resnets.{i}",
    "decoder/double": "decoder.up_blocks.{rising}.upsamplers.0.conv",
    "middle": "{net}.mid_block.resnets.{i}", "attention": "{net}.mid_block.attentions.0",
    "norm_out": "{net}.conv_norm_out",
  },
  {
    **COMMON, "shortcut": "conv_shortcut", "norm/group": "group_norm", "query": "to_q",
    "key": "to_k", "value": "to_v", "out": "to_out.0",
  },
)  # fmt: skip
COMPVIS = Names(
  {
    "encoder/block": "encoder.down.{level}.block.{i}",
    "encoder/half": "encoder.down.{level}.downsample.conv",
    "decoder/block": "decoder.up.{level}.block.{i}",
    "decoder/double": "decoder.up.{level}.upsample.conv",
    "middle": "{net}.mid.block_{number}", "attention": "{net}.mid.attn_1",
    "norm_out": "{net}.norm_out",
  },
  {
    **COMMON, "shortcut": "nin_shortcut", "norm/group": "norm", "query": "q", "key": "k",
    "value": "v", "out": "proj_out",
  },
)  # fmt: skip
TOP = {
  "conv_in/conv": "{net}.conv_in", "conv_out/conv": "{net}.conv_out", "quant": "quant_conv",
  "post_quant": "post_quant_conv",
}  # fmt: skip
ATTENTION = ("query", "key", "value", "out")


def tensor_name(path: str, names: Names, num_levels: int) -> str:
  """Return a library's name for a parameter of ours.

  Args:
    path: path of the parameter, such as encoder/level0_block1/conv1/conv/bias.
    names: names of the library.
    num_levels: number of levels of the network.
  """
  layer, _, leaf = path.rpartition("/")
  leaf = "bias" if leaf == "bias" else "weight"
  net, _, layer = layer.partition("/")
  place, _, inner = layer.partition("/")
  if layer in TOP:
    stem = TOP[layer]
  elif place == "norm_out":
    stem = names.places["norm_out"]
  elif place == "middle_attention":
    stem = f"{names.places['attention']}.{names.layers[inner]}"
  elif place.startswith("middle_block"):
    stem = f"{names.places['middle']}.{names.layers[inner]}"
  elif place.endswith(("_half", "_double")):
    stem = names.places[f"{net}/{place.partition('_')[2]}"]
  else:
    stem = f"{names.places[f'{net}/block']}.{names.layers[inner]}"
  level, i = _numbers(place)
  filled = stem.format(net=net, level=level, rising=num_levels - 1 - level, i=i, number=i + 1)
  return f"{filled}.{leaf}"


def _numbers(place: str) -> tuple[int, int]:
  """Return the level and the number of the block in a name such as level2_block1, else 0."""
  level, _, block = place.partition("_")
  found = [part.lstrip("abcdefghijklmnopqrstuvwxyz") or "0" for part in (level, block)]
  return int(found[0]), int(found[1])


def _pairs(names: Names, network: AutoencoderKL, shapes: Mapping[str, Shape]) -> list[Pair]:
  levels = len(network.multipliers)
  attention_too = names is COMPVIS
  return [
    Pair((path,), (tensor_name(path, names, levels),), _shape(path, shape, attention_too))
    for path, shape in shapes.items()
  ]


def _shape(path: str, shape: Shape, attention_too: bool) -> Shape | None:
  """Return the shape of a dense layer that is stored as a convolution of one pixel, or None."""
  *_, layer, leaf = path.split("/")
  is_pixel = layer not in ATTENTION or attention_too
  return (shape[1], shape[0], 1, 1) if leaf == "kernel" and len(shape) == 2 and is_pixel else None


def diffusers_pairs(network: AutoencoderKL, shapes: Mapping[str, Shape]) -> list[Pair]:
  """Return the table of parameters and the tensors of diffusers' AutoencoderKL."""
  return _pairs(DIFFUSERS, network, shapes)


def compvis_pairs(network: AutoencoderKL, shapes: Mapping[str, Shape]) -> list[Pair]:
  """Return the table of parameters and the tensors of CompVis' AutoencoderKL."""
  return _pairs(COMPVIS, network, shapes)


def _with_new_names(tensors: Tensors, network: AutoencoderKL, spec: ImageSpec) -> Tensors:
  return with_new_names(tensors)


def of_autoencoder(tensors: Tensors) -> Tensors:
  """Return the autoencoder's tensors, without those of training and other networks."""
  found = {name: value for name, value in tensors.items() if name.startswith(PREFIX)} or tensors
  stripped = {name.removeprefix(PREFIX): value for name, value in found.items()}
  return {name: value for name, value in stripped.items() if not name.startswith(OF_TRAINING)}


def _of_autoencoder(tensors: Tensors, network: AutoencoderKL, spec: ImageSpec) -> Tensors:
  return of_autoencoder(tensors)


def sections_of(model: Mapping[str, Any]) -> Sections:
  """Return the sections of a VAE's run for the fields of its network."""
  return {
    "generative": {"name": "vae"},
    "model": {"name": "autoencoder_kl", **model},
    "decoder": {"name": "gaussian", "std": STD},
    "loss": {"name": "elbo", "beta": 1e-6},
  }


FIXED: Mapping[str, tuple[Any, ...]] = {
  "act_fn": ("silu", "swish"), "shift_factor": (None, 0, 0.0), "latents_mean": (None,),
  "latents_std": (None,),
}  # fmt: skip
"""Fields of diffusers' AutoencoderKL -> values that our network has, the default first."""


def autoencoder_from_diffusers(stored: Mapping[str, Any], where: str) -> tuple[Sections, ImageSpec]:
  """Return the sections and the shape of the images for a stored config of an AutoencoderKL.

  Raises:
    UserError: a field has a value that our network does not have, or one is missing.
  """
  for field, allowed in FIXED.items():
    if (value := stored.get(field, allowed[0])) not in allowed:
      raise UserError(f"{where}: {field}={value!r} is not supported; needed {allowed[0]!r}")
  if "block_out_channels" not in stored:
    raise UserError(f"{where} has no field block_out_channels")
  widths = list(stored["block_out_channels"])
  for field, block in (
    ("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")
  ):  # fmt: skip
    if (found := stored.get(field, [block])) != [block] * len(widths):
      raise UserError(f"{where}: {field}={found} must be {block} for each of block_out_channels")
  channels, out = stored.get("in_channels", 3), stored.get("out_channels", 3)
  quant, post_quant = (stored.get(name, True) for name in ("use_quant_conv", "use_post_quant_conv"))
  for names, values in (
    ("out_channels and in_channels", (out, channels)),
    ("use_quant_conv and use_post_quant_conv", (quant, post_quant)),
  ):
    if values[0] != values[1]:
      raise UserError(f"{where}: {names} must be equal, not {values[0]} and {values[1]}")
  side = stored.get("sample_size", 32)
  height, width = (side, side) if isinstance(side, int) else tuple(side)
  model = {
    "latent_channels": stored.get("latent_channels", 4), **_widths(widths, where),
    "num_blocks": stored.get("layers_per_block", 1),
    "middle_attention": stored.get("mid_block_add_attention", True), "quant_conv": quant,
    "latent_scale": stored.get("scaling_factor", STABLE_DIFFUSION_SCALE),
    "norm_groups": stored.get("norm_num_groups", 32),
  }  # fmt: skip
  return sections_of(model), ImageSpec(height, width, channels, 256, 0)


def _widths(widths: list[int], where: str) -> dict[str, Any]:
  first = widths[0]
  if any(width % first for width in widths):
    raise UserError(f"{where}: the widths of its levels, {widths}, must be multiples of the first")
  return {"channels": first, "multipliers": tuple(width // first for width in widths)}


def autoencoder_for_diffusers(
  experiment: Experiment, spec: ImageSpec, num_labels: int
) -> dict[str, Any]:
  """Return the config of the AutoencoderKL that computes the same.

  Raises:
    UserError: diffusers has no such autoencoder; the message names the field.
  """
  network, decoder = experiment.sections["model"], experiment.sections["decoder"]
  if not isinstance(decoder, Gaussian) or decoder.std is None:
    name = experiment.to_dict()["decoder"]["name"]
    field = "std=None" if isinstance(decoder, Gaussian) else f"name={name}"
    raise UserError(
      f"`decoder.{field}`: diffusers' AutoencoderKL gives the image's mean only, as "
      "`decoder.name=gaussian` with a fixed `decoder.std` does"
    )
  widths = [network.channels * multiplier for multiplier in network.multipliers]
  groups = {num_groups(width, network.norm_groups) for width in widths}
  if len(groups) > 1:
    raise UserError(
      "`model.norm_groups=None`: diffusers' AutoencoderKL has one number of groups at all widths; "
      "train with e.g. `model.norm_groups=32`"
    )
  scale = network.latent_scale
  return {
    "_class_name": "AutoencoderKL",
    "sample_size": spec.height if spec.height == spec.width else [spec.height, spec.width],
    "in_channels": spec.channels,
    "out_channels": spec.channels,
    "latent_channels": network.latent_channels,
    "block_out_channels": widths,
    "layers_per_block": network.num_blocks,
    "down_block_types": ["DownEncoderBlock2D"] * len(widths),
    "up_block_types": ["UpDecoderBlock2D"] * len(widths),
    "mid_block_add_attention": network.middle_attention,
    "use_quant_conv": network.quant_conv,
    "use_post_quant_conv": network.quant_conv,
    "norm_num_groups": groups.pop(),
    "scaling_factor": STABLE_DIFFUSION_SCALE if scale is None else scale,
  }


def _describe(content: Content, tensors: Tensors, names: Names) -> Described:
  """Return the network and the shape of its images, read from the shapes of tensors."""
  shape = lambda name: _shape_of(tensors, name, content.where)  # noqa: E731
  block = lambda level, i: names.places["encoder/block"].format(level=level, i=i)  # noqa: E731
  has = lambda stem: f"{stem}.conv1.weight" in tensors  # noqa: E731
  levels = next(n for n in range(len(tensors) + 1) if not has(block(n, 0)))
  num_blocks = next(n for n in range(len(tensors) + 1) if not has(block(0, n)))
  widths = [shape(f"{block(level, 0)}.conv1.weight")[0] for level in range(levels)]
  channels = shape("encoder.conv_in.weight")[1]
  if (out := shape("decoder.conv_out.weight")[0]) != channels:
    raise UserError(f"{content.where}: an autoencoder from {channels} to {out} channels")
  attention = names.places["attention"].format(net="encoder")
  latent_channels = shape("decoder.conv_in.weight")[1]
  is_f8 = (latent_channels, levels) == (4, 4)
  scale, told = _scale(content.tensors)
  model = {
    "latent_channels": latent_channels, **_widths(widths, content.where), "num_blocks": num_blocks,
    "middle_attention": any(name.startswith(attention) for name in tensors),
    "quant_conv": "quant_conv.weight" in tensors, "norm_groups": 32,
    "latent_scale": STABLE_DIFFUSION_SCALE if is_f8 and not told else scale,
  }  # fmt: skip
  side = _side(content)
  assumed = ("model.norm_groups", *([] if told else ["model.latent_scale"]), "decoder.std")
  return Described(sections_of(model), ImageSpec(side, side, channels, 256, 0), assumed)


def _scale(tensors: Tensors) -> tuple[float | None, bool]:
  """Return the factor of a whole latent model, which stores it if it was measured."""
  if "scale_factor" in tensors:
    return float(tensors["scale_factor"]), True
  return None, False


def _shape_of(tensors: Tensors, name: str, where: str) -> Shape:
  if name not in tensors:
    raise UserError(f"{where} has no tensor {name}, which this architecture needs")
  return tensors[name].shape


def _side(content: Content) -> int:
  if content.image_size is None:
    raise UserError(f"{content.where} does not tell the side of the images; add --image_size=256")
  return content.image_size


def _describe_diffusers(content: Content) -> Described:
  return _describe(content, content.tensors, DIFFUSERS)


def _describe_compvis(content: Content) -> Described:
  return _describe(content, of_autoencoder(content.tensors), COMPVIS)


def _is_diffusers(names: Collection[str]) -> bool:
  return {"encoder.down_blocks.0.resnets.0.conv1.weight", "decoder.conv_in.weight"} <= set(names)


def _is_compvis(names: Collection[str]) -> bool:
  stem = "encoder.down.0.block.0.conv1.weight"
  return stem in names or PREFIX + stem in names


_LAYOUT = Layout("AutoencoderKL", diffusers_pairs, _with_new_names)
AUTOENCODER_KL = DiffusersLayout(
  _LAYOUT,
  autoencoder_from_diffusers,
  autoencoder_for_diffusers,
  assumed=("decoder.std",),
  any_side=True,
)
"""Folders of diffusers."""

AUTOENCODER_KL_FILE = FileLayout(_LAYOUT, _is_diffusers, _describe_diffusers)
"""A file of diffusers without its folder's config."""

LATENT_DIFFUSION_KL = FileLayout(
  Layout("latent-diffusion AutoencoderKL", compvis_pairs, _of_autoencoder),
  _is_compvis,
  _describe_compvis,
)
"""Files of CompVis: an autoencoder, or a whole latent diffusion model that contains one."""
