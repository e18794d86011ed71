"""Files of DiT and SiT: their names, shapes, recipes and refusals; without PyTorch."""

import jax
import numpy as np
import pytest
from numpy_draws import normal

from diffusion_jax.core.config import Override
from diffusion_jax.core.stacking import unstack_layers
from diffusion_jax.core.trees import named_leaves
from diffusion_jax.models import DiT
from diffusion_jax.models.embeddings import position_embedding
from diffusion_jax.porting.dit_weights import DIT, SIT
from diffusion_jax.porting.imported import experiment_of
from diffusion_jax.porting.layout import (
  Content,
  Source,
  parameters_of,
  tensors_of_parameters,
)
from diffusion_jax.types import ImageSpec, UserError

SPEC = ImageSpec(8, 8, 4, None, 5)
NETWORK = DiT(depth=3, hidden=48, heads=3, patch=2, learned_variance=True)
FLAT = jax.eval_shape(NETWORK.create(SPEC, 6).init, jax.random.key(0))
SHAPES = {name: leaf.shape for name, leaf in named_leaves(unstack_layers(FLAT)).items()}
SIT_ARGS = {"model": "SiT-S/2", "path_type": "Linear", "prediction": "velocity"}


@pytest.fixture(scope="module")
def params():
  leaves = [normal(i, *leaf.shape) for i, leaf in enumerate(jax.tree.leaves(FLAT))]
  return jax.tree.unflatten(jax.tree.structure(FLAT), leaves)


@pytest.fixture(scope="module")
def tensors(params):
  positions = {"pos_embed": position_embedding(4, 4, 48)[None]}
  return tensors_of_parameters(DIT.layout, params, NETWORK, 6) | positions


def described(tensors, facts=None, where="DiT.pt"):
  return DIT.describe(Content(tensors, facts or {}, None, where))


def opened(tensors, facts=None, *fields):
  source = Source(DIT.layout, described(tensors, facts), tensors, {}, "DiT.pt")
  overrides = [Override("model", *field.split("=")) for field in fields]
  return source, experiment_of(source, {}, overrides)


@pytest.mark.parametrize("scan_blocks", [True, False])
def test_parameters_come_back_bit_by_bit_as_one_array_or_block_by_block(
  params, tensors, scan_blocks
):
  source, experiment = opened(tensors, None, f"scan_blocks={scan_blocks}")
  found = parameters_of(source, experiment)
  assert ("stacked_block" in found) == scan_blocks
  expected = named_leaves(params if scan_blocks else unstack_layers(params))
  assert {n: v.tobytes() for n, v in named_leaves(found).items()} == {
    n: np.asarray(v).tobytes() for n, v in expected.items()
  }
  back = tensors_of_parameters(DIT.layout, found, experiment.sections["model"], 6)
  assert all(back[name].tobytes() == tensors[name].tobytes() for name in back)
  assert tensors.keys() - back.keys() == {"pos_embed"}


def test_names_and_shapes_are_those_of_the_published_files(params, tensors):
  assert DIT.recognises(tensors.keys())
  assert len(tensors) == 12 + 10 * 3
  assert tensors["x_embedder.proj.weight"].shape == (48, 4, 2, 2)
  assert tensors["t_embedder.mlp.0.weight"].shape == (48, 256)
  assert tensors["y_embedder.embedding_table.weight"].shape == (6, 48)
  assert tensors["blocks.2.attn.qkv.weight"].shape == (144, 48)
  assert tensors["blocks.0.adaLN_modulation.1.bias"].shape == (288,)
  assert tensors["final_layer.linear.weight"].shape == (32, 48)
  kernel = params["patch_in"]["kernel"].reshape(2, 2, 4, 48)
  np.testing.assert_array_equal(tensors["x_embedder.proj.weight"][7, 3], kernel[:, :, 3, 7])
  query = params["stacked_block"]["attention"]["query"]["kernel"][1]
  np.testing.assert_array_equal(tensors["blocks.1.attn.qkv.weight"][:48], query.T)


