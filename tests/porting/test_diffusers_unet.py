"""diffusers' U-Net: its tensors and ours, there and back, and what is refused; without PyTorch."""

import dataclasses

import jax
import numpy as np
import pytest
from numpy_draws import normal

from diffusion_jax.core.trees import named_leaves, nested
from diffusion_jax.models import UNet
from diffusion_jax.porting import diffusers_unet
from diffusion_jax.porting.diffusers_scheduler import read_scheduler, write_scheduler
from diffusion_jax.porting.tensors import Pair, to_ours, to_theirs
from diffusion_jax.types import ImageSpec, UserError

SPEC = ImageSpec(8, 8, 3, 256, 4)
NETWORK = UNet(
  channels=16, multipliers=(1, 2), num_blocks=1, attention_resolutions=(4,), norm_groups=8
)
SHAPES = {
  name: leaf.shape
  for name, leaf in named_leaves(
    jax.eval_shape(NETWORK.create(SPEC, 5).init, jax.random.key(0))
  ).items()
}
PAIRS = diffusers_unet.pairs(NETWORK, SHAPES)


@pytest.fixture(scope="module")
def params():
  return {name: normal(i, *shape) for i, (name, shape) in enumerate(SHAPES.items())}


@pytest.fixture(scope="module")
def tensors(params):
  return to_theirs(PAIRS, params)


def test_every_parameter_has_a_tensor_of_its_own_and_comes_back_bit_by_bit(params, tensors):
  assert len(tensors) == len(params)
  back = to_ours(PAIRS, tensors, SHAPES, "file")
  assert back.keys() == params.keys()
  for name, value in params.items():
    assert back[name].tobytes() == value.tobytes(), name


def test_names_and_shapes_are_those_of_diffusers(params, tensors):
  assert tensors["conv_in.weight"].shape == (16, 3, 3, 3)
  assert tensors["time_embedding.linear_1.weight"].shape == (64, 16)
  assert tensors["class_embedding.weight"].shape == (5, 64)
  assert tensors["down_blocks.1.attentions.0.to_q.weight"].shape == (32, 32)
  assert tensors["up_blocks.0.resnets.1.conv_shortcut.weight"].shape == (32, 48, 1, 1)
  assert tensors["mid_block.attentions.0.to_out.0.bias"].shape == (32,)
  kernel = params["conv_in/conv/kernel"]
  np.testing.assert_array_equal(tensors["conv_in.weight"][5, 2], kernel[:, :, 2, 5])


def test_names_of_before_2023_and_one_pixel_convolutions_are_read(params, tensors):
  old = {new: name for name, new in diffusers_unet.OLD_NAMES.items()}

  def renamed(name):
    for new, before in old.items():
      if f"attentions.0.{new}." in name:
        return name.replace(f".{new}.", f".{before}.")
    return name

  stored = {renamed(name): value for name, value in tensors.items()}
  query = "down_blocks.1.attentions.0.query.weight"
  stored[query] = stored[query][:, :, None, None]
  back = to_ours(
    PAIRS, diffusers_unet.prepared(stored, NETWORK, SPEC._replace(num_classes=0)), SHAPES, "file"
  )
  assert all((back[name] == value).all() for name, value in params.items())


@pytest.mark.parametrize(
  ("change", "said"),
  [
    (lambda t: t.pop("conv_in.bias"), "file has no tensor conv_in.bias"),
    (lambda t: t.update(extra=np.zeros(2)), "without a place in this architecture: extra"),
    (
      lambda t: t.update({"conv_in.bias": np.zeros(17, np.float32)}),
      r"conv_in.bias has the shape \[17\], this architecture needs \[16\]",
    ),
    (
      lambda t: t.update({"conv_in.bias": np.zeros(16, np.int32)}),
      "conv_in.bias holds int32, not floats",
    ),
  ],
)
def test_another_architectures_tensors_are_refused(tensors, change, said):
  changed = dict(tensors)
  change(changed)
  with pytest.raises(UserError, match=said):
    to_ours(PAIRS, changed, SHAPES, "file")


def test_copies_must_be_equal_and_fused_tensors_are_split():
  pairs = [Pair(("q/kernel", "k/kernel"), ("qkv",)), Pair(("t/bias",), ("a.t", "b.t"))]
  ours = {"q/kernel": normal(0, 3, 2), "k/kernel": normal(1, 3, 2), "t/bias": normal(2, 5)}
  shapes = {name: value.shape for name, value in ours.items()}
  theirs = to_theirs(pairs, ours)
  assert theirs["qkv"].shape == (4, 3)
  np.testing.assert_array_equal(theirs["qkv"][2:], ours["k/kernel"].T)
  back = to_ours(pairs, theirs, shapes, "file")
  assert all((back[name] == value).all() for name, value in ours.items())
  with pytest.raises(UserError, match=r"file: b\.t is not equal to a\.t"):
    to_ours(pairs, {**theirs, "b.t": theirs["b.t"] + 1}, shapes, "file")
  assert nested({"a/b": 1, "a/c": 2, "d": 3}) == {"a": {"b": 1, "c": 2}, "d": 3}


