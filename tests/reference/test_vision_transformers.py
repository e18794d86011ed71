"""The vision transformers against those of Hugging Face's transformers (PyTorch), same weights."""

import sys
from pathlib import Path

import jax
import numpy as np
import pytest

pytestmark = pytest.mark.reference
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

sys.path.append(str(Path(__file__).parents[1] / "models/vision"))
from vision_cases import (  # noqa: E402
  DEPTH,
  GRID,
  OUT,
  PATCH,
  SIDE,
  WIDTH,
  clip_state,
  dinov2_state,
  hugging_face_state,
)

from diffusion_jax.models.vision.transformer import CLIP, DINOV2, embed  # noqa: E402
from diffusion_jax.models.vision.vision_keys import (  # noqa: E402
  from_state,
  our_names,
  resized_positions,
)

SHAPE = {
  "hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": WIDTH // 64,
  "image_size": SIDE, "patch_size": PATCH,
}  # fmt: skip


def images():
  return np.random.default_rng(3).normal(size=(3, SIDE, SIDE, 3)).astype(np.float32)


def ours(state, recipe):
  recipe = recipe._replace(side=SIDE)
  params = from_state(our_names(state, recipe), recipe, "the file")
  return np.asarray(jax.jit(lambda p, x: embed(p, x, recipe))(params, images()))


def load(network, state):
  """Copy weights into a network; every one of them must have a place."""
  tensors = {n: torch.from_numpy(np.ascontiguousarray(a)) for n, a in state.items()}
  left = network.load_state_dict(tensors, strict=False)
  assert left.unexpected_keys == []
  assert [n for n in left.missing_keys if not n.endswith(("position_ids", "mask_token"))] == []
  return network.eval()


def theirs(network):
  with torch.no_grad():
    return network(pixel_values=torch.from_numpy(images().transpose(0, 3, 1, 2)))


def test_clip_computes_what_transformers_computes():
  config = transformers.CLIPVisionConfig(
    **SHAPE, intermediate_size=4 * WIDTH, projection_dim=OUT, hidden_act="quick_gelu"
  )
  network = transformers.CLIPVisionModelWithProjection(config)
  state = {
    n: a for n, a in hugging_face_state(clip_state()).items()
    if n.startswith("vis") and not n.endswith("position_ids")
  }  # fmt: skip
  expected = theirs(load(network, state)).image_embeds.numpy()
  expected /= np.linalg.norm(expected, axis=-1, keepdims=True)
  np.testing.assert_allclose(ours(clip_state(), CLIP), expected, atol=2e-5)


def hugging_face_dinov2(state):
  """The names of transformers for the weights of facebookresearch/dinov2, one by one."""
  named = {
    "embeddings.cls_token": state["cls_token"],
    "embeddings.position_embeddings": state["pos_embed"],
    "embeddings.patch_embeddings.projection.weight": state["patch_embed.proj.weight"],
    "embeddings.patch_embeddings.projection.bias": state["patch_embed.proj.bias"],
    "layernorm.weight": state["norm.weight"],
    "layernorm.bias": state["norm.bias"],
  }
  for i in range(DEPTH):
    old, new = f"blocks.{i}", f"encoder.layer.{i}"
    for part in ("weight", "bias"):
      three = np.split(state[f"{old}.attn.qkv.{part}"], 3)
      for letter, array in zip("qkv", three, strict=True):
        named[f"{new}.attention.{letter}_proj.{part}"] = array
      named[f"{new}.attention.o_proj.{part}"] = state[f"{old}.attn.proj.{part}"]
      for layer in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
        named[f"{new}.{layer}.{part}"] = state[f"{old}.{layer}.{part}"]
    named[f"{new}.layer_scale1.lambda1"] = state[f"{old}.ls1.gamma"]
    named[f"{new}.layer_scale2.lambda1"] = state[f"{old}.ls2.gamma"]
  return named


def test_dinov2_computes_what_transformers_computes():
  network = transformers.Dinov2Model(transformers.Dinov2Config(**SHAPE, mlp_ratio=4))
  expected = theirs(load(network, hugging_face_dinov2(dinov2_state()))).pooler_output.numpy()
  found = ours(dinov2_state(), DINOV2)
  np.testing.assert_allclose(found, expected, atol=1e-4 * expected.std())


@pytest.mark.parametrize(("old", "new"), [(37, 16), (5, 3), (GRID, GRID + 2)])
def test_positions_are_interpolated_as_pytorch_does_with_dinov2s_offset(old, new):
  """dinov2/models/vision_transformer.py calls interpolate with a factor of (new + 0.1) / old."""
  positions = np.random.default_rng(0).normal(size=(old**2 + 1, 8)).astype(np.float32)
  grid = torch.from_numpy(positions[1:].reshape(1, old, old, 8).transpose(0, 3, 1, 2))
  factor = (new + 0.1) / old
  resized = torch.nn.functional.interpolate(grid, scale_factor=(factor, factor), mode="bicubic")
  expected = resized.numpy()[0].transpose(1, 2, 0).reshape(-1, 8)
  np.testing.assert_allclose(resized_positions(positions, new)[1:], expected, atol=1e-5)
