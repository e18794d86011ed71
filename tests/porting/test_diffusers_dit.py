"""diffusers' transformer and schedulers: configs both ways and what is refused; without PyTorch."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from numpy_draws import normal

from diffusion_jax.core.config import Override
from diffusion_jax.models import DiT
from diffusion_jax.porting.diffusers_dit import DIT_2D
from diffusion_jax.porting.diffusers_export import describe_pipeline
from diffusion_jax.porting.diffusers_scheduler import read_scheduler, write_scheduler
from diffusion_jax.porting.imported import experiment_of
from diffusion_jax.porting.layout import parameters_of, tensors_of_parameters
from diffusion_jax.porting.opening import open_source
from diffusion_jax.processes import Flow
from diffusion_jax.samplers import Euler
from diffusion_jax.types import ImageSpec, UserError
from diffusion_jax.weight_files.safetensors_file import write_safetensors

SPEC = ImageSpec(8, 8, 3, 256, 5)
NETWORK = DiT(depth=2, hidden=48, heads=3, learned_variance=True, frequency_shift=1)
CONFIG = {
  "_class_name": "DiTTransformer2DModel", "num_attention_heads": 3, "attention_head_dim": 16,
  "in_channels": 3, "out_channels": 6, "num_layers": 2, "sample_size": 8, "patch_size": 2,
  "num_embeds_ada_norm": 5, "norm_eps": 1e-5, "norm_type": "ada_norm_zero",
  "norm_elementwise_affine": False, "activation_fn": "gelu-approximate", "attention_bias": True,
  "dropout": 0.0,
}  # fmt: skip
DDIM = {
  "_class_name": "DDIMScheduler", "num_train_timesteps": 1000, "beta_schedule": "linear",
  "beta_start": 1e-4, "beta_end": 0.02, "prediction_type": "epsilon", "clip_sample": False,
  "timestep_spacing": "leading",
}  # fmt: skip
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 1.0}


@pytest.fixture(scope="module")
def params():
  leaves, tree = jax.tree.flatten(jax.eval_shape(NETWORK.create(SPEC, 6).init, jax.random.key(0)))
  return jax.tree.unflatten(tree, [normal(i, *leaf.shape) for i, leaf in enumerate(leaves)])


@pytest.fixture(scope="module")
def tensors(params):
  return tensors_of_parameters(DIT_2D.layout, params, NETWORK, 6)


def opened(tensors, folder, network=CONFIG, scheduler=DDIM, overrides=()):
  """The source and experiment of a pipeline's folder with these files."""
  for part in ("transformer", "scheduler"):
    (folder / part).mkdir()
  (folder / "model_index.json").write_text("{}")
  (folder / "transformer" / "config.json").write_text(json.dumps(network))
  (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
  write_safetensors(
    folder / "transformer" / "diffusion_pytorch_model.safetensors", tensors, {"format": "pt"}
  )
  source = open_source(folder)
  return source, experiment_of(source, {}, overrides)


def test_every_block_has_copies_of_the_layers_that_embed(params, tensors):
  assert len(tensors) == 6 + 2 * (5 + 14)
  emb = "transformer_blocks.{}.norm1.emb.class_embedder.embedding_table.weight"
  for i in range(2):
    np.testing.assert_array_equal(tensors[emb.format(i)], params["label"]["embedding"])
  assert tensors["pos_embed.proj.weight"].shape == (48, 3, 2, 2)
  assert tensors["transformer_blocks.1.norm1.linear.weight"].shape == (288, 48)
  assert tensors["proj_out_2.bias"].shape == (24,)


@pytest.mark.parametrize("name", ["DiTTransformer2DModel", "Transformer2DModel"])
def test_a_folder_comes_back(params, tensors, name, tmp_path):
  network = {**CONFIG, "_class_name": name, "cross_attention_dim": None}
  source, experiment = opened(tensors, tmp_path, network)
  assert source.described.spec == SPEC
  assert source.described.assumed == ("model.frequency_shift",)
  parts = experiment.sections
  assert (parts["generative"].label_dropout, parts["loss"].weight) == (0.1, 0.001)
  found = parameters_of(source, experiment)
  assert jax.tree.structure(found) == jax.tree.structure(params)
  back = tensors_of_parameters(source.layout, found, parts["model"], 6)
  assert {n: v.tobytes() for n, v in back.items()} == {n: v.tobytes() for n, v in tensors.items()}
  assert describe_pipeline(experiment, SPEC) == (CONFIG, DDIM)


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    ({"norm_type": "ada_norm"}, "norm_type='ada_norm' is not supported; needed 'ada_norm_zero'"),
    ({"activation_fn": "gelu"}, "activation_fn='gelu'"),
    ({"attention_bias": False}, "attention_bias=False"),
    ({"out_channels": 5}, "out_channels=5 must be in_channels=3 or twice that"),
    ({"patch_size": None}, "patch_size=None must be a number"),
    ({"num_embeds_ada_norm": None}, "num_embeds_ada_norm=None must be a number"),
  ],
)
def test_a_transformer_that_we_do_not_have_is_refused_by_its_field(changes, said):
  with pytest.raises(UserError, match=rf"config\.json: {said}"):
    DIT_2D.read_config(CONFIG | changes, "config.json")
  old = {"_class_name": "Transformer2DModel", "in_channels": 4}
  with pytest.raises(UserError, match="norm_type='layer_norm'"):
    DIT_2D.read_config(old, "config.json")


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("model.frequency_shift", "0"), ("model.mlp_ratio", "2"), ("generative.conditional", "False"),
  ],
)  # fmt: skip
def test_what_diffusers_cannot_represent_is_named(field, value, tensors, tmp_path):
  section, _, name = field.partition(".")
  given = [Override(section, name, value), Override("guidance", "weight", "1")]
  _, experiment = opened(tensors, tmp_path, overrides=given)
  with pytest.raises(UserError, match=rf"`{field}={value}`: diffusers' DiTTransformer2DModel"):
    describe_pipeline(experiment, SPEC)


