"""openai's U-Nets: names, order of rows, what the tensors tell; without PyTorch."""

import functools

import jax
import numpy as np
import pytest
from numpy_draws import normal

from diffusion_jax.core.trees import named_leaves
from diffusion_jax.models import UNet
from diffusion_jax.porting import openai_unet
from diffusion_jax.porting.fused_unet import by_part, rows_by_part, unet_place
from diffusion_jax.porting.imported import assumptions, experiment_of
from diffusion_jax.porting.layout import Content, Source
from diffusion_jax.porting.opening import FILE_LAYOUTS, open_source
from diffusion_jax.porting.tensors import to_ours, to_theirs
from diffusion_jax.types import ImageSpec, UserError
from diffusion_jax.weight_files.safetensors_file import write_safetensors

RECIPE = {
  "channels": 32, "num_blocks": 1, "adaptive_scale": True, "embedding": "positional_adm",
  "init": "adm", "norm_epsilon": 1e-5, "norm_groups": 32, "downsample_padding": (1, 1),
  "learned_variance": True,
}  # fmt: skip
IMPROVED = UNet(**RECIPE, multipliers=(1, 2), attention_resolutions=(4,), num_heads=4, dropout=0.0)
GUIDED = UNet(
  **RECIPE, multipliers=(1, 2), attention_resolutions=(4,), channels_per_head=64,
  resampling="block", dropout=0.0,
)  # fmt: skip
SPEC = ImageSpec(8, 8, 3, 256, 5)
LAYOUTS = {entry.layout.name: entry for entry in openai_unet.OPENAI_UNETS}


@functools.cache
def shapes_of(network):
  made = jax.eval_shape(network.create(SPEC, 6).init, jax.random.key(0))
  return {name: leaf.shape for name, leaf in named_leaves(made).items()}


def drawn(network):
  return {name: normal(i, *shape) for i, (name, shape) in enumerate(shapes_of(network).items())}


def stored(network, name="improved-diffusion", params=None):
  """The tensors of a file, with as many classes as the data has."""
  shapes, layout = shapes_of(network), LAYOUTS[name].layout
  params = params or {path: np.zeros(shape, np.float32) for path, shape in shapes.items()}
  theirs = to_theirs(layout.pairs(network, shapes), params)
  return dict(layout.restored(theirs, network, SPEC.num_classes))


def described(tensors, name="improved-diffusion", image_size: int | None = 8):
  return LAYOUTS[name].describe(Content(tensors, {}, image_size, "file"))


@pytest.mark.parametrize(
  ("network", "name"),
  [
    (IMPROVED, "improved-diffusion"), (GUIDED, "guided-diffusion"),
    (GUIDED, "guided-diffusion-new-order"),
  ],
)  # fmt: skip
def test_every_parameter_has_a_place_and_comes_back_bit_by_bit(network, name):
  params, layout = drawn(network), LAYOUTS[name].layout
  params["label/embedding"][-1] = 0
  tensors = stored(network, name, params)
  ordered = layout.prepared(tensors, network, SPEC)
  shapes = shapes_of(network)
  back = to_ours(layout.pairs(network, shapes), ordered, shapes, "file")
  assert back.keys() == params.keys()
  for path, value in params.items():
    assert back[path].tobytes() == value.tobytes(), path


def test_names_and_shapes_are_those_of_openai():
  improved, guided = stored(IMPROVED), stored(GUIDED, "guided-diffusion")
  shapes = {name: array.shape for name, array in improved.items()}
  assert shapes["input_blocks.2.0.op.weight"] == (32, 32, 3, 3)
  assert shapes["input_blocks.3.1.qkv.weight"] == (192, 64, 1)
  assert shapes["input_blocks.3.0.emb_layers.1.weight"] == (128, 128)
  assert shapes["middle_block.1.proj_out.weight"] == (64, 64, 1)
  assert shapes["middle_block.2.out_layers.3.weight"] == (64, 64, 3, 3)
  assert shapes["output_blocks.1.0.skip_connection.weight"] == (64, 96, 1, 1)
  assert shapes["output_blocks.1.2.conv.weight"] == (64, 64, 3, 3)
  assert shapes["label_emb.weight"] == (5, 128)
  assert shapes["out.2.weight"] == (6, 32, 3, 3)
  assert guided["input_blocks.2.0.in_layers.2.weight"].shape == (32, 32, 3, 3)
  assert guided["output_blocks.1.2.out_layers.0.bias"].shape == (64,)


def test_rows_of_four_heads_are_in_turn():
  params = drawn(IMPROVED)
  rows = stored(IMPROVED, params=params)["middle_block.1.qkv.weight"][:, :, 0]
  for i, part in enumerate(("query", "key", "value")):
    kernel = params[f"middle_attention/{part}/kernel"].T
    for head in range(4):
      start = 48 * head + 16 * i
      np.testing.assert_array_equal(rows[start : start + 16], kernel[16 * head : 16 * head + 16])


