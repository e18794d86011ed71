"""The autoencoder KL's tensors in both libraries, there and back; without PyTorch."""

import jax
import numpy as np
import pytest
from numpy_draws import normal

from diffusion_jax.core.trees import named_leaves
from diffusion_jax.models import AutoencoderKL
from diffusion_jax.porting import kl_weights as kl
from diffusion_jax.porting.diffusers_export import describe_pipeline
from diffusion_jax.porting.diffusers_unet import OLD_NAMES
from diffusion_jax.porting.layout import Content
from diffusion_jax.porting.tensors import to_ours, to_theirs
from diffusion_jax.runs.experiment import build_experiment
from diffusion_jax.types import ImageSpec, UserError

SPEC = ImageSpec(16, 16, 3, 256, 0)
NETWORK = AutoencoderKL(channels=32, multipliers=(1, 2), num_blocks=1)
SHAPES = {
  name: leaf.shape
  for name, leaf in named_leaves(
    jax.eval_shape(NETWORK.create(SPEC, 3).init, jax.random.key(0))
  ).items()
}
LAYOUTS = {"diffusers": kl.AUTOENCODER_KL.layout, "compvis": kl.LATENT_DIFFUSION_KL.layout}
FILES = {"diffusers": kl.AUTOENCODER_KL_FILE, "compvis": kl.LATENT_DIFFUSION_KL}


@pytest.fixture(scope="module")
def params():
  return {name: normal(i, *shape) for i, (name, shape) in enumerate(SHAPES.items())}


@pytest.fixture(scope="module")
def stored(params):
  return {name: to_theirs(each.pairs(NETWORK, SHAPES), params) for name, each in LAYOUTS.items()}


def back(name, tensors):
  layout = LAYOUTS[name]
  prepared = layout.prepared(tensors, NETWORK, SPEC)
  return to_ours(layout.pairs(NETWORK, SHAPES), prepared, SHAPES, "file")


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_parameter_has_a_tensor_of_its_own_and_comes_back_bit_by_bit(name, params, stored):
  assert len(stored[name]) == len(params)
  found = back(name, stored[name])
  assert found.keys() == params.keys()
  assert all(found[path].tobytes() == value.tobytes() for path, value in params.items())


@pytest.mark.parametrize(
  ("layout", "shapes"),
  [
    (
      "diffusers",
      {
        "encoder.down_blocks.1.resnets.0.conv_shortcut.weight": (64, 32, 1, 1),
        "encoder.down_blocks.0.downsamplers.0.conv.weight": (32, 32, 3, 3),
        "encoder.mid_block.attentions.0.to_q.weight": (64, 64),
        "encoder.conv_norm_out.weight": (64,),
        "decoder.up_blocks.0.resnets.1.conv2.weight": (64, 64, 3, 3),
        "decoder.up_blocks.0.upsamplers.0.conv.bias": (64,),
        "decoder.up_blocks.1.resnets.0.conv_shortcut.weight": (32, 64, 1, 1),
        "quant_conv.weight": (8, 8, 1, 1),
        "post_quant_conv.weight": (4, 4, 1, 1),
      },
    ),
    (
      "compvis",
      {
        "encoder.down.1.block.0.nin_shortcut.weight": (64, 32, 1, 1),
        "encoder.down.0.downsample.conv.weight": (32, 32, 3, 3),
        "encoder.mid.attn_1.q.weight": (64, 64, 1, 1),
        "encoder.mid.block_2.norm1.weight": (64,),
        "encoder.norm_out.weight": (64,),
        "decoder.up.1.block.1.conv2.weight": (64, 64, 3, 3),
        "decoder.up.1.upsample.conv.bias": (64,),
        "decoder.up.0.block.0.nin_shortcut.weight": (32, 64, 1, 1),
        "quant_conv.weight": (8, 8, 1, 1),
      },
    ),
  ],
)
def test_names_and_shapes_are_those_of_the_library(layout, shapes, stored):
  assert {name: stored[layout][name].shape for name in shapes} == shapes


def test_names_of_before_2023_are_read(params, stored):
  old = {f".{new}.": f".{name}." for name, new in OLD_NAMES.items()}

  def renamed(name):
    found = [new for new in old if new in name and "attentions" in name]
    return name.replace(found[0], old[found[0]]) if found else name

  tensors = {renamed(name): value for name, value in stored["diffusers"].items()}
  query = "decoder.mid_block.attentions.0.query.weight"
  tensors[query] = tensors[query][:, :, None, None]
  found = back("diffusers", tensors)
  assert all((found[name] == value).all() for name, value in params.items())


def test_a_file_of_a_whole_latent_model_and_one_of_training(params, stored):
  zeros = np.zeros(3, np.float32)
  inside = {kl.PREFIX + name: value for name, value in stored["compvis"].items()}
  whole = {**inside, "model.diffusion_model.out.weight": zeros, "scale_factor": np.float32(0.75)}
  trained = {**stored["compvis"], "loss.logvar": zeros, "model_ema.decay": zeros}
  for tensors, scale in ((whole, 0.75), (trained, None)):
    assert kl.LATENT_DIFFUSION_KL.recognises(tensors.keys())
    found = back("compvis", tensors)
    assert all((found[name] == value).all() for name, value in params.items())
    described = kl.LATENT_DIFFUSION_KL.describe(Content(tensors, {}, 16, "file"))
    assert described.sections["model"]["latent_scale"] == scale
    assert ("model.latent_scale" in described.assumed) == (scale is None)