@pytest.mark.parametrize(
  "changes",
  [
    {},
    {"embedding": "positional_adm", "adaptive_scale": True, "downsample_padding": (1, 1)},
    {"learned_variance": True, "channels_per_head": 8, "norm_epsilon": 1e-5, "dropout": 0.3},
    {"attention_resolutions": (8, 4), "num_blocks": 2},
  ],
)
def test_a_config_comes_back(changes):
  network = dataclasses.replace(NETWORK, **changes)
  stored = diffusers_unet.unet_for_diffusers(network, SPEC, 0)
  found, spec = diffusers_unet.unet_from_diffusers(stored, "config.json")
  assert spec == SPEC._replace(num_classes=0)
  assert diffusers_unet.unet_for_diffusers(found, spec, 0) == stored


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("act_fn", "gelu"), ("time_embedding_type", "fourier"), ("freq_shift", 1.5),
    ("down_block_types", ["DownBlock2D", "SkipDownBlock2D"]), ("downsample_padding", 2),
    ("up_block_types", ["UpBlock2D", "AttnUpBlock2D"]), ("out_channels", 5),
    ("block_out_channels", [16, 40]), ("num_class_embeds", "ten"), ("sample_size", 0),
    ("class_embed_type", "timestep"),
  ],
)  # fmt: skip
def test_a_network_that_we_do_not_have_is_refused_by_its_field(field, value):
  stored = diffusers_unet.unet_for_diffusers(NETWORK, SPEC, 0)
  said = (
    "attention must be" if field == "up_block_types" else "SkipDown" if "down_b" in field else field
  )
  with pytest.raises(UserError, match=rf"config\.json: .*{said}"):
    diffusers_unet.unet_from_diffusers({**stored, field: value}, "config.json")
  scaled = {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": None}
  with pytest.raises(UserError, match="attn_norm_num_groups=null with resnet_time_scale_shift"):
    diffusers_unet.unet_from_diffusers({**stored, **scaled}, "config.json")
  del stored["sample_size"]
  with pytest.raises(UserError, match="has no field sample_size"):
    diffusers_unet.unet_from_diffusers(stored, "config.json")


@pytest.mark.parametrize(
  "changes",
  [{"skip_scale": 0.5}, {"resampling": "block"}, {"embedding": "fourier"}, {"norm_groups": None}],
)
def test_what_diffusers_cannot_represent_is_named(changes):
  network = dataclasses.replace(NETWORK, **changes)
  with pytest.raises(UserError, match=rf"`model\.{next(iter(changes))}=.*`: diffusers"):
    diffusers_unet.unet_for_diffusers(network, SPEC, 0)


DDPM = {
  "_class_name": "DDPMScheduler", "num_train_timesteps": 1000, "beta_schedule": "linear",
  "beta_start": 1e-4, "beta_end": 0.02, "prediction_type": "epsilon",
  "variance_type": "fixed_large", "clip_sample": True, "timestep_spacing": "leading",
}  # fmt: skip


@pytest.mark.parametrize(
  "changes",
  [
    {},
    {"prediction_type": "v_prediction", "variance_type": "fixed_small", "clip_sample": False},
    {"variance_type": "learned_range", "timestep_spacing": "trailing"},
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
  ],
)
def test_a_scheduler_comes_back(changes):
  stored = DDPM | changes
  learned = changes.get("variance_type") == "learned_range"
  sections = read_scheduler(stored, "scheduler_config.json")
  assert write_scheduler({**sections, "model": {"learned_variance": learned}}) == stored


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    ({"_class_name": "EulerDiscreteScheduler"}, "the scheduler EulerDiscreteScheduler"),
    ({"beta_schedule": "sigmoid"}, "beta_schedule='sigmoid'"),
    ({"prediction_type": "flow"}, "prediction_type='flow'"),
    ({"thresholding": True}, "thresholding=True"),
    ({"trained_betas": [0.1]}, r"trained_betas=\[0.1\]"),
  ],
)
def test_a_scheduler_that_we_do_not_have_is_refused(changes, said):
  with pytest.raises(UserError, match=rf"scheduler_config\.json: {said}"):
    read_scheduler(DDPM | changes, "scheduler_config.json")