def test_orders_of_rows():
  assert list(rows_by_part(4, 2, "parts")) == list(range(12))
  assert list(rows_by_part(4, 2, "heads")) == [0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11]
  assert list(rows_by_part(4, 2, "channels")) == [0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11]
  odd = {"a.qkv.weight": np.arange(13), "a.qkv.bias": np.arange(12), "qkv_no": np.arange(12)}
  found = by_part(odd, lambda width: 2, "heads")
  np.testing.assert_array_equal(found["a.qkv.weight"], odd["a.qkv.weight"])
  np.testing.assert_array_equal(found["qkv_no"], odd["qkv_no"])
  assert found["a.qkv.bias"][2] == 6


def test_places_of_layers():
  assert unet_place("down1_block2_attention/qkv")[:6] == ("down", 1, "block", 2, True, "qkv")
  assert unet_place("middle_block1/conv1/conv")[:4] == ("middle", 0, "block", 1)
  assert unet_place("middle_attention/out").has_attention
  assert unet_place("up12_double/conv3/conv")[:3] == ("up", 12, "double")
  assert unet_place("time1").way == ""


@pytest.mark.parametrize(
  ("network", "name"), [(IMPROVED, "improved-diffusion"), (GUIDED, "guided-diffusion")]
)
def test_the_tensors_tell_the_network(network, name):
  found = described(stored(network, name), name)
  assert found.spec == SPEC
  section = {key: value for key, value in found.sections["model"].items() if key != "name"}
  assert UNet(**section) == network
  assert found.sections["generative"]["conditional"]
  head = "channels_per_head" if name == "guided-diffusion" else "num_heads"
  assert f"model.{head}" in found.assumed
  assert ("architecture" in found.assumed) == (name == "guided-diffusion")


def test_the_original_side_is_assumed_and_an_unknown_one_asked_for():
  tensors = stored(IMPROVED)
  with pytest.raises(UserError, match=r"side of the images; add e\.g\. --image_size=64"):
    described(tensors, image_size=None)
  assert openai_unet.SIDES[1, 2, 2, 2] == 32


def test_the_published_order_of_adm_64_is_recognised_by_its_names():
  up = {f"output_blocks.{n}.2.in_layers.2.weight" for n in (3, 7, 11)}
  common = {openai_unet.FIRST, openai_unet.LAST, "time_embed.0.weight"}
  first = lambda names: next(e.layout.name for e in FILE_LAYOUTS if e.recognises(names))  # noqa: E731
  assert first(up | common | {openai_unet.LABELS}) == "guided-diffusion-new-order"
  assert first(up | common) == "guided-diffusion"
  assert first(common) == "improved-diffusion"


@pytest.mark.parametrize(
  ("change", "said"),
  [
    (lambda t: t.pop("time_embed.0.weight"), "file has no tensor time_embed.0.weight"),
    (
      lambda t: [t.pop(name) for name in list(t) if name.startswith("output_blocks.3.")],
      "4 input and 3 output blocks with 1 doublings",
    ),
    (
      lambda t: t.update({"input_blocks.0.0.weight": np.zeros((32, 6, 3, 3))}),
      "takes 6 channels and gives 6: .* upsamplers",
    ),
    (
      lambda t: t.update({"out.2.weight": np.zeros((1000, 32, 3, 3))}),
      "takes 3 channels and gives 1000",
    ),
    (
      lambda t: t.update({"input_blocks.999999999.op.weight": np.zeros(1)}),
      "5 input and 4 output blocks",
    ),
    (
      lambda t: t.update({"out.2.weight": np.zeros((6, 0))}),
      r"out\.2\.weight has the shape \[6, 0\], this architecture needs 4 axes",
    ),
    (
      lambda t: t.update({"input_blocks.0.0.weight": np.zeros((48, 3, 3, 3))}),
      r"widths \[32, 64\] must be multiples of the first, 48",
    ),
    (
      lambda t: t.update({"time_embed.0.weight": np.zeros((128, 40))}),
      "an embedding of 40 channels, 32 in others",
    ),
  ],
)
def test_another_network_is_refused(change, said):
  tensors = stored(IMPROVED)
  change(tensors)
  with pytest.raises(UserError, match=said):
    described(tensors)


def test_a_file_is_opened_by_its_names_and_by_the_name_that_is_given(tmp_path):
  path = tmp_path / "model.safetensors"
  write_safetensors(path, stored(IMPROVED), {})
  source = open_source(path, image_size=8)
  assert source.layout.name == "improved-diffusion"
  assert source.origin["architecture"] == "improved-diffusion"
  assert open_source(path, image_size=8, architecture="guided-diffusion").layout.name == (
    "guided-diffusion"
  )
  with pytest.raises(UserError, match=r"--architecture=adm: must be one of .*guided"):
    open_source(path, architecture="adm")


def test_what_the_file_does_not_tell_is_said():
  found = described(stored(GUIDED, "guided-diffusion"), "guided-diffusion")
  found = found._replace(assumed=(*found.assumed, "image_size"))
  source = Source(LAYOUTS["guided-diffusion"].layout, found, {}, {}, "file")
  lines = assumptions(source, experiment_of(source, {}, []))
  assert "`model.channels_per_head=64`, which the file does not tell" in lines
  assert lines[-2:] == [
    "architecture=guided-diffusion, which the file does not tell",
    "image_size=8, which the file does not tell",
  ]