def test_a_dit_is_described(tensors):
  found = described(tensors)
  assert found.spec == SPEC
  assert found.sections["model"] == {
    "name": "dit", "depth": 3, "hidden": 48, "heads": 16, "patch": 2, "mlp_ratio": 4,
    "learned_variance": True,
  }  # fmt: skip
  assert found.sections["generative"] == {
    "name": "diffusion", "prediction": "eps", "conditional": True, "label_dropout": 0.1,
  }  # fmt: skip
  assert found.sections["sampler"]["clip"] is False
  assert found.sections["guidance"] == {"weight": 1.5, "channels": 3}
  assert found.assumed == ("architecture", "model.heads", "guidance.weight")
  assert "latents of 8x8x4" in found.notes[0]


@pytest.mark.parametrize("where", ["runs/0400000.pt (ema)", "SiT-XL-2-256.pt", "asked"])
def test_a_sit_is_told_by_its_arguments_its_name_or_the_user(tensors, where):
  facts = {"args": {**SIT_ARGS, "num_classes": 5}} if "ema" in where else {}
  entry = SIT if where == "asked" else DIT
  found = entry.describe(Content(tensors, facts, None, where))
  assert found.layout.name == "SiT"
  assert found.sections["process"] == {"name": "flow"}
  model = found.sections["model"]
  assert (model["from_noise"], model["time_scale"], model["spare_outputs"]) == (True, 1 / 999, True)
  if facts:
    assert model["heads"] == 6
    assert found.assumed == ("guidance.weight",)
  else:
    assert found.assumed[0] == "architecture"
  source = Source(DIT.layout, found, tensors, {}, where)
  params = parameters_of(source, experiment_of(source, {}, []))
  back = tensors_of_parameters(DIT.layout, params, DiT(depth=3, hidden=48), 6)
  assert all(back[name].tobytes() == tensors[name].tobytes() for name in back)


def test_a_table_without_a_null_row_gets_one_that_is_never_used(tensors):
  whole = "y_embedder.embedding_table.weight"
  short = {**tensors, whole: tensors[whole][:5]}
  source, experiment = opened(short, {"args": {"model": "DiT-S/2", "num_classes": 5}})
  assert experiment.sections["generative"].label_dropout == 0
  params = parameters_of(source, experiment)
  np.testing.assert_array_equal(params["label"]["embedding"][5], 0)
  back = tensors_of_parameters(DIT.layout, params, experiment.sections["model"], 5)
  assert back[whole].tobytes() == short[whole].tobytes()


@pytest.mark.parametrize(
  ("change", "said"),
  [
    (lambda t: t.pop("blocks.1.mlp.fc2.bias"), r"no tensor blocks\.1\.mlp\.fc2\.bias"),
    (lambda t: t.pop("t_embedder.mlp.0.weight"), r"no tensor t_embedder\.mlp\.0\.weight"),
    (lambda t: t.update({"blocks.0.norm.weight": np.zeros(4)}), r"without a place .* blocks\.0\.n"),
    (
      lambda t: t.update({"blocks.2.attn.proj.bias": np.zeros(47, np.float32)}),
      r"blocks\.2\.attn\.proj\.bias has the shape \[47\], this architecture needs \[48\]",
    ),
    (
      lambda t: t.update({"x_embedder.proj.weight": np.zeros((48, 16), np.float32)}),
      r"x_embedder\.proj\.weight has the shape \[48, 16\], not 4 axes",
    ),
    (
      lambda t: t.update({"pos_embed": t["pos_embed"] + 0.01}),
      "differs from the fixed positions by 0.01",
    ),
    (lambda t: t.update({"pos_embed": t["pos_embed"][:, :15]}), "15 positions"),
  ],
)
def test_another_architectures_tensors_are_refused(tensors, change, said):
  changed = dict(tensors)
  change(changed)
  with pytest.raises(UserError, match=said):
    parameters_of(*opened(changed))


@pytest.mark.parametrize(
  ("told", "said"),
  [
    ({**SIT_ARGS, "path_type": "VP"}, "path_type=VP is not supported; needed Linear"),
    ({**SIT_ARGS, "prediction": "score"}, "prediction=score is not supported; needed velocity"),
    ({"model": "DiT-S/2", "num_classes": 9}, "num_classes=9, and its table of classes has 6 rows"),
  ],
)
def test_recipes_that_we_do_not_have_are_refused(tensors, told, said):
  with pytest.raises(UserError, match=rf"DiT\.pt: {said}"):
    described(tensors, {"args": told})