@pytest.mark.parametrize("name", FILES)
def test_a_file_tells_its_network_but_not_the_images_side(name, stored):
  entry, tensors = FILES[name], stored[name]
  assert [each.recognises(tensors.keys()) for each in FILES.values()] == [
    each is entry for each in FILES.values()
  ]
  described = entry.describe(Content(tensors, {}, 16, "file"))
  model = dict(described.sections["model"])
  assert model.pop("name") == "autoencoder_kl"
  assert AutoencoderKL(**model) == NETWORK
  assert described.spec == SPEC
  assert set(described.assumed) == {"model.norm_groups", "model.latent_scale", "decoder.std"}
  with pytest.raises(UserError, match=r"^file does not tell the side of the images; add --image"):
    entry.describe(Content(tensors, {}, None, "file"))
  lacking = {key: value for key, value in tensors.items() if key != "decoder.conv_in.weight"}
  with pytest.raises(UserError, match=r"^file has no tensor decoder\.conv_in\.weight"):
    entry.describe(Content(lacking, {}, 16, "file"))


@pytest.mark.parametrize(("latents", "scale"), [(4, kl.STABLE_DIFFUSION_SCALE), (3, None)])
def test_the_scale_of_stable_diffusion_is_assumed_for_its_shape_only(latents, scale):
  widths = {level: 128 * multiplier for level, multiplier in enumerate((1, 2, 4, 4))}
  shapes = {
    "encoder.conv_in.weight": (128, 3), "decoder.conv_in.weight": (512, latents),
    "decoder.conv_out.weight": (3, 128),
  } | {f"encoder.down.{level}.block.{i}.conv1.weight": (width, 1)
       for level, width in widths.items() for i in range(2)}  # fmt: skip
  tensors = {name: np.zeros((*shape, 3, 3), np.float32) for name, shape in shapes.items()}
  model = kl.LATENT_DIFFUSION_KL.describe(Content(tensors, {}, 32, "file")).sections["model"]
  assert model["latent_scale"] == scale
  assert (model["channels"], model["multipliers"], model["num_blocks"]) == (128, (1, 2, 4, 4), 2)


@pytest.mark.parametrize(
  ("change", "said"),
  [
    ({"encoder.conv_in.bias": None}, r"has no tensor encoder\.conv_in\.bias"),
    ({"quantize.embedding.weight": np.zeros((2, 4))}, "a place in this architecture: quantize"),
    ({"quant_conv.bias": np.zeros(4, np.float32)}, r"quant_conv\.bias has the shape \[4\]"),
  ],
)
def test_another_architectures_tensors_are_refused(change, said, stored):
  tensors = {k: v for k, v in {**stored["compvis"], **change}.items() if v is not None}
  with pytest.raises(UserError, match=f"^file.*{said}"):
    back("compvis", tensors)


def experiment(**changes):
  sections = kl.sections_of({
    "channels": 32, "multipliers": (1, 2), "num_blocks": 1, "latent_scale": 0.5,
    "middle_attention": False, "quant_conv": False,
  })  # fmt: skip
  sections = {**sections, "data": {"name": "unknown"}, "optimizer": {"name": "adam"}}
  return build_experiment({n: {**s, **changes.get(n, {})} for n, s in sections.items()}, [])


def test_a_config_comes_back():
  given = experiment()
  config, scheduler = describe_pipeline(given, SPEC)
  assert scheduler is None
  assert config["scaling_factor"] == 0.5
  sections, spec = kl.autoencoder_from_diffusers(config, "config.json")
  assert spec == SPEC
  model = {name: value for name, value in sections["model"].items() if name != "name"}
  assert AutoencoderKL(**model) == given.sections["model"]


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    ({"decoder": {"std": None}}, "`decoder.std=None`: diffusers' AutoencoderKL"),
    ({"decoder": {"name": "bernoulli", "std": None}}, "`decoder.name=bernoulli`: diffusers'"),
    ({"model": {"norm_groups": None}}, "`model.norm_groups=None`: diffusers' AutoencoderKL"),
  ],
)
def test_what_diffusers_cannot_represent_is_named(changes, said):
  if "name" in changes.get("decoder", {}):
    sections = {**experiment().to_dict(), "decoder": {"name": "bernoulli"}}
    made = build_experiment(sections, [])
  else:
    made = experiment(**changes)
  with pytest.raises(UserError, match=said):
    describe_pipeline(made, SPEC)


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("shift_factor", 0.0609), ("act_fn", "gelu"), ("latents_mean", [0.1]), ("out_channels", 6),
    ("down_block_types", ["AttnDownEncoderBlock2D"] * 2), ("use_post_quant_conv", True),
    ("block_out_channels", [32, 48]),
  ],
)  # fmt: skip
def test_a_network_that_we_do_not_have_is_refused_by_its_field(field, value):
  config, _ = describe_pipeline(experiment(), SPEC)
  said = "widths" if field == "block_out_channels" else field
  with pytest.raises(UserError, match=rf"^config\.json: .*{said}"):
    kl.autoencoder_from_diffusers({**config, field: value}, "config.json")
  del config["block_out_channels"]
  with pytest.raises(UserError, match="has no field block_out_channels"):
    kl.autoencoder_from_diffusers(config, "config.json")