def test_other_shapes_and_velocities_from_noise_are_named(tensors, tmp_path):
  _, experiment = opened(tensors, tmp_path, scheduler=FLOW, network=CONFIG | {"out_channels": 3})
  with pytest.raises(UserError, match=r"images of 8x6: .* square ones only"):
    describe_pipeline(experiment, SPEC._replace(width=6))
  for field in ("from_noise", "spare_outputs"):
    model = dataclasses.replace(experiment.sections["model"], **{field: True})
    other = dataclasses.replace(experiment, sections={**experiment.sections, "model": model})
    with pytest.raises(UserError, match=rf"`model\.{field}=True`: diffusers"):
      describe_pipeline(other, SPEC)


@pytest.mark.parametrize("stored", [DDIM, FLOW, FLOW | {"num_train_timesteps": 100, "shift": 3.0}])
def test_a_scheduler_comes_back(stored):
  sections = read_scheduler(stored, "scheduler_config.json")
  model = {"name": "dit", "learned_variance": False, **sections.get("model", {})}
  assert write_scheduler({**sections, "model": model}) == stored


def test_a_unet_with_variances_has_the_scheduler_that_knows_them():
  sections = read_scheduler(DDIM, "scheduler_config.json")
  written = write_scheduler({**sections, "model": {"name": "unet", "learned_variance": True}})
  assert (written["_class_name"], written["variance_type"]) == ("DDPMScheduler", "learned_range")


def test_steps_of_flow_matching_end_at_the_least_time_and_then_at_the_data():
  """As in diffusers: evenly from 1000 to 1, then the data, all shifted."""
  stored = FLOW | {"shift": 3.0}
  sections = read_scheduler(stored, "scheduler_config.json")
  fields = {name: value for name, value in sections["process"].items() if name != "name"}
  process = Flow(**fields)
  grid = Euler(steps=4, spacing="uniform").grid(process)
  shifted = lambda t: 3 * t / (1 + 2 * t)  # noqa: E731
  even = np.linspace(1, shifted(1 / 1000), 4)
  np.testing.assert_allclose(grid.sigma, [*shifted(even), 0], rtol=1e-12)
  embedded = process.network_time(grid.t[:-1]) * sections["model"]["time_scale"]
  np.testing.assert_allclose(embedded, 1000 * shifted(even), rtol=1e-12)


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    (DDIM | {"set_alpha_to_one": False}, "set_alpha_to_one=False is not supported"),
    (DDIM | {"steps_offset": 1}, "steps_offset=1 is not supported; needed 0"),
    (FLOW | {"use_dynamic_shifting": True}, "use_dynamic_shifting=True"),
    (FLOW | {"shift_terminal": 0.1}, r"shift_terminal=0\.1"),
    (FLOW | {"num_train_timesteps": 1}, "num_train_timesteps=1"),
  ],
)
def test_a_scheduler_that_we_do_not_have_is_refused(changes, said):
  with pytest.raises(UserError, match=rf"scheduler_config\.json: {said}"):
    read_scheduler(changes, "scheduler_config.json")


@pytest.mark.parametrize(
  ("process", "prediction", "time_scale", "said"),
  [
    ("flow", "velocity", 1 / 999, r"`model\.time_scale=0\.001.*times end at 1"),
    ("flow", "velocity", 0.5, r"`model\.time_scale=0\.5`: .* end at 499\.5"),
    ("flow", "v", 1.0, r"`generative\.prediction=v`"),
    ("linear_vp", "eps", 0.5, r"`model\.time_scale=0\.5`: diffusers' networks get the step"),
  ],
)
def test_times_that_diffusers_does_not_have_are_named(process, prediction, time_scale, said):
  config = {
    "process": {"name": process, "shift": 1.0}, "sampler": {"name": "euler"},
    "generative": {"prediction": prediction}, "model": {"time_scale": time_scale},
  }  # fmt: skip
  with pytest.raises(UserError, match=said):
    write_scheduler(config)


@pytest.mark.parametrize("min_time", [-0.1, 0.5])
def test_least_times_that_flow_cannot_have_are_refused(min_time):
  with pytest.raises(ValueError, match=f"min_time={min_time} must be at least 0"):
    Flow(min_time=min_time)
